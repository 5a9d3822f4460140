from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch.utils.data import DataLoader

from metricloss_pl.augment import HorizontalFlip, RandAugment, ShiftCrop
from metricloss_pl.data.samples import Samples, Statistics
from metricloss_pl.errors import UserError

Make = Callable[..., Any]


def trainer(**arguments: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**(quiet | {"enable_checkpointing": False, "max_epochs": 1} | arguments))


def counts(samples: Samples) -> list[int]:
    return torch.bincount(samples.labels, minlength=3).tolist()


@pytest.fixture
def parts(samples: Make) -> dict[str, Samples]:
    return {"train": samples([30, 40, 50]), "test": samples([5, 6, 8], seed=1, part="test")}


@pytest.fixture
def official(samples: Make, parts: dict[str, Samples]) -> dict[str, Samples]:
    return parts | {"val": samples([10, 12, 14], seed=2, part="val")}


def test_facts_right_after_construction(toy: Make) -> None:
    module = toy(resize=9, image_size=7, in_channels=1)
    assert module.num_classes == 3
    assert module.class_names == ["ant", "bee", "cat"]
    assert module.in_channels == 1
    assert module.image_format == {"in_channels": 1, "resize": 9, "image_size": 7}
    assert toy(image_size=7).image_format == {"in_channels": 3, "resize": 7, "image_size": 7}
    assert toy().image_format == {"in_channels": 3, "resize": None, "image_size": None}
    assert module.has_validation
    assert not toy(val_fraction=0).has_validation
    assert module.has_read == []


def test_a_validation_part_is_cut(toy: Make, parts: dict[str, Samples]) -> None:
    module = toy(parts=parts, val_fraction=0.2)
    module.setup("fit")
    assert counts(module.samples("val")) == [6, 8, 10]
    assert module.class_counts.tolist() == counts(module.samples("train")) == [24, 32, 40]
    assert module.class_counts.dtype == torch.int64
    names = module.samples("train").names + module.samples("val").names
    assert sorted(names) == sorted(parts["train"].names)
    other = toy(parts=parts, val_fraction=0.2, seed=1)
    other.setup("fit")
    assert other.samples("val").names != module.samples("val").names


def test_an_official_validation_part_is_used_whole(toy: Make, official: dict[str, Samples]) -> None:
    module = toy(parts=official)
    module.setup("fit")
    assert module.samples("val").names == official["val"].names
    assert module.samples("train").names == official["train"].names


def test_val_fraction_zero_trains_on_everything(toy: Make, official: dict[str, Samples]) -> None:
    module = toy(parts=official, val_fraction=0)
    module.setup("fit")
    assert module.class_counts.tolist() == [40, 52, 64]
    assert module.val_dataloader() == []
    with pytest.raises(UserError, match="no validation set: val_fraction is 0"):
        module.samples("val")


def test_samples_per_class_counts_training_and_validation_together(toy: Make, official: dict[str, Samples]) -> None:
    without = {"train": official["train"]}
    for given, fraction, train, val in ((without, 0.4, 12, 8), (official, 0.4, 12, 8), (without, 0.1, 18, 2)):
        module = toy(parts=given, samples_per_class=20, val_fraction=fraction)
        module.setup("fit")
        assert counts(module.samples("train")) == [train] * 3
        assert counts(module.samples("val")) == [val] * 3
    module = toy(parts=official, samples_per_class=35, val_fraction=0)
    module.setup("fit")
    assert counts(module.samples("train")) == [35] * 3
    again, other = (toy(parts=without, samples_per_class=20, seed=seed) for seed in (0, 1))
    again.setup("fit")
    other.setup("fit")
    assert again.samples("train").names != other.samples("train").names


def test_too_few_images_of_a_class_are_named(toy: Make, official: dict[str, Samples]) -> None:
    with pytest.raises(UserError, match=r"'ant' \(label 0\) has 30 images"):
        toy(parts={"train": official["train"]}, samples_per_class=31).setup("fit")
    with pytest.raises(UserError, match=r"'ant'.* has 10 images"):
        toy(parts=official, samples_per_class=25, val_fraction=0.5).setup("fit")


