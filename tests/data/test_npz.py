from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from metricloss_pl.augment import Cutout, HorizontalFlip
from metricloss_pl.data.npz import NpzDataModule
from metricloss_pl.data.preparation import prepare_batches
from metricloss_pl.errors import UserError


def arrays(shape: tuple[int, ...] = (6, 5), train: int = 20, val: int = 8, test: int = 12) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    result = {}
    for part, count in (("train", train), ("val", val), ("test", test)):
        if count:
            result[f"{part}_images"] = generator.integers(0, 256, (count, *shape), dtype=np.uint8)
            result[f"{part}_labels"] = np.arange(count)[:, None] % 4
    return result


def save(folder: Path, contents: dict[str, np.ndarray], compressed: bool = False) -> str:
    (np.savez_compressed if compressed else np.savez)(folder / "set.npz", **contents)
    return str(folder / "set.npz")


def refused(path: str, **arguments) -> str:
    """The one line with which the file is refused."""
    with pytest.raises(UserError) as caught:
        NpzDataModule(path=path, **arguments).setup()
    assert "\n" not in str(caught.value)
    assert path in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("shape", "channels"), [((6, 5), 1), ((6, 5, 1), 1), ((6, 5, 3), 3), ((6, 5, 4), 4)])
@pytest.mark.parametrize("compressed", [True, False])
def test_parts(tmp_path, shape, channels, compressed):
    contents = arrays(shape)
    data = NpzDataModule(path=save(tmp_path, contents, compressed))
    assert data.in_channels == channels
    assert data.image_format["in_channels"] == channels
    assert data.class_names == ["0", "1", "2", "3"]
    for part in ("train", "val", "test"):
        samples = data.read(part)
        source = contents[f"{part}_images"].reshape(-1, 6, 5, channels)
        assert samples.images.shape == (len(source), channels, 6, 5)
        assert samples.images.dtype == torch.uint8
        for channel in range(channels):
            assert (samples.images[:, channel].numpy() == source[..., channel]).all()
        assert samples.labels.tolist() == contents[f"{part}_labels"][:, 0].tolist()
        assert samples.names[2] == f"{part}[2]"
    data.setup()
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (8, channels, 6, 5)
    assert labels.dtype == torch.int64


def test_thirteen_channels(tmp_path):
    """From the file to batches, normalization and prediction."""
    path = save(tmp_path, arrays((6, 5, 13)))
    with pytest.raises(UserError, match="set in_channels to 13"):
        NpzDataModule(path=path)
    data = NpzDataModule(path=path, in_channels=13, image_size=4, resize=5, augment=[HorizontalFlip(), Cutout(2)])
    data.setup()
    assert next(iter(data.train_dataloader()))[0].shape == (20, 13, 4, 4)
    mean, std = data.normalization
    assert len(mean) == len(std) == 13
    images = arrays((6, 5, 13))["test_images"]
    [batch] = prepare_batches(images, in_channels=13, resize=5, image_size=4)
    assert torch.equal(batch, next(iter(data.test_dataloader()))[0])
    [batch] = prepare_batches(images.astype(np.uint16) * 257, in_channels=13, image_size=4)
    assert batch.shape == (12, 13, 4, 4)
    assert batch.dtype == torch.float32
    with pytest.raises(UserError, match=r"\(6, 5, 13\).* 3 channels"):
        next(prepare_batches(images, in_channels=3))
    for channels in (1, 3, 4):
        with pytest.raises(UserError, match=f"13 channels, and in_channels is {channels}"):
            NpzDataModule(path=path, in_channels=channels).setup("fit")


def test_gray_images_as_color(tmp_path):
    data = NpzDataModule(path=save(tmp_path, arrays()), in_channels=3)
    data.setup("fit")
    assert data.in_channels == 3
    assert next(iter(data.val_dataloader()))[0].shape == (8, 3, 6, 5)


def test_labels_in_one_dimension(tmp_path):
    contents = arrays(val=0)
    contents["train_labels"] = contents["train_labels"][:, 0].astype(np.uint8)
    assert NpzDataModule(path=save(tmp_path, contents)).read("train").labels.tolist() == list(range(4)) * 5


