"""A checkpoint alone predicts."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn

import metricloss_pl
from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.cli import main
from metricloss_pl.data import DigitsDataModule
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import CosineClassifier, SoftmaxClassifier
from tests.helpers import make_folder

ROOT = Path(__file__).parent.parent
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.callbacks=null"]


class MySoftmax(SoftmaxClassifier):
    """A regime of a user's own."""


class MyNet(nn.Module):
    """A backbone of a user's own."""

    num_features = 3

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(images).mean((2, 3))


def fit(folder: Path, *model: str) -> Path:
    """Train for one epoch on photographs of several sizes, and return the checkpoint."""
    root = make_folder(folder / "images", images=6, size=20)
    Image.new("RGB", (31, 23), "red").save(root / "cat" / "0.png")
    config = f"--config={ROOT / 'configs' / 'folder_cosine.yaml'}"
    data = [f"--data.root={root}", "--data.image_size=12", "--data.resize=14", "--data.batch_size=4"]
    run = ["--trainer.max_epochs=1", f"--runs_dir={folder}", "--test_after_fit=false"]
    main(["fit", config, *(model or ["--model.backbone=TinyConvNet"]), *data, *run, *QUIET])
    (checkpoint,) = folder.glob("*/version_0/checkpoints/best.ckpt")
    return checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of several kinds, sizes and depths."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    color = random.integers(0, 256, (25, 19, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(color[..., :3]).save(folder / "a.jpg", exif=turned)
    Image.fromarray(color).save(folder / "b.png")
    Image.fromarray(color[..., 0]).save(folder / "c.png")
    Image.fromarray(color[:9, :11, :3]).save(folder / "d.png")  # smaller than the crop
    Image.fromarray(random.integers(0, 65536, (16, 22), dtype=np.uint16)).save(folder / "e.png")
    return sorted(folder.iterdir())


