"""Augmentation after the transfer, as on a GPU, gives the batches that the loader would give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from metricloss_pl.augment import RandomResizedCrop, devices
from metricloss_pl.data.dataset import UnfinishedBatch
from tests.data.device_fit import AUGMENT, KINDS, NoiseDataModule, Recorder, fit, fit_in_processes
from tests.processes import run_groups

Batches = list[tuple[Tensor, Tensor]]


def assert_equal(got: Batches, want: Batches) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert one[0].dtype == other[0].dtype
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_give_the_same_batches(kind: str, num_workers: int, tmp_path: Path) -> None:
    loaded, plain = fit(kind, tmp_path, on_device=False, num_workers=num_workers)
    changed, data = fit(kind, tmp_path, on_device=True, num_workers=num_workers)
    assert len(loaded.batches) == 12
    assert_equal(changed.batches, loaded.batches)
    assert torch.equal(torch.cat(changed.validated), torch.cat(loaded.validated))
    assert plain._training_set is not None
    assert data._training_set is not None
    assert plain._training_set.defer is None
    kept = kind.startswith("kept") or kind == "unchanged"
    assert data._training_set.defer == ("all" if kept else None if kind == "16 bits" else "augmentation")
    workers = data.trainer.train_dataloader.num_workers  # type: ignore[union-attr]
    assert workers == (0 if kept else num_workers)


@pytest.mark.parametrize("kind", ["kept on the device", "kept on the device, crops of different sizes"])
def test_operations_for_other_devices(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = fit(kind, tmp_path, on_device=False)[0].batches
    monkeypatch.setattr(devices, "on_cpu", lambda tensor: False)
    got = fit(kind, tmp_path, on_device=True)[0].batches
    resized = any(isinstance(augmentation, RandomResizedCrop) for augmentation in KINDS[kind].get("augment", []))
    for (images, labels), (wanted, wanted_labels) in zip(got, want, strict=True):
        torch.testing.assert_close(images.int(), wanted.int(), rtol=0, atol=int(resized))
        assert torch.equal(labels, wanted_labels)


@pytest.mark.parametrize("kind", ["16 bits", "kept on the device, 16 bits", "kept on the device"])
def test_half_precision_rounds_floats_after_their_augmentation(kind: str, tmp_path: Path) -> None:
    loaded, changed = (fit(kind, tmp_path, on_device=way, precision="bf16-true")[0].batches for way in (False, True))
    assert_equal(changed, loaded)
    assert loaded[0][0].dtype == (torch.bfloat16 if "16 bits" in kind else torch.uint8)


@pytest.mark.parametrize("defer", ["all", "augmentation"])
def test_finishing_a_batch_fetches_no_values(defer: Any, tmp_path: Path) -> None:
    """The meta device has no values, and no operation takes tensors of two devices."""
    data = NoiseDataModule(folder=tmp_path, resize=12, augment=AUGMENT)
    data.setup("fit")
    dataset = data._dataset("train", training=True, defer=defer)
    batch = dataset.__getitems__([(0, 1), (3, 1)])
    assert isinstance(batch, UnfinishedBatch)
    images, labels = dataset.finish(UnfinishedBatch(*(part.to("meta") for part in batch)))
    assert images.device.type == labels.device.type == "meta"
    assert images.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("kind", ["kept on the device", "files in memory"])
def test_a_resumed_run_continues_within_the_epoch(kind: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = fit(kind, tmp_path / "whole", on_device=False)[0]
    with pytest.raises(RuntimeError, match="killed"):
        fit(kind, tmp_path, on_device=True, model=Recorder(stop_at=9))
    resumed = fit(kind, tmp_path, on_device=True, ckpt_path=tmp_path / "middle.ckpt", weights_only=True)[0]
    assert 0 < len(resumed.batches) < 6
    assert_equal(resumed.batches, whole.batches[-len(resumed.batches) :])


def test_processes_see_the_same_batches_on_both_ways(tmp_path: Path) -> None:
    run_groups((2, fit_in_processes, 2, tmp_path))
    seen = {file.stem: torch.load(file, weights_only=True) for file in tmp_path.glob("*.pt")}
    assert len(seen) == 8
    for name, batches in seen.items():
        assert len(batches) == 6
        assert_equal(batches, seen[name.replace("True", "False")])
    assert not torch.equal(seen["kept on the device True 0"][0][0], seen["kept on the device True 1"][0][0])


def test_without_a_trainer_batches_are_finished(tmp_path: Path) -> None:
    data = NoiseDataModule(folder=tmp_path)
    data.setup("fit")
    loader = data.train_dataloader()
    assert isinstance(loader, DataLoader)
    assert next(iter(loader))[0].shape == (4, 3, 8, 8)


def test_the_models_own_hook_still_runs(tmp_path: Path) -> None:
    class Brighter(Recorder):
        def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
            return batch[0].float() + 1000, batch[1]

    want = fit("unchanged", tmp_path, on_device=False)[0].batches
    for on_device in (False, True):
        got = fit("unchanged", tmp_path, on_device=on_device, model=Brighter())[0]
        assert all(torch.equal(one[0], other[0] + 1000.0) for one, other in zip(got.batches, want, strict=True))
        assert min(images.min() for images in got.validated) >= 1000