def test_groups_stay_together(toy: Make, parts: dict[str, Samples]) -> None:
    groups = torch.arange(120) // 4
    module = toy(parts={"train": replace(parts["train"], groups=groups)}, val_fraction=0.25)
    module.setup("fit")
    train, val = module.samples("train").groups, module.samples("val").groups
    assert len(val) > 15
    assert not set(train.tolist()) & set(val.tolist())


def test_no_empty_validation(toy: Make, samples: Make) -> None:
    with pytest.raises(UserError, match=r"val_fraction 0.1.*no image"):
        toy(parts={"train": samples([1, 1, 1])}).setup("fit")
    with pytest.raises(UserError, match=r"val_fraction 0.1 of samples_per_class 3"):
        toy(parts={"train": samples([4, 4, 4])}, samples_per_class=3).setup("fit")


def test_an_empty_class_is_named(toy: Make, samples: Make) -> None:
    with pytest.raises(UserError, match="'bee': no training image"):
        toy(parts={"train": samples([20, 0, 20])}).setup("fit")
    with pytest.raises(UserError, match="'bee' and 1 other class"):
        toy(parts={"train": samples([20])}).setup("fit")


def test_labels_are_checked(toy: Make, samples: Make) -> None:
    with pytest.raises(UserError, match="label 3"):
        toy(parts={"train": samples([9, 9, 9, 9])}).setup("fit")


@pytest.mark.parametrize(
    ("stage", "read", "there"),
    [
        ("fit", {"train", "val"}, {"train", "val"}),
        ("validate", {"train", "val"}, {"train", "val"}),
        ("test", {"test"}, {"test"}),
        ("predict", {"test"}, {"predict"}),
        (None, {"train", "val", "test"}, {"train", "val", "test", "predict"}),
    ],
)
def test_each_stage_reads_what_it_needs(
    toy: Make, official: dict[str, Samples], stage: str | None, read: set[str], there: set[str]
) -> None:
    module = toy(parts=official)
    module.setup(stage)
    assert set(module.has_read) == read
    assert len(module.has_read) == len(read)
    for part in there:
        assert len(module.samples(part)) > 0
    module.setup(stage)
    assert len(module.has_read) == len(read)


def test_stages_in_any_order(toy: Make, parts: dict[str, Samples]) -> None:
    straight, mixed = toy(parts=parts), toy(parts=parts)
    for stage in ("fit", "test", "predict"):
        straight.setup(stage)
    for stage in ("predict", "test", "fit"):
        mixed.setup(stage)
    for part in ("train", "val", "test", "predict"):
        assert straight.samples(part).names == mixed.samples(part).names


def test_missing_parts_and_stages_are_named(toy: Make, parts: dict[str, Samples]) -> None:
    with pytest.raises(UserError, match="no test set"):
        toy(parts={"train": parts["train"]}).setup("test")
    with pytest.raises(UserError, match="no training set"):
        toy(parts={}).setup("fit")
    with pytest.raises(UserError, match=r'setup\("fit"\)'):
        toy(parts=parts).train_dataloader()


