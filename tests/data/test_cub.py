from __future__ import annotations

import hashlib
import shutil
import tarfile
from pathlib import Path

import pytest

from metricloss_pl.data import cub
from metricloss_pl.data.cub import CUB200DataModule
from metricloss_pl.errors import UserError
from tests.helpers import make_cub


def refused(**arguments) -> str:
    """The one line with which the data set is refused."""
    with pytest.raises(UserError) as caught:
        CUB200DataModule(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def web(tmp_path, monkeypatch) -> Path:
    """The archive of a miniature, at the URL from which the data module downloads."""
    folder = make_cub(tmp_path / "source")
    (tmp_path / "source" / "attributes.txt").write_text("1 has_bill_shape::curved\n")
    archive = tmp_path / "web" / "CUB_200_2011.tgz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(tmp_path / "source" / "attributes.txt", arcname="attributes.txt")
        packed.add(folder, arcname="CUB_200_2011")
    shutil.rmtree(tmp_path / "source")
    monkeypatch.setattr(cub, "URL", archive.as_uri())
    monkeypatch.setattr(cub, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive


def test_official_split(tmp_path):
    folder = make_cub(tmp_path, classes=3, images_per_class=5)
    data = CUB200DataModule(root=str(tmp_path), download=False)
    assert data.class_names == ["001.Bird_1", "002.Bird_2", "003.Bird_3"]
    assert data.num_classes == 3
    train, test = data.read("train"), data.read("test")
    assert train.names == [f"{c:03d}.Bird_{c}/Bird_{c}_{i:04d}.jpg" for c in (1, 2, 3) for i in (0, 1, 2)]
    assert test.names == [f"{c:03d}.Bird_{c}/Bird_{c}_{i:04d}.jpg" for c in (1, 2, 3) for i in (3, 4)]
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.images == [folder / "images" / name for name in train.names]
    assert all(file.is_file() for file in train.images + test.images)
    assert data.read("val") is None


def test_defaults_are_the_published_ones(tmp_path):
    make_cub(tmp_path)
    data = CUB200DataModule(root=str(tmp_path))
    assert data.image_format == {"in_channels": 3, "resize": 512, "image_size": 448}
    assert data.batch_size == 96
    mean, std = data.normalization
    assert [round(value * 255, 5) for value in mean] == [123.82988, 127.35117, 110.25606]
    assert [round(value * 255, 5) for value in std] == [59.22309, 58.07361, 67.80252]


def test_batches(tmp_path):
    make_cub(tmp_path)
    data = CUB200DataModule(root=str(tmp_path), resize=32, image_size=24, batch_size=4, val_fraction=0.3)
    data.setup()
    assert next(iter(data.train_dataloader()))[0].shape == (4, 3, 24, 24)
    assert sum(len(labels) for _, labels in data.test_dataloader()) == 12


def test_order_of_lines_does_not_matter(tmp_path):
    folder = make_cub(tmp_path)
    before = CUB200DataModule(root=str(tmp_path)).read("train")
    for file in folder.glob("*.txt"):
        file.write_text("\n".join(reversed(file.read_text().splitlines())) + "\n")
    data = CUB200DataModule(root=str(tmp_path))
    assert data.class_names == [f"00{c}.Bird_{c}" for c in (1, 2, 3, 4)]
    assert data.read("train").names == before.names
    assert data.read("train").labels.tolist() == before.labels.tolist()


def test_constructor_downloads(tmp_path, web):
    data = CUB200DataModule(root=str(tmp_path / "data"))
    assert data.num_classes == 4
    assert len(data.read("train").names) == 12
    web.unlink()
    assert CUB200DataModule(root=str(tmp_path / "data")).num_classes == 4


def test_archive_put_there_by_hand(tmp_path, web):
    (tmp_path / "data").mkdir()
    shutil.move(web, tmp_path / "data")
    assert CUB200DataModule(root=str(tmp_path / "data"), download=False).num_classes == 4


def test_missing_data_without_download(tmp_path):
    message = refused(root=str(tmp_path / "data"), download=False)
    assert f"put CUB_200_2011.tgz (from {cub.URL}, MD5 {cub.MD5}) into {tmp_path / 'data'}" in message


def test_archive_with_wrong_checksum(tmp_path, web, monkeypatch):
    monkeypatch.setattr(cub, "MD5", "0" * 32)
    assert "MD5" in refused(root=str(tmp_path / "data"))
    assert not (tmp_path / "data" / "CUB_200_2011").exists()


@pytest.mark.parametrize("name", ["classes", "images", "image_class_labels", "train_test_split"])
def test_missing_index_file(tmp_path, name):
    file = make_cub(tmp_path) / f"{name}.txt"
    file.unlink()
    assert f"no file {file}" in refused(root=str(tmp_path))


@pytest.mark.parametrize("name", ["classes", "images", "image_class_labels", "train_test_split"])
def test_empty_index_file(tmp_path, name):
    file = make_cub(tmp_path) / f"{name}.txt"
    file.write_text("\n")
    assert f"{file} is empty" in refused(root=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("classes", "two 002.Bird_2", ["'two 002.Bird_2'", "number"]),
        ("classes", "2", ["'2'", "number"]),
        ("classes", "1 002.Bird_2", ["number 1", "line 1"]),
        ("images", "1 other.jpg", ["number 1", "line 1"]),
        ("images", "-2 other.jpg", ["'-2 other.jpg'"]),
        ("image_class_labels", "99 1", ["image 99", "images.txt"]),
        ("image_class_labels", "2 5", ["class 5", "classes.txt"]),
        ("image_class_labels", "2 0", ["class 0", "classes.txt"]),
        ("image_class_labels", "2 one", ["class one", "classes.txt"]),
        ("train_test_split", "99 1", ["image 99", "images.txt"]),
        ("train_test_split", "2 2", ["'2'", "1 (training) or 0 (test)"]),
    ],
)
def test_wrong_line_is_named(tmp_path, name, line, words):
    file = make_cub(tmp_path) / f"{name}.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    message = refused(root=str(tmp_path))
    assert f"{name}.txt, line 2: " in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", ["image_class_labels", "train_test_split"])
def test_image_without_label_or_part_is_named(tmp_path, name):
    folder = make_cub(tmp_path)
    lines = (folder / f"{name}.txt").read_text().splitlines()
    (folder / f"{name}.txt").write_text("\n".join(lines[:4] + lines[5:]) + "\n")
    message = refused(root=str(tmp_path))
    assert "images.txt, line 5: image 5 is not in" in message
    assert f"{name}.txt" in message


def test_missing_image_is_named(tmp_path):
    folder = make_cub(tmp_path)
    missing = folder / "images" / "002.Bird_2" / "Bird_2_0001.jpg"
    missing.unlink()
    data = CUB200DataModule(root=str(tmp_path), resize=32, image_size=24)
    with pytest.raises(UserError) as caught:
        data.setup("fit")
    assert str(missing) in str(caught.value)
    assert "\n" not in str(caught.value)
