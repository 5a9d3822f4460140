"""Settings that are "auto" follow from the training set."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torch import Tensor

from metricloss_pl.augment import HorizontalFlip, Rotation90, ShiftCrop
from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.backbones.base import WeightsMetadata
from metricloss_pl.data import DigitsDataModule, ImageFolderDataModule
from metricloss_pl.data.reading import read_head
from metricloss_pl.data.samples import Samples
from metricloss_pl.data.training_settings import batch_size_for, repeat_for
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import SoftmaxClassifier
from tests.command_line import fit

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("images", "batch_size", "repeat"),
    [(1, 16, 12), (20, 16, 12), (200, 32, 12), (222, 32, 12), (500, 64, 8), (2000, 128, 4), (50_000, 128, 1)],
)
def test_rules(images: int, batch_size: int, repeat: int) -> None:
    assert (batch_size_for(images), repeat_for(images)) == (batch_size, repeat)


def _folder(root: Path, sizes: list[tuple[int, int]]) -> Path:
    generator = np.random.default_rng(0)
    for label in ("ant", "bee"):
        (root / label).mkdir(parents=True)
        for index, (width, height) in enumerate(sizes):
            pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{index}.png")
    return root


@pytest.mark.parametrize(
    ("sizes", "side", "enlarged"),
    [
        ([(40, 30)] * 10, 30, 0),
        ([(40, 60)] * 9 + [(20, 25)], 40, 1),
        ([(40, 60)] * 9 + [(100, 90)], 40, 0),
        ([(500, 300)] * 10, 128, 0),
    ],
)
def test_image_size_is_the_median_of_the_shorter_sides(tmp_path, recwarn, sizes, side, enlarged) -> None:
    root = _folder(tmp_path / "images", sizes)
    data = ImageFolderDataModule(root=str(root), image_size="auto", batch_size="auto", repeat="auto", val_fraction=0)
    assert data.image_format == {"in_channels": 3, "resize": side, "image_size": side}
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (16, 3, side, side)
    assert len(labels) == 16
    assert len(data.train_dataloader()) == data.batches_in_epoch()
    lines = [str(warning.message) for warning in recwarn if "enlarged" in str(warning.message)]
    assert len(lines) == (1 if enlarged else 0)
    if enlarged:
        in_training = sum(min(Image.open(path).size) < side for path in data.samples("train").files)
        assert f"{in_training} training image" in lines[0]
        assert f"{side} px" in lines[0]


@pytest.mark.parametrize(
    ("size", "fixed", "expected"), [(192, False, 192), (299, False, 224), (384, True, 384), (None, False, 30)]
)
def test_image_size_of_pretrained_weights(tmp_path, recwarn, size, fixed, expected) -> None:
    """It replaces the one of the images as soon as a Trainer has such a backbone; a line names the weights."""
    data = ImageFolderDataModule(root=str(_folder(tmp_path / "images", [(40, 30)] * 4)), image_size="auto")
    assert data.resolved_image_size == 30
    weights = SimpleNamespace(source="the weights", image_size=size, is_size_fixed=fixed)
    model = SimpleNamespace(backbone=SimpleNamespace(weights_metadata=weights))
    data.trainer = _trainer(model, TrainerFn.FITTING)
    assert data.resolved_image_size == data.image_format["resize"] == expected
    data.setup("fit")
    lines = [str(warning.message) for warning in recwarn if "enlarged" in str(warning.message)]
    assert [f"to {expected} px" in line and "the weights" in line for line in lines] == [True] * (size is not None)


@pytest.fixture
def parts(samples: Make) -> dict[str, Samples]:
    return {"train": samples([30, 40, 50])}


def _trainer(model: Any, function: TrainerFn) -> Any:
    state, device = SimpleNamespace(fn=function), SimpleNamespace(type="cpu")
    facts = {"world_size": 1, "global_rank": 0, "strategy": SimpleNamespace(root_device=device), "training": True}
    return SimpleNamespace(lightning_module=model, state=state, **facts)


def test_images_are_decoded_again_for_a_model_of_another_size(tmp_path: Path) -> None:
    """The second of two models trained on one data module gets what it gets on a new one."""

    def make() -> ImageFolderDataModule:
        return ImageFolderDataModule(root=str(tmp_path / "images"), image_size="auto", val_fraction=0.25, seed=1)

    def prepare(data: ImageFolderDataModule, size: int) -> tuple[Tensor, ...]:
        weights = WeightsMetadata("the weights", [0.5] * 3, [0.5] * 3, size)
        data.trainer = _trainer(SimpleNamespace(backbone=SimpleNamespace(weights_metadata=weights)), TrainerFn.FITTING)
        data.setup("fit")
        (images, _), mean_and_std = next(iter(data.val_dataloader())), torch.tensor(data.normalization)
        return data.training_sample(5), images, mean_and_std

    _folder(tmp_path / "images", [(40, 30)] * 8)
    shared, fresh = make(), make()
    first, second = prepare(shared, 16), prepare(shared, 48)
    assert (first[0].shape[-1], second[0].shape[-1]) == (16, 48)
    assert all(torch.equal(a, b) for a, b in zip(second, prepare(fresh, 48), strict=True))


def test_an_evaluated_model_gets_images_as_in_its_training(tmp_path: Path, monkeypatch) -> None:
    """From Python as on the command line; a new training follows the new images."""
    small, large = (_folder(tmp_path / name, [side] * 8) for name, side in (("small", (24, 20)), ("large", (60, 50))))
    data = ImageFolderDataModule(root=str(small), image_size="auto", val_fraction=0.25, batch_size=4)
    model = SoftmaxClassifier(2, TinyConvNet(3, width=2), data.class_names)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 1}
    options |= {"accelerator": "cpu", "devices": 1, "default_root_dir": tmp_path}
    trainer = Trainer(**options)
    trainer.fit(model, data)
    checkpoint = trainer.checkpoint_callback.best_model_path
    seen: list[tuple[int, ...]] = []

    class Seen(Callback):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *args: Any) -> None:
            seen.append(batch[0].shape[-2:])

    def other() -> ImageFolderDataModule:
        return ImageFolderDataModule(root=str(large), image_size="auto", val_fraction=0.25, batch_size=4)

    for trained, path in (
        (SoftmaxClassifier.load_from_checkpoint(checkpoint, backbone=TinyConvNet(3, width=2)), None),
        (SoftmaxClassifier(2, TinyConvNet(3, width=2), data.class_names), checkpoint),
    ):
        Trainer(**options, callbacks=[Seen()]).validate(trained, other(), ckpt_path=path, verbose=False)
    assert set(seen) == {(20, 20)}
    data, untrained = other(), SoftmaxClassifier(2, TinyConvNet(3, width=2), data.class_names)
    with monkeypatch.context() as patch:
        patch.setattr("metricloss_pl.data.training_settings.read_head", None)  # the training images are not looked at
        Trainer(**options).test(untrained, data, ckpt_path=checkpoint, verbose=False)
        assert next(iter(data.test_dataloader()))[0].shape[-2:] == (20, 20)
    new = other()
    Trainer(**{**options, "max_epochs": 0}).fit(model, new)
    assert new.resolved_image_size == 50


def test_a_resize_of_the_training_holds_in_evaluation_too(toy: Make, parts: dict[str, Samples]) -> None:
    data = toy(parts=parts, image_size="auto")
    trained = SimpleNamespace(image_format={"in_channels": 3, "resize": 12, "image_size": 10})
    data.trainer = _trainer(trained, TrainerFn.TESTING)
    assert data.image_format == trained.image_format


def test_only_the_images_in_use_count(tmp_path: Path) -> None:
    """Another split has another number of training images, and perhaps other sizes."""
    root = _folder(tmp_path / "images", [(24, 20)] * 100 + [(10, 8)] * 40)
    data = ImageFolderDataModule(root=str(root), val_fraction=0, image_size="auto", batch_size="auto", repeat="auto")
    before = len(data.divide()[0])
    assert (data.resolved_batch_size, data.resolved_repeat) == (batch_size_for(before), repeat_for(before))
    assert data.resolved_image_size == 20
    rows = [f"{label}/{index}.png,{label},train" for label in ("ant", "bee") for index in range(100, 140)]
    (tmp_path / "split.csv").write_text("\n".join(["file,label,split", *rows]))
    data.use_split(tmp_path / "split.csv")
    assert data.resolved_batch_size == batch_size_for(80) != batch_size_for(before)
    assert data.resolved_repeat == repeat_for(80)
    assert data.resolved_image_size == 8


def test_no_image_is_read_for_what_follows_from_their_number(toy: Make, monkeypatch, tmp_path: Path) -> None:
    def no_head(*args: Any) -> Any:
        raise AssertionError("an image's head was read")

    root = _folder(tmp_path / "images", [(24, 20)] * 4)
    data = ImageFolderDataModule(root=str(root), val_fraction=0, image_size="auto", batch_size="auto", repeat="auto")
    monkeypatch.setattr("metricloss_pl.data.training_settings.read_head", no_head)
    assert (data.resolved_batch_size, data.resolved_repeat) == (16, 12)
    assert data.batches_in_epoch() == len(data.divide()[0]) * 12 // 16
    with pytest.raises(AssertionError, match="head"):
        assert data.resolved_image_size


def test_heads_are_read_once(tmp_path: Path, monkeypatch) -> None:
    data = ImageFolderDataModule(root=str(_folder(tmp_path / "images", [(24, 20)] * 4)), image_size="auto")
    read: list[Path] = []

    def noted(path: Path, in_channels: int) -> Any:
        read.append(path)
        return read_head(path, in_channels)

    monkeypatch.setattr("metricloss_pl.data.training_settings.read_head", noted)
    for _ in range(2):
        assert data.resolved_image_size == 20
        data.setup("fit")
    assert len(read) == len(set(read)) == len(data.samples("train")) + len(data.samples("val"))


def test_oversampling_replaces_an_automatic_repeat(toy: Make, parts: dict[str, Samples]) -> None:
    data = toy(parts=parts, repeat="auto", oversample_to=100, batch_size=8, val_fraction=0)
    assert data.resolved_repeat == 2  # of at most 50 images per class
    data.setup("fit")
    assert len(data.train_dataloader()) == 2 * 120 // 8


def test_the_size_does_not_depend_on_the_validation_set(tmp_path: Path) -> None:
    root = _folder(tmp_path / "images", [(40, side) for side in range(10, 40)])
    fractions = [(0, 0), (0.3, 0), (0.3, 1), (0.6, 2)]
    sizes = set()
    for fraction, seed in fractions:
        data = ImageFolderDataModule(root=str(root), image_size="auto", val_fraction=fraction, seed=seed)
        sizes.add(data.resolved_image_size)
        data.setup("fit")
        sizes.add(data.resolved_image_size)
    assert len(sizes) == 1


@pytest.mark.parametrize(("resize", "lines"), [(None, 1), (30, 0)])
def test_enlarged_images_are_named_also_for_a_given_size(tmp_path: Path, recwarn, resize, lines) -> None:
    """A given `resize` enlarges them by the user's wish."""
    root = _folder(tmp_path / "images", [(24, 20)] * 4)
    ImageFolderDataModule(root=str(root), image_size=28, resize=resize).setup("fit")
    assert sum("enlarged to 28 px" in str(warning.message) for warning in recwarn) == lines