def test_normalization_is_that_of_the_training_part(toy: Make, parts: dict[str, Samples]) -> None:
    module = toy(parts=parts)
    module.setup("fit")
    mean, std = module.normalization
    values = module.samples("train").images.double() / 255
    assert np.allclose(mean, values.mean((0, 2, 3)))
    assert np.allclose(std, values.std((0, 2, 3), correction=0))
    given = toy(parts=parts, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert given.normalization == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    half = toy(parts=parts, mean=[0.1, 0.2, 0.3])
    half.setup("fit")
    assert half.normalization == ([0.1, 0.2, 0.3], std)


def test_normalization_of_files_and_floats(toy: Make, tmp_path: Path) -> None:
    arrays = [np.random.default_rng(i).integers(0, 65536, (5 + i, 9), dtype=np.uint16) for i in range(6)]
    paths = [tmp_path / f"{index}.png" for index in range(6)]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    files = Samples(images=paths, labels=labels, names=[path.name for path in paths])
    values = np.concatenate([array.ravel() for array in arrays]) / 65535
    for cache_gb in (0.0, 1.0):
        module = toy(parts={"train": files}, in_channels=1, val_fraction=0, cache_gb=cache_gb)
        module.setup("fit")
        mean, std = module.normalization
        assert np.allclose(mean, values.mean(), atol=1e-6)
        assert np.allclose(std, values.std(), atol=1e-6)


def test_a_constant_channel_gets_a_deviation_of_one(toy: Make, parts: dict[str, Samples]) -> None:
    images = parts["train"].images.clone()  # type: ignore[union-attr]
    images[:, 1] = 7
    module = toy(parts={"train": replace(parts["train"], images=images)})
    module.setup("fit")
    assert module.normalization[1][1] == 1.0


def test_batches(toy: Make, official: dict[str, Samples]) -> None:
    module = toy(parts=official, batch_size=16, image_size=6, resize=8, augment=[HorizontalFlip()])
    assert module.batches_in_epoch() == 7
    assert module._stores == {}  # nothing is decoded for it
    module.setup("fit")
    module.setup("test")
    module.setup("predict")
    train = list(module.train_dataloader())
    assert [images.shape for images, _ in train] == [(16, 3, 6, 6)] * 7
    assert all(images.dtype == torch.uint8 and labels.dtype == torch.int64 for images, labels in train)
    assert [len(labels) for _, labels in module.val_dataloader()] == [16, 16, 4]
    assert torch.equal(torch.cat([labels for _, labels in module.test_dataloader()]), official["test"].labels)
    images = torch.cat([images for images, _ in module.train_eval_dataloader()])
    assert torch.equal(images, official["train"].images[:, :, 1:7, 1:7])  # type: ignore[call-overload]
    index = torch.cat([index for _, _, index in module.predict_dataloader()])
    assert index.tolist() == list(range(19))
    assert module.predict_files == official["test"].names


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_fetch_whole_batches(toy: Make, parts: dict[str, Samples], num_workers: int) -> None:
    module = toy(parts=parts, num_workers=num_workers)
    module.setup("fit")
    loader = module.train_dataloader()
    assert isinstance(loader, DataLoader)
    assert loader.persistent_workers == (num_workers > 0)
    images, labels = next(iter(loader))
    assert images.shape == (64, 3, 8, 8)
    assert labels.shape == (64,)


def test_balanced_sampling(toy: Make, samples: Make) -> None:
    module = toy(parts={"train": samples([100, 10, 10])}, balanced_sampling=True, batch_size=12, val_fraction=0)
    module.setup("fit")
    labels = torch.cat([labels for _, labels in module.train_dataloader()])
    assert torch.bincount(labels).tolist() == [40, 40, 40]


def test_batches_of_some_images_a_class(toy: Make, samples: Make) -> None:
    parts = {"train": samples([50, 30, 2, 9])}
    module = toy(parts=parts, names=[*"abcd"], samples_per_class_in_batch=4, batch_size=8, val_fraction=0)
    module.setup("fit")
    batches = [labels for _, labels in module.train_dataloader()]
    assert len(batches) == 91 // 8
    for labels in batches:
        assert sorted(labels.bincount(minlength=4).tolist()) == [0, 0, 4, 4]
    assert len({label for labels in batches[:2] for label in labels.tolist()}) == 4


def test_training_images_keep_more_pixels(toy: Make, samples: Make) -> None:
    """Those that are augmented; the same part in evaluation is as the others."""
    parts = {"train": samples([30, 20, 14], side=16)}
    settings = {"parts": parts, "resize": 8, "image_size": 8, "val_fraction": 0, "batch_size": 64}
    large, small = (toy(**settings, train_resize=train_resize) for train_resize in (16, None))
    for module in (large, small):
        module.setup("fit")
    assert [module._dataset("train", training=True).store.images.shape[-1] for module in (large, small)] == [16, 8]
    evaluated = [next(iter(module.train_eval_dataloader()))[0] for module in (large, small)]
    assert torch.equal(*evaluated)
    assert large.image_format == small.image_format
    images = next(iter(large.train_dataloader()))[0]
    order = [index for index, _ in large.train_dataloader().sampler]
    windows = parts["train"].images[order].unfold(2, 8, 1).unfold(3, 8, 1)
    assert (windows == images[:, :, None, None]).all((1, 4, 5)).any((1, 2)).all()  # cut out of 16 px


def test_training_images_are_repeated(toy: Make, official: dict[str, Samples]) -> None:
    module = toy(parts=official, batch_size=len(official["train"]), repeat=3, augment=[ShiftCrop(2)])
    module.setup("fit")
    batches = list(module.train_dataloader())
    assert len(batches) == 3
    labels = torch.cat([labels for _, labels in batches])
    assert labels.bincount().tolist() == (3 * official["train"].labels.bincount()).tolist()
    images = torch.cat([images for images, _ in batches])
    assert len({image.numpy().tobytes() for image in images}) > 2 * len(official["train"])  # each time another shift
    assert sum(len(labels) for _, labels in module.train_eval_dataloader()) == len(official["train"])
    assert sum(len(labels) for _, labels in module.val_dataloader()) == len(official["val"])


@pytest.mark.parametrize(("given", "times"), [({"samples_per_class": 4}, 7), ({"samples_per_class": 16}, 1), ({}, 1)])
def test_few_images_are_repeated_up_to_a_number_of_each_class(
    toy: Make, official: dict[str, Samples], given: dict[str, int], times: int
) -> None:
    del official["val"]
    module = toy(parts=official, batch_size=2, val_fraction=0, oversample_to=30, **given)
    module.setup("fit")
    labels = torch.cat([labels for _, labels in module.train_dataloader()])
    images = int(module.class_counts.sum())
    assert len(labels) == times * images // 2 * 2
    assert given or int(module.class_counts.max()) > 15


@pytest.mark.parametrize(
    ("changes", "stage", "message"),
    [
        ({}, None, None),
        ({"train": 147}, "fit", r"training set has 148 images of 3 classes .* but 147 images of 3 classes"),
        ({"classes": 4}, "test", r"test set has 19 images of 3 classes, but 19 images of 4 classes"),
        ({"test": 20}, "test", r"but 20 images of 3 classes were published"),
        ({"images_per_class": (41, 60)}, "fit", r"\(40 to 60 per class\), but .* \(41 to 60 per class\)"),
        ({"images_per_class": (40, 61)}, "fit", r"\(40 to 60 per class\), but .* \(40 to 61 per class\)"),
    ],
)
def test_published_statistics(
    toy: Make, samples: Make, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], stage: str, message: str | None
) -> None:
    parts = {"train": samples([50, 30, 40]), "val": samples([10, 10, 8], seed=1), "test": samples([9, 5, 5], seed=2)}
    statistics = Statistics(classes=3, train=148, test=19, images_per_class=(40, 60))._replace(**changes)
    module = toy(parts=parts)
    monkeypatch.setattr(type(module), "statistics", statistics)
    if message is None:
        module.setup()
        return
    with pytest.raises(UserError, match=message) as caught:
        module.setup(stage)
    assert "\n" not in str(caught.value)


