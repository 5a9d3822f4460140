from __future__ import annotations

import gzip
import hashlib
import pickle
import shutil
import struct
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from metricloss_pl.data.torchvision_sets import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    FashionMNISTDataModule,
    MNISTDataModule,
)
from metricloss_pl.errors import UserError
from tests.helpers import md5

CIFAR10 = "cifar-10-batches-py"
GRAY = {"MNIST": MNISTDataModule, "FashionMNIST": FashionMNISTDataModule}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Lets torchvision fetch file:// URLs, and those alone."""

    fetch = urllib.request.urlopen

    def fetch_file(request: urllib.request.Request) -> Any:
        if request.type != "file":
            raise RuntimeError(f"{request.full_url} wanted")
        response = fetch(request)
        response.length = int(response.headers["Content-Length"])  # as one of HTTP has
        return response

    monkeypatch.setattr(urllib.request, "urlopen", fetch_file)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def gray_files(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", 40), ("t10k", 20)):
        arrays[f"{part}-images-idx3-ubyte"] = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8) % 10
    return arrays


def write_gray(root: Path, name: str) -> dict[str, np.ndarray]:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for file, array in gray_files().items():
        (raw / file).write_bytes(idx(array))
    return gray_files()


@pytest.fixture
def gray_web(tmp_path, monkeypatch) -> Path:
    """A folder that stands for the web, with the packed files of MNIST."""
    web = tmp_path / "web"
    web.mkdir()
    resources = []
    for file, array in gray_files().items():
        packed = gzip.compress(idx(array))
        (web / f"{file}.gz").write_bytes(packed)
        resources.append((f"{file}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [web.as_uri() + "/"])
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    return web


@pytest.fixture
def cifar_web(tmp_path, monkeypatch) -> Path:
    """A folder that stands for the web, with the archive of a miniature CIFAR-10; returns the archive."""
    return publish_cifar(tmp_path, monkeypatch, CIFAR10DataModule, "labels")


def publish_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: type, labels: str) -> Path:
    """Creates the archive of a miniature, with ten images per file, and gives torchvision its URL and checksums."""
    dataset = module.dataset
    lists = [*dataset.train_list, *dataset.test_list, [dataset.meta["filename"], ""]]
    files = [name for name, _ in lists]
    source = tmp_path / "source" / module.folder
    source.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in files[:-1]:
        batch = {"data": generator.integers(0, 256, (10, 3072), dtype=np.uint8), labels: list(range(10))}
        (source / name).write_bytes(pickle.dumps(batch))
    (source / files[-1]).write_bytes(pickle.dumps({dataset.meta["key"]: list(module.classes)}))
    archive = tmp_path / dataset.filename
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(source, arcname=source.name)
    monkeypatch.setattr(dataset, "url", archive.as_uri())
    monkeypatch.setattr(dataset, "tgz_md5", md5(archive))
    for name in ("train_list", "test_list"):
        of_list = [[file, md5(source / file)] for file, _ in getattr(dataset, name)]
        monkeypatch.setattr(dataset, name, of_list)
    monkeypatch.setitem(dataset.meta, "md5", md5(source / files[-1]))
    return archive


def refusal(action, *args) -> str:
    """The one line with which the call is refused."""
    with pytest.raises(UserError) as caught:
        action(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", GRAY)
def test_unpacked_gray_files_are_read_without_download(tmp_path, name, monkeypatch):
    arrays = write_gray(tmp_path, name)
    monkeypatch.setattr(GRAY[name].dataset, "download", None)  # calling it would fail
    data = GRAY[name](root=str(tmp_path))
    assert data.class_names == list(data.classes)
    assert (data.num_classes, data.in_channels) == (10, 1)
    data.prepare_data()
    for part, prefix in (("train", "train"), ("test", "t10k")):
        samples = data.read(part)
        assert samples.images.dtype == torch.uint8
        assert (samples.images[:, 0].numpy() == arrays[f"{prefix}-images-idx3-ubyte"]).all()
        assert (samples.labels.numpy() == arrays[f"{prefix}-labels-idx1-ubyte"]).all()
        assert samples.labels.dtype == torch.int64
        assert samples.names[3] == f"{part}[3]"
    assert data.read("val") is None
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_class_names_are_those_of_torchvision():
    assert list(FashionMNISTDataModule.classes) == datasets.FashionMNIST.classes
    assert [name[0] for name in datasets.MNIST.classes] == list(MNISTDataModule.classes)


def test_batches_of_gray_images(tmp_path):
    write_gray(tmp_path, "MNIST")
    data = MNISTDataModule(root=str(tmp_path), batch_size=8, val_fraction=0.25)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (8, 1, 28, 28)
    assert labels.shape == (8,)
    assert data.class_counts.tolist() == [3] * 10


@pytest.mark.parametrize(("module", "folder"), [(MNISTDataModule, "MNIST/raw"), (CIFAR10DataModule, CIFAR10)])
def test_a_missing_set_without_download(tmp_path, module, folder):
    data = module(root=str(tmp_path / "none"), download=False)
    data.prepare_data()
    message = refusal(data.setup, "fit")
    assert str(tmp_path / "none" / folder) in message
    assert "`download`" in message
    assert not (tmp_path / "none").exists()


def test_gray_download(tmp_path, gray_web):
    data = MNISTDataModule(root=str(tmp_path / "data"))
    data.prepare_data()
    data.setup("fit")
    assert len(data.read("train").labels) == 40
    assert not list(tmp_path.rglob("*.partial"))


def test_a_failed_or_interrupted_download_leaves_nothing(tmp_path, gray_web, monkeypatch):
    data = MNISTDataModule(root=str(tmp_path / "data"))

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datasets.MNIST, "mirrors", ["file:///none/"])
        assert f"{tmp_path / 'data' / 'MNIST' / 'raw'}: downloading MNIST failed" in refusal(data.prepare_data)
    with monkeypatch.context() as patch:
        patch.setattr(datasets.MNIST, "_load_data", stop)  # all is downloaded, and not yet moved
        with pytest.raises(KeyboardInterrupt):
            data.prepare_data()
    assert not list(tmp_path.glob("data/MNIST/raw*"))
    data.prepare_data()
    assert len(data.read("test").labels) == 20


def test_a_torn_gray_file_is_named(tmp_path):
    write_gray(tmp_path, "MNIST")
    torn = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    for length in (100, 10, 0):
        torn.write_bytes(torn.read_bytes()[:length])
        data = MNISTDataModule(root=str(tmp_path))
        data.prepare_data()
        assert f"{tmp_path / 'MNIST' / 'raw'} cannot be read" in refusal(data.setup, "fit")
    assert torn.exists()


def test_cifar10_download(tmp_path, cifar_web):
    data = CIFAR10DataModule(root=str(tmp_path / "data"), batch_size=4, val_fraction=0.2)
    assert data.class_names[:2] == ["airplane", "automobile"]
    assert (data.num_classes, data.in_channels) == (10, 3)
    data.prepare_data()
    train, test = data.read("train"), data.read("test")
    assert train.images.shape == (50, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    assert test.images.shape == (10, 3, 32, 32)
    assert train.labels.tolist() == list(range(10)) * 5
    assert train.names[-1] == "train[49]"
    assert data.read("val") is None
    packed = pickle.loads((tmp_path / "data" / CIFAR10 / "data_batch_2").read_bytes())
    assert (train.images[10].flatten().numpy() == packed["data"][0]).all()
    data.setup()
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 32, 32)


def test_a_torn_cifar10_file_is_named_and_unpacked_again(tmp_path, cifar_web):
    data = CIFAR10DataModule(root=str(tmp_path / "data"))
    data.prepare_data()
    cifar_web.unlink()  # the archive in the data folder is enough
    torn = tmp_path / "data" / CIFAR10 / "data_batch_5"
    torn.write_bytes(torn.read_bytes()[:1000])
    assert "cannot be read" in refusal(data.read, "test")
    shutil.rmtree(torn.parent)
    data.prepare_data()
    assert len(data.read("train").labels) == 50


@pytest.mark.parametrize(("module", "labels"), [(CIFAR10DataModule, "labels"), (CIFAR100DataModule, "fine_labels")])
def test_a_cifar_archive_with_a_wrong_checksum(tmp_path, monkeypatch, module, labels):
    publish_cifar(tmp_path, monkeypatch, module, labels)
    monkeypatch.setattr(module.dataset, "tgz_md5", "0" * 32)
    assert "0" * 32 in refusal(module(root=str(tmp_path / "data")).prepare_data)
    assert not (tmp_path / "data" / module.folder).exists()


def test_cifar100_reads_the_fine_labels(tmp_path, monkeypatch):
    publish_cifar(tmp_path, monkeypatch, CIFAR100DataModule, "fine_labels")
    monkeypatch.setattr(CIFAR100DataModule, "statistics", None)
    data = CIFAR100DataModule(root=str(tmp_path / "data"), batch_size=5, val_fraction=0)
    data.prepare_data()
    assert data.read("train").labels.tolist() == list(range(10))
    packed = pickle.loads((tmp_path / "data" / "cifar-100-python" / "test").read_bytes())
    assert (data.read("test").images[3].flatten().numpy() == packed["data"][3]).all()


def test_cifar100_as_published(tmp_path, monkeypatch):
    """Table 1 and the channel statistics of Barz and Denzler 2020; the names sorted, as in the set's own `meta`."""
    data = CIFAR100DataModule(root=str(tmp_path))
    assert data.num_classes == len(set(data.class_names)) == 100
    assert data.class_names == sorted(data.class_names)
    assert CIFAR100DataModule.statistics == (100, 50_000, 10_000, (500, 500))
    mean, std = data.normalization
    assert [round(value * 255, 5) for value in mean] == [129.30386, 124.06987, 112.43356]
    assert [round(value * 255, 5) for value in std] == [68.1702, 65.39176, 70.41801]
    publish_cifar(tmp_path, monkeypatch, CIFAR100DataModule, "fine_labels")
    data.prepare_data()
    message = refusal(data.setup, "test")
    assert "test set has 10 images of 100 classes, but 10,000 images of 100 classes were published" in message