@pytest.mark.parametrize("key", ["classes", "class_names"])
@pytest.mark.parametrize("kind", ["U", "S"])
def test_class_names(tmp_path, key, kind):
    names = ["ant", "bee", "cat", "dog"]
    data = NpzDataModule(path=save(tmp_path, {**arrays(), key: np.array(names, dtype=kind)}))
    assert data.class_names == names


def test_missing_test_part_is_cut_stratified_and_alike_for_every_seed(tmp_path):
    contents = arrays(test=0)
    path = save(tmp_path, contents)
    first, second = (NpzDataModule(path=path, seed=seed, test_fraction=0.2) for seed in (0, 3))
    train, test, val = (first.read(part) for part in ("train", "test", "val"))
    assert test.labels.bincount().tolist() == [1, 1, 1, 1]
    assert sorted(train.names + test.names) == sorted(f"train[{i}]" for i in range(20))
    assert second.read("test").names == test.names
    assert len(val.labels) == 8
    number = int(test.names[0][6:-1])
    assert (test.images[0, 0].numpy() == contents["train_images"][number]).all()


def test_16_bit_images(tmp_path):
    contents = arrays(val=0, test=0)
    contents["train_images"] = contents["train_images"].astype(np.uint16) * 257
    images = NpzDataModule(path=save(tmp_path, contents)).list_split("train").images
    assert images.dtype == torch.float32
    expected = (contents["train_images"] / 65535).astype(np.float32)
    assert np.allclose(images[:, 0].numpy(), expected, rtol=1e-6, atol=0)
    assert images.max() <= 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_images(tmp_path, dtype):
    contents = arrays(val=0, test=0)
    contents["train_images"] = (contents["train_images"] / 255).astype(dtype)
    images = NpzDataModule(path=save(tmp_path, contents)).list_split("train").images
    assert images.dtype == torch.float32
    assert (images[:, 0].numpy() == contents["train_images"].astype(np.float32)).all()


@pytest.mark.parametrize("kind", [">u2", "<u2", ">f4", ">f2", "f8"])
def test_the_order_of_the_bytes_does_not_matter(tmp_path, kind):
    """The byte orders of images and labels differ, and differ between sets."""
    contents = arrays()
    levels = contents["train_images"].astype(kind) * np.array(257 if "u" in kind else 1 / 255, kind)
    contents["train_images"], contents["train_labels"] = levels, contents["train_labels"].astype(">i2")
    for part in ("val", "test"):
        contents[f"{part}_images"] = contents[f"{part}_images"].astype(np.dtype(kind).newbyteorder("=")) // 256
    images, labels, *_ = vars(NpzDataModule(path=save(tmp_path, contents)).read("train")).values()
    want = levels.astype(np.float32) / (65535 if "u" in kind else 1)
    assert (images[:, 0].numpy() == want).all()
    assert labels.tolist() == list(range(4)) * 5


def test_boolean_labels(tmp_path):
    contents = {key: array % 2 == 1 if "labels" in key else array for key, array in arrays().items()}
    data = NpzDataModule(path=save(tmp_path, contents))
    assert data.class_names == ["0", "1"]
    assert data.read("train").labels.tolist() == [0, 1] * 10


@pytest.mark.parametrize("value", [float("nan"), 1.5, -0.5])
def test_float_images_out_of_range_are_named(tmp_path, value):
    contents = {key: array / 255 if "images" in key else array for key, array in arrays().items()}
    contents["train_images"][7, 2, 2] = value
    with pytest.raises(UserError, match=r"train\[7\]"):
        NpzDataModule(path=save(tmp_path, contents)).setup("fit")


