from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torchvision import datasets

from metricloss_pl.data.torchvision_sets import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    FashionMNISTDataModule,
    MNISTDataModule,
)
from metricloss_pl.errors import UserError
from tests.helpers import md5

GREY = {"MNIST": MNISTDataModule, "FashionMNIST": FashionMNISTDataModule}


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


def grey_files(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    arrays = {}
    for part, count in (("train", 40), ("t10k", 20)):
        arrays[f"{part}-images-idx3-ubyte"] = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8) % 10
    return arrays


def write_grey(root: Path, name: str) -> dict[str, np.ndarray]:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for file, array in grey_files().items():
        (raw / file).write_bytes(idx(array))
    return grey_files()


@pytest.fixture
def grey_web(tmp_path, monkeypatch) -> Path:
    """A folder that stands for the web, with the packed files of MNIST."""
    web = tmp_path / "web"
    web.mkdir()
    resources = []
    for file, array in grey_files().items():
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
    """Creates the archive of a miniature, with ten images a file, and gives torchvision its URL and checksums."""
    dataset = module.dataset
    source = tmp_path / "source" / module.folder
    source.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in module.files[:-1]:
        batch = {"data": generator.integers(0, 256, (10, 3072), dtype=np.uint8), labels: list(range(10))}
        (source / name).write_bytes(pickle.dumps(batch))
    (source / module.files[-1]).write_bytes(pickle.dumps({dataset.meta["key"]: list(module.classes)}))
    archive = tmp_path / dataset.filename
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(source, arcname=source.name)
    monkeypatch.setattr(dataset, "url", archive.as_uri())
    monkeypatch.setattr(dataset, "tgz_md5", md5(archive))
    for name in ("train_list", "test_list"):
        files = [file for file, _ in getattr(dataset, name)]
        monkeypatch.setattr(dataset, name, [[file, md5(source / file)] for file in files])
    monkeypatch.setitem(dataset.meta, "md5", md5(source / module.files[-1]))
    return archive


def refusal(action, *args) -> str:
    """The one line with which the call is refused."""
    with pytest.raises(UserError) as caught:
        action(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", GREY)
def test_unpacked_grey_files_are_read_without_download(tmp_path, name, monkeypatch):
    arrays = write_grey(tmp_path, name)
    monkeypatch.setattr(GREY[name].dataset, "download", None)  # calling it would fail
    data = GREY[name](root=str(tmp_path))
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


def test_batches_of_grey_images(tmp_path):
    write_grey(tmp_path, "MNIST")
    data = MNISTDataModule(root=str(tmp_path), batch_size=8, val_fraction=0.25)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (8, 1, 28, 28)
    assert labels.shape == (8,)
    assert data.class_counts.tolist() == [3] * 10


@pytest.mark.parametrize("name", GREY)
def test_missing_grey_files_without_download(tmp_path, name):
    data = GREY[name](root=str(tmp_path / "none"), download=False)
    data.prepare_data()
    message = refusal(data.setup, "fit")
    assert str(tmp_path / "none" / name / "raw") in message
    assert "train-images-idx3-ubyte" in message
    assert "`download`" in message
    assert not (tmp_path / "none").exists()


def test_grey_download(tmp_path, grey_web):
    data = MNISTDataModule(root=str(tmp_path / "data"))
    data.prepare_data()
    data.setup("fit")
    assert len(data.read("train").labels) == 40


def test_failed_grey_download(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{(tmp_path / 'web').as_uri()}/", "file:///none/"])
    message = refusal(MNISTDataModule(root=str(tmp_path / "data")).prepare_data)
    assert "downloading failed" in message
    assert str(tmp_path / "data" / "MNIST" / "raw") in message


@pytest.mark.parametrize("length", [0, 3, 10, 100])
def test_torn_grey_file_is_downloaded_again(tmp_path, grey_web, length):
    arrays = write_grey(tmp_path, "MNIST")
    torn = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    torn.write_bytes(torn.read_bytes()[:length])
    data = MNISTDataModule(root=str(tmp_path))
    data.prepare_data()
    assert (data.read("train").images[:, 0].numpy() == arrays["train-images-idx3-ubyte"]).all()


def test_torn_grey_file_without_download(tmp_path):
    write_grey(tmp_path, "MNIST")
    torn = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    torn.write_bytes(torn.read_bytes()[:100])
    data = MNISTDataModule(root=str(tmp_path), download=False)
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
    packed = pickle.loads((tmp_path / "data" / "cifar-10-batches-py" / "data_batch_2").read_bytes())
    assert (train.images[10].flatten().numpy() == packed["data"][0]).all()
    data.setup()
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 32, 32)


def test_torn_cifar10_file_is_unpacked_again(tmp_path, cifar_web):
    data = CIFAR10DataModule(root=str(tmp_path / "data"))
    data.prepare_data()
    cifar_web.unlink()  # the archive in the data folder is enough
    torn = tmp_path / "data" / "cifar-10-batches-py" / "data_batch_5"
    torn.write_bytes(torn.read_bytes()[:1000])
    offline = CIFAR10DataModule(root=str(tmp_path / "data"), download=False)
    assert "cannot be read" in refusal(offline.read, "test")
    data.prepare_data()
    assert len(data.read("train").labels) == 50


def test_missing_cifar10_without_download(tmp_path):
    message = refusal(CIFAR10DataModule(root=str(tmp_path), download=False).setup, "test")
    assert str(tmp_path / "cifar-10-batches-py") in message
    assert "data_batch_1" in message


def test_cifar10_archive_with_wrong_checksum(tmp_path, cifar_web, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
    message = refusal(CIFAR10DataModule(root=str(tmp_path / "data")).prepare_data)
    assert "downloading failed" in message
    assert not (tmp_path / "data" / "cifar-10-batches-py").exists()


def test_cifar100_from_the_archive_to_fit_and_test(tmp_path, monkeypatch, miniatures, classifier):
    archive = publish_cifar(tmp_path, monkeypatch, CIFAR100DataModule, "fine_labels")
    monkeypatch.setattr(CIFAR100DataModule, "classes", CIFAR100DataModule.classes[:10])
    data = CIFAR100DataModule(root=str(tmp_path / "data"), batch_size=5, val_fraction=0)
    data.prepare_data()
    archive.unlink()
    assert data.read("train").labels.tolist() == list(range(10))
    packed = pickle.loads((tmp_path / "data" / "cifar-100-python" / "test").read_bytes())
    assert (data.read("test").images[3].flatten().numpy() == packed["data"][3]).all()
    model = classifier(num_features=3072, num_classes=10)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    assert (len(model.seen), model.tested) == (2, 10)


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


def test_cifar100_archive_with_wrong_checksum(tmp_path, monkeypatch):
    publish_cifar(tmp_path, monkeypatch, CIFAR100DataModule, "fine_labels")
    monkeypatch.setattr(datasets.CIFAR100, "tgz_md5", "0" * 32)
    assert "downloading failed" in refusal(CIFAR100DataModule(root=str(tmp_path / "data")).prepare_data)
    assert not (tmp_path / "data" / "cifar-100-python").exists()