def test_arrays_know_their_size(toy: Make, parts: dict[str, Samples]) -> None:
    data = toy(parts=parts, image_size="auto")
    data.setup("fit")
    side = min(data.samples("train").images.shape[-2:])
    assert data.resolved_image_size == side


def test_an_evaluation_needs_no_training_set(toy: Make, samples: Make) -> None:
    data = toy(parts={"test": samples([30, 40, 50])}, batch_size="auto", repeat="auto", image_size=8)
    data.setup("test")
    assert sum(len(labels) for _, labels in data.test_dataloader()) == 120


def test_values_that_are_given_stay(toy: Make, parts: dict[str, Samples]) -> None:
    data = toy(parts=parts, batch_size=7, repeat=2, image_size="auto")
    assert (data.resolved_batch_size, data.resolved_repeat) == (7, 2)
    data.batch_size = 9  # as Lightning's batch size finder does
    assert data.resolved_batch_size == 9


@pytest.mark.parametrize("processes", [1, 2])
def test_the_batch_is_shared_out_to_the_processes(
    toy: Make, parts: dict[str, Samples], processes: int, monkeypatch
) -> None:
    data = toy(parts=parts, batch_size="auto")
    monkeypatch.setattr(data, "_processes", lambda: (processes, 0))
    images = len(data.divide()[0])
    assert data.resolved_batch_size * processes == batch_size_for(images)


