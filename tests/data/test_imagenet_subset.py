from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Trainer

from metricloss_pl.data import imagenet_subset
from metricloss_pl.data.imagenet_subset import ImageNetSubsetDataModule
from metricloss_pl.download import Resource
from metricloss_pl.errors import UserError
from tests.helpers import Expected, make_imagenet, md5

ARCHIVES = ("train_archive", "test_archive", "devkit")
PUBLISHED = ImageNetSubsetDataModule.published
SUBSETS = ("vipriors", "deic")

pytestmark = pytest.mark.usefixtures("miniatures")


@pytest.fixture
def expected(tmp_path, monkeypatch) -> Expected:
    """Archives in data, lists in lists."""
    made = make_imagenet(tmp_path / "data", tmp_path / "lists")
    shutil.rmtree(tmp_path / "data" / "work")
    publish(tmp_path / "data", monkeypatch)
    return made


def publish(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the checksums of the archives as they are now for the published ones."""
    for name in ARCHIVES:
        archive: Resource = getattr(ImageNetSubsetDataModule, name)
        monkeypatch.setattr(ImageNetSubsetDataModule, name, archive._replace(md5=md5(root / archive.name)))


def load(tmp_path: Path, subset: str, **arguments) -> ImageNetSubsetDataModule:
    data = ImageNetSubsetDataModule(
        root=str(tmp_path / "data"), lists=str(tmp_path / "lists"), subset=subset, resize=10, image_size=8, **arguments
    )
    data.prepare_data()
    return data


def refused(tmp_path: Path, subset: str) -> str:
    """The one line with which the set is refused; nothing is left that could be taken for it."""
    with pytest.raises(UserError) as caught:
        load(tmp_path, subset)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("imagenet_*"))
    assert not list(tmp_path.rglob("*.partial"))
    return str(caught.value)


@pytest.mark.parametrize("subset", SUBSETS)
def test_from_the_archives_to_fit_and_test(tmp_path, expected, subset, classifier):
    data = load(tmp_path, subset, batch_size=3)
    names = data.class_names
    assert names == ["n01440764", "n01443537", "n01484850"]
    for part, files in expected.items():
        samples = data.read(part)
        assert all(file.is_file() for file in samples.images)
        labels = [names[label] for label in samples.labels.tolist()]
        assert dict(zip(samples.names, labels, strict=True)) == files
    unpacked = tmp_path / "data" / f"imagenet_{subset}"
    assert len(list(unpacked.rglob("*.JPEG"))) == sum(map(len, expected.values()))  # none but the listed
    model = classifier()
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    assert (len(model.seen), model.tested) == (3, 9)


@pytest.mark.parametrize("subset", SUBSETS)
def test_both_parts_train_without_validation(tmp_path, expected, subset):
    data = load(tmp_path, subset, val_fraction=0)
    data.setup("fit")
    assert sorted(data.samples("train").names) == sorted([*expected["train"], *expected["val"]])


def test_what_is_unpacked_needs_no_archive(tmp_path, expected):
    load(tmp_path, "vipriors")
    for archive in (tmp_path / "data").glob("*.tar*"):
        archive.unlink()
    assert len(load(tmp_path, "vipriors").read("test").labels) == 9


def test_constructor_needs_the_lists_alone(tmp_path, expected):
    for subset in SUBSETS:
        data = ImageNetSubsetDataModule(root=str(tmp_path / "none"), lists=str(tmp_path / "lists"), subset=subset)
        assert data.num_classes == 3
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("subset", "needed"), [("vipriors", ARCHIVES), ("deic", ARCHIVES[:2])])
def test_missing_archives_are_named_with_their_source(tmp_path, expected, subset, needed):
    for name in ARCHIVES:
        (tmp_path / "data" / getattr(ImageNetSubsetDataModule, name).name).unlink()
    message = refused(tmp_path, subset)
    for name in ARCHIVES:
        archive = getattr(ImageNetSubsetDataModule, name)
        assert (f"{archive.name} (from https://image-net.org/" in message) == (name in needed)
        assert (f"MD5 {archive.md5}" in message) == (name in needed)


@pytest.mark.parametrize("name", ARCHIVES)
def test_wrong_checksum(tmp_path, expected, name):
    archive = getattr(ImageNetSubsetDataModule, name)
    file = tmp_path / "data" / archive.name
    file.write_bytes(file.read_bytes() + b"?")
    message = refused(tmp_path, "vipriors")
    assert f"{file} is not the file expected" in message
    assert f"instead of {archive.md5}" in message


def test_archive_that_lacks_a_listed_image(tmp_path, expected):
    with (tmp_path / "lists" / "train.txt").open("a") as file:
        file.write("n01440764/n01440764_5 0\n")
    assert "ILSVRC2012_img_train.tar holds no n01440764_5.JPEG, which the lists name" in refused(tmp_path, "deic")


def test_archive_that_lacks_a_listed_class(tmp_path, expected):
    with (tmp_path / "lists" / "train.txt").open("a") as file:
        file.write("n01999999/n01999999_5 3\n")
    assert "ILSVRC2012_img_train.tar holds no n01999999.tar, which the lists name" in refused(tmp_path, "deic")


def test_members_that_point_outside_are_not_unpacked(tmp_path, expected, monkeypatch):
    file = tmp_path / "data" / "ILSVRC2012_img_val.tar"
    with tarfile.open(file, "a") as packed:
        for name in ("../../evil.JPEG", "../../ILSVRC2012_val_00000001.JPEG"):
            member = tarfile.TarInfo(name)
            member.size = 4
            packed.addfile(member, io.BytesIO(b"evil"))
    publish(tmp_path / "data", monkeypatch)
    load(tmp_path, "deic")
    assert not list(tmp_path.rglob("evil.JPEG"))
    assert [file.parent.name for file in tmp_path.rglob("ILSVRC2012_val_00000001.JPEG")] == ["val"]


def test_interrupted_unpacking(tmp_path, expected, monkeypatch):
    def stops(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(imagenet_subset, "unpack", stops)  # the last step
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path, "vipriors")
    assert not (tmp_path / "data" / "imagenet_vipriors").exists()
    assert len(load(tmp_path, "vipriors").read("val").labels) == 9


@pytest.mark.parametrize("name", ["meta.mat", "ILSVRC2012_validation_ground_truth.txt"])
@pytest.mark.parametrize("content", [None, b"", b"what is this"])
def test_missing_or_broken_development_kit(tmp_path, expected, name, content):
    data = load(tmp_path, "vipriors")
    [file] = (tmp_path / "data" / "imagenet_vipriors").rglob(name)
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        data.read("test")
    assert str(file.parent) in str(caught.value)
    assert f"remove {tmp_path / 'data' / 'imagenet_vipriors'} to have it unpacked again" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("subset", "name"),
    [(s, f"{part}.{'pickle' if s == 'vipriors' else 'txt'}") for s in SUBSETS for part in ("train", "val", "test")],
)
def test_missing_list_is_named_with_its_source(tmp_path, expected, subset, name):
    (tmp_path / "lists" / name).unlink()
    message = refused(tmp_path, subset)
    assert f"no file {tmp_path / 'lists' / name}" in message
    assert {"vipriors": "VIPriors/vipriors-challenges-toolkit", "deic": "cvjena/deic"}[subset] in message


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("train.txt", "n01440764/n01440764_5 1", "label '1', where the position of the class"),
        ("train.txt", "n01440764/../../evil 0", "is no name of an image of ImageNet"),
        ("test.txt", "ILSVRC2012_val_00000010 3", "label '3', where a number from 0 to 2 is needed"),
        ("test.txt", "../ILSVRC2012_val_00000010 0", "is no name of an image of ImageNet"),
    ],
)
def test_wrong_line_is_named(tmp_path, expected, name, line, words):
    lines = (tmp_path / "lists" / name).read_text().splitlines()
    (tmp_path / "lists" / name).write_text("\n".join([line, *lines]) + "\n")
    message = refused(tmp_path, "deic")
    assert f"{name}, line 1: " in message
    assert words in message


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (os.environ["EVIL"],)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps(7), "cannot be read as a list"),
        (b"", "cannot be read as a list"),
        (pickle.dumps([["n01440764", "../../evil"]]), "is no name of an image of ImageNet"),
        (pickle.dumps(["n01440764"]), "is no name of an image of ImageNet"),
        (pickle.dumps([Path("n01440764")]), "is not plain data"),
        (pickle.dumps(np.zeros(2)), "is not plain data"),
    ],
)
def test_wrong_pickle_is_refused(tmp_path, expected, content, words):
    (tmp_path / "lists" / "train.pickle").write_bytes(content)
    message = refused(tmp_path, "vipriors")
    assert "train.pickle" in message
    assert words in message


def test_pickle_runs_no_code(tmp_path, expected, monkeypatch):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    (tmp_path / "lists" / "train.pickle").write_bytes(pickle.dumps([Evil()]))
    assert "mkdir in it is not plain data" in refused(tmp_path, "vipriors")
    assert not (tmp_path / "evil").exists()


def test_statistics_are_compared(tmp_path, expected, monkeypatch):
    assert {subset: tuple(PUBLISHED[subset]) for subset in SUBSETS} == {
        "vipriors": (1000, 100_000, 50_000, (100, 100)),
        "deic": (1000, 50_000, 50_000, (50, 50)),
    }
    monkeypatch.setattr(ImageNetSubsetDataModule, "published", PUBLISHED)
    for subset, train in (("vipriors", "100,000"), ("deic", "50,000")):
        for stage, count in (("fit", train), ("test", "50,000")):
            with pytest.raises(UserError, match=f"{count} images of 1,000 classes"):
                load(tmp_path, subset).setup(stage)


def test_unknown_subset(tmp_path):
    with pytest.raises(UserError, match="subset of ImageNetSubsetDataModule is 'tiny'; it must be one of"):
        ImageNetSubsetDataModule(lists=str(tmp_path), subset="tiny")