def changed(**changes) -> dict[str, np.ndarray]:
    """The arrays with some replaced by what a function makes of them, or (None) removed."""
    contents = arrays()
    for key, change in changes.items():
        contents[key] = change(contents.get(key)) if change else None
    return {key: array for key, array in contents.items() if array is not None}


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (changed(train_images=None), ["no array 'train_images'", "train_labels"]),
        (changed(train_labels=None), ["no array 'train_labels'"]),
        (changed(val_labels=None), ["no array 'val_labels'"]),
        (changed(test_images=None), ["no array 'test_images'"]),
        (changed(train_images=lambda x: x[0]), ["train_images", "(6, 5)"]),
        (
            changed(
                train_images=lambda x: np.zeros((20, 3, 6, 5), np.uint8),
                val_images=None,
                val_labels=None,
                test_images=None,
                test_labels=None,
            ),
            ["(20, 3, 6, 5)", "last axis"],
        ),
        (changed(test_images=lambda x: np.zeros((12, 6, 5, 6, 3), np.uint8)), ["test_images", "(12, 6, 5, 6, 3)"]),
        (changed(train_images=lambda x: x[:, :0]), ["train_images", "(20, 0, 5)"]),
        (changed(train_images=lambda x: x.astype(np.int64)), ["train_images", "int64", "uint8"]),
        (changed(val_images=lambda x: x[:, :, :4]), ["val_images", "(8, 6, 4)", "(20, 6, 5)"]),
        (changed(val_images=lambda x: x / 255), ["val_images", "float64", "uint8"]),
        (changed(train_labels=lambda x: x[:-1]), ["(20, 6, 5)", "train_labels", "(19, 1)"]),
        (changed(val_labels=lambda x: np.eye(8, 4, dtype=int)), ["val_labels", "(8, 4)"]),
        (changed(train_labels=lambda x: x.astype(float)), ["train_labels", "float64", "integers"]),
        (changed(train_labels=lambda x: x.astype(object)), ["train_labels", "object"]),
        (changed(train_labels=lambda x: x - 1), ["train_labels[0]", "is -1"]),
        (changed(test_labels=lambda x: x + 1), ["test_labels[3]", "is 4", "4 classes", "0 to 3"]),
        (changed(train_labels=lambda x: x * 2), ["have 4 values", "(label 1)"]),
        (changed(train_labels=lambda x: x % 2 * 255), ["2 values", "(label 1)", "np.unique"]),
        (changed(train_labels=lambda x: x + 1), ["4 values", "(label 0)"]),
        (changed(classes=lambda _: np.array(list("abc"))), ["train_labels[3]", "is 3", "3 classes"]),
        (changed(classes=lambda _: np.array(list("abcde"))), ["no image of class 'e' (label 4)"]),
        (changed(classes=lambda _: np.array(list("abca"))), ["classes", "'a' twice"]),
        (changed(classes=lambda _: np.arange(4)), ["classes", "int64", "(4,)"]),
        (changed(class_names=lambda _: np.array([list("abcd")])), ["class_names", "(1, 4)"]),
        (changed(class_names=lambda _: np.array(list("abcd"), object)), ["class_names", "object"]),
        (changed(val_images=lambda x: x[:0], val_labels=lambda x: x[:0]), ["val_labels", "is empty"]),
    ],
)
def test_wrong_array_is_named(tmp_path, contents, words):
    message = refused(save(tmp_path, contents))
    for word in words:
        assert word in message


def test_missing_file(tmp_path):
    assert "no file" in refused(str(tmp_path / "none.npz"))


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x93NUMPY"])
def test_file_that_is_no_npz(tmp_path, content):
    (tmp_path / "set.npz").write_bytes(content)
    assert "cannot be read as an .npz file" in refused(str(tmp_path / "set.npz"))


def test_truncated_file(tmp_path):
    path = Path(save(tmp_path, arrays()))
    path.write_bytes(path.read_bytes()[:-200])
    assert "cannot be read" in refused(str(path))


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_file(tmp_path, compressed):
    path = Path(save(tmp_path, arrays((40, 40)), compressed))
    content = bytearray(path.read_bytes())
    content[5000:5100] = bytes(100)  # inside train_images, the first array
    path.write_bytes(content)
    assert "train_images" in refused(str(path))


def test_pickled_objects_are_not_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path(tmp_path / "sprung").touch, ())

    refused(save(tmp_path, {**arrays(), "classes": np.array([Trap()] * 4, dtype=object)}))
    assert not (tmp_path / "sprung").exists()