def test_predictions_are_those_of_the_command_line(checkpoint: Path, photos: list[Path]) -> None:
    main(["predict", f"--ckpt_path={checkpoint}", f"--data.predict_dir={photos[0].parent}", *QUIET[:2]])
    with (checkpoint.parent.parent / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    model = metricloss_pl.load(checkpoint)
    for batch_size in (1, 2, 64):
        classes, probabilities = model.predict(photos, batch_size=batch_size)
        assert classes == [row["class"] for row in rows]
        largest = torch.tensor([float(row["probability"]) for row in rows])
        torch.testing.assert_close(probabilities.max(1).values, largest, atol=2e-6, rtol=0)


def test_images_and_arrays_are_read_as_their_files(checkpoint: Path, photos: list[Path]) -> None:
    model = metricloss_pl.load(checkpoint)
    want = model.predict(photos).probabilities
    same: list[list[object]] = [[str(path) for path in photos], [Image.open(path) for path in photos]]
    read = [np.asarray(Image.open(path)) for path in photos[2:]]
    read[2] = read[2].astype(np.uint16)  # of 16 bits: int32 by older versions of Pillow
    arrays: list[object] = [*photos[:2], *read]
    tensors = [torch.tensor(np.atleast_3d(array)).permute(2, 0, 1) for array in arrays[2:]]  # type: ignore[arg-type]
    same += [arrays, [*photos[:2], *tensors]]
    deep = read[2]
    same += [[*photos[:4], deep.astype(">u2")], [*photos[:4], deep / 65535], [*photos[:4], deep[..., None]]]
    for images in same:
        torch.testing.assert_close(model.predict(images).probabilities, want, atol=1e-6, rtol=1e-5)  # type: ignore[arg-type]
    for path, row in zip(photos, want, strict=True):
        alone = model.predict(path)
        torch.testing.assert_close(alone.probabilities[0], row, atol=1e-6, rtol=1e-5)
        assert alone.classes == [model.class_names[int(row.argmax())]]
    stacked = np.stack([np.asarray(Image.open(photos[3]))] * 3)
    assert model.predict(stacked).probabilities.shape == (3, 2)
    assert model.predict([]).classes == []


def test_what_is_no_image_is_named(checkpoint: Path, photos: list[Path], tmp_path: Path) -> None:
    model = metricloss_pl.load(checkpoint)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2 files cannot be read as images: .*bad\.png .*missing\.png"):
        model.predict([photos[0], tmp_path / "bad.png", tmp_path / "missing.png"])
    for image, words in (
        (np.zeros((2, 5, 5)), r"images\[1\] has the shape \(2, 5, 5\)"),
        (np.zeros((5, 5), np.int64), r"images\[1\] is int64: uint8, uint16 or floats"),
        (np.full((5, 5), 255.0), r"images\[1\] cannot be read as an image \(values from 255 to 255"),
        (None, r"images\[1\] is NoneType"),
    ):
        with pytest.raises(UserError, match=words):
            model.predict([photos[0], image])  # type: ignore[list-item]
    with pytest.raises(UserError, match="batch_size is 0"):
        model.predict(photos, batch_size=0)


def test_predicting_leaves_a_training_as_it_was(checkpoint: Path, photos: list[Path]) -> None:
    model = metricloss_pl.load(checkpoint).train()
    model.backbone.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.predict(photos)
    assert model.training
    assert not any(module.training for module in model.backbone.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def own_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = MySoftmax.__module__
    folder = tmp_path_factory.mktemp("own")
    return fit(folder, f"--model={module}.MySoftmax", f"--model.backbone={module}.MyNet")


def test_classes_of_ones_own(own_checkpoint: Path, tmp_path: Path, photos: list[Path]) -> None:
    """Also if they have moved, such as from `__main__`. Of two classes of the same name none replaces another."""
    content = torch.load(own_checkpoint, weights_only=True)
    content["hyper_parameters"]["_class_path"] = "their_old_module.MySoftmax"
    content["hyper_parameters"]["backbone"]["class_path"] = "their_old_module.MyNet"
    torch.save(content, tmp_path / "moved.ckpt")
    other = type("MySoftmax", (MySoftmax,), {"__module__": "their_other_module"})
    for checkpoint, classes in (
        (own_checkpoint, [MyNet]),
        (own_checkpoint, [MySoftmax, MyNet]),
        (tmp_path / "moved.ckpt", [MySoftmax, MyNet]),
    ):
        model = metricloss_pl.load(checkpoint, classes=classes)
        assert type(model) is MySoftmax
        assert type(model.backbone) is MyNet
        assert len(model.predict(photos).classes) == len(photos)
    for checkpoint, classes, named in (
        (own_checkpoint, [], f"{MySoftmax.__module__}.MyNet"),
        (tmp_path / "moved.ckpt", [MySoftmax], "their_old_module"),
        (tmp_path / "moved.ckpt", [MySoftmax, MyNet, other], "their_old_module"),
    ):
        with pytest.raises(UserError, match=re.escape(named)) as caught:
            metricloss_pl.load(checkpoint, classes=classes)
        assert "\n" not in str(caught.value)


def test_other_files_are_refused_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["_class_path"] = "my_project.Mine"
    torch.save(content, tmp_path / "mine.ckpt")
    content["hyper_parameters"]["_class_path"] = "torch.nn.Linear"
    torch.save(content, tmp_path / "no_regime.ckpt")
    for name, words in (
        ("missing.ckpt", "no such file"),
        ("other.ckpt", "holds no regime"),
        ("mine.ckpt", r"my_project\.Mine.*classes=\[Mine\]"),
        ("no_regime.ckpt", r"torch\.nn\.Linear"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            metricloss_pl.load(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_from_python_says_what_to_do(tmp_path: Path) -> None:
    data = DigitsDataModule(samples_per_class=10)
    model = CosineClassifier(data.num_classes, TinyConvNet(in_channels=1), data.class_names)
    trainer = Trainer(fast_dev_run=1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"load_from_checkpoint\(path, backbone=\.\.\.\)"):
        metricloss_pl.load(tmp_path / "a.ckpt")
    loaded = CosineClassifier.load_from_checkpoint(
        tmp_path / "a.ckpt", backbone=TinyConvNet(in_channels=1), weights_only=True
    )
    assert loaded.predict(np.zeros((8, 8), np.uint8)).probabilities.shape == (1, 10)
    with pytest.raises(UserError, match="does not know how its images were prepared"):
        CosineClassifier(2, TinyConvNet()).predict([])


def test_initial_weights_that_a_checkpoint_names_are_not_fetched(checkpoint, tmp_path):
    """They are those of the checkpoint; a foreign one could name any file or address."""
    content = torch.load(checkpoint, weights_only=True)
    backbone = content["hyper_parameters"]["backbone"]
    backbone["init_args"] = {**backbone.get("init_args", {}), "weights": "/no/such/file.pth"}
    torch.save(content, tmp_path / "a.ckpt")
    assert metricloss_pl.load(tmp_path / "a.ckpt").class_names == content["class_names"]


@pytest.mark.parametrize(
    "changed",
    [
        {"state_dict": {"a": 1}},
        {"temperature": 1e-320},
        {"image_format": {"in_channels": "3"}},
        {"image_format": [0]},
    ],
    ids=str,
)
def test_contents_that_no_training_writes(changed, checkpoint, tmp_path):
    torch.save(torch.load(checkpoint, weights_only=True) | changed, tmp_path / "a.ckpt")
    with pytest.raises(UserError):
        metricloss_pl.load(tmp_path / "a.ckpt")