@pytest.mark.parametrize(
    ("orientation", "kinds"),
    [(None, []), ("upright", [HorizontalFlip]), ("any", [HorizontalFlip, Rotation90])],
)
def test_orientation_adds_flips_before_the_augmentations(toy: Make, orientation, kinds) -> None:
    data = toy(orientation=orientation, augment=[ShiftCrop(1)])
    assert [type(augmentation) for augmentation in data.augmentations] == [*kinds, ShiftCrop]


def test_mistakes(toy: Make) -> None:
    with pytest.raises(UserError, match="orientation"):
        toy(orientation="sideways")
    with pytest.raises(UserError, match=r"batch_size.*0"):
        toy(batch_size=0)
    with pytest.raises(UserError, match="oversample_to"):
        toy(repeat=2, oversample_to=10)


def test_augmentation_by_orientation_reaches_the_loader() -> None:
    plain, turned = (DigitsDataModule(batch_size=64, orientation=orientation, seed=3) for orientation in (None, "any"))
    batches = []
    for data in (plain, turned):
        data.setup("fit")
        batches.append(next(iter(data.train_dataloader())))
    assert torch.equal(batches[0][1], batches[1][1])
    assert not torch.equal(batches[0][0], batches[1][0])
    for image, other in zip(batches[0][0], batches[1][0], strict=True):
        turns = [turn for k in range(4) for turn in (image.rot90(k, (1, 2)), image.flip(2).rot90(k, (1, 2)))]
        assert any(torch.equal(other, turn) for turn in turns)


def test_a_run_saves_the_values_in_use(tmp_path: Path) -> None:
    root = _folder(tmp_path / "images", [(24, 16)] * 12)
    settings = [f"--data.root={root}", "--data.image_size=auto", "--data.batch_size=auto", "--data.repeat=auto"]
    run = fit("folder_softmax", tmp_path / "runs", *settings, "--data.val_fraction=0.2")
    saved = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    assert (saved["image_size"], saved["batch_size"], saved["repeat"]) == (16, "auto", "auto")