def test_predict_dir(toy: Make, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.png", "sub/a.png"):
        Image.fromarray(np.full((9, 12, 3), 7, dtype=np.uint8)).save(tmp_path / name)
    module = toy(predict_dir=str(tmp_path), image_size=8)
    module.setup("predict")
    assert module.has_read == []
    assert module.predict_files == ["b.png", "sub/a.png"]
    images, labels, index = next(iter(module.predict_dataloader()))
    assert images.shape == (2, 3, 8, 8)
    assert labels.tolist() == [-1, -1]
    assert index.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size .* is 0"),
        ({"val_fraction": 1.0}, "val_fraction .* is 1.0"),
        ({"val_fraction": float("nan")}, "val_fraction .* is nan"),
        ({"samples_per_class": 0}, "samples_per_class .* is 0"),
        ({"seed": -1}, "seed .* is -1"),
        ({"repeat": 0}, "repeat .* is 0"),
        ({"oversample_to": 0}, "oversample_to .* is 0"),
        ({"repeat": 2, "oversample_to": 30}, "repeat and oversample_to .* choose one"),
        ({"samples_per_class_in_batch": 0}, "samples_per_class_in_batch .* is 0"),
        ({"samples_per_class_in_batch": 4, "balanced_sampling": True}, "choose one"),
        ({"in_channels": 0}, "in_channels .* is 0"),
        ({"in_channels": 4, "augment": [RandAugment()]}, "RandAugment changes colors: .* not 4"),
        ({"image_size": 0}, "image_size .* is 0"),
        ({"num_workers": -1}, "num_workers"),
        ({"mean": [0.5]}, "mean .*3 numbers"),
        ({"std": [0.5, 0.0, 0.5]}, "std .*3 positive numbers"),
        ({"mean": [0.5, float("nan"), 0.5]}, "mean"),
    ],
)
def test_arguments_out_of_range_are_named(toy: Make, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        toy(**arguments)


# In Lightning.


def test_fit_test_predict(toy: Make, classifier: Make, official: dict[str, Samples]) -> None:
    model, module, runner = classifier(), toy(parts=official, batch_size=16), trainer(num_sanity_val_steps=0)
    runner.fit(model, datamodule=module)
    assert len(model.seen) == 7
    assert model.validated == 36
    runner.test(model, datamodule=module, verbose=False)
    assert model.tested == 19
    index = runner.predict(model, datamodule=module)
    assert torch.cat(index).tolist() == list(range(19))  # type: ignore[arg-type]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_fit_without_validation(toy: Make, classifier: Make, parts: dict[str, Samples], num_workers: int) -> None:
    model, module = classifier(), toy(parts=parts, batch_size=16, val_fraction=0, num_workers=num_workers)
    trainer(max_epochs=2).fit(model, datamodule=module)
    assert len(model.seen) == 14
    assert model.validated == 0
    assert model.seen[0][2:] != model.seen[7][2:]


def test_overfit_batches(toy: Make, classifier: Make, parts: dict[str, Samples]) -> None:
    model = classifier()
    trainer(overfit_batches=2, max_epochs=2).fit(model, datamodule=toy(parts=parts, batch_size=16))
    assert len(model.seen) == 4
    assert [seen[2] for seen in model.seen[:2]] == [seen[2] for seen in model.seen[2:]]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("every", "stop_at", "ran"),
    [
        ({"every_n_train_steps": 3}, (1, 3), 9),  # written inside an epoch
        ({"every_n_train_steps": 7}, (1, 2), 7),  # written at an epoch's last step
        ({"every_n_epochs": 1}, (1, 2), 7),  # written after validation
        ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, (1, 2), 7),
    ],
)
def test_a_resumed_run_sees_what_the_whole_run_saw(
    toy: Make,
    classifier: Make,
    official: dict[str, Samples],
    tmp_path: Path,
    num_workers: int,
    every: dict[str, Any],
    stop_at: tuple[int, int],
    ran: int,
) -> None:
    def fit(model: Any, checkpoint: str | None = None) -> None:
        module = toy(parts=official, batch_size=16, num_workers=num_workers, augment=[HorizontalFlip(), ShiftCrop(2)])
        saver = ModelCheckpoint(dirpath=tmp_path, filename="only", enable_version_counter=False, **every)
        runner = trainer(max_epochs=3, enable_checkpointing=True, callbacks=[saver], num_sanity_val_steps=0)
        runner.fit(model, datamodule=module, ckpt_path=checkpoint, weights_only=True)

    whole, killed, resumed = classifier(), classifier(), classifier()
    fit(whole)
    (tmp_path / "only.ckpt").unlink()
    killed.stop_at = stop_at
    with pytest.raises(RuntimeError, match="killed"):
        fit(killed)
    fit(resumed, str(tmp_path / "only.ckpt"))
    assert len(whole.seen) == 21
    assert resumed.seen == whole.seen[ran:]
