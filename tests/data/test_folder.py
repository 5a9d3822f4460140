from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from metricloss_pl.data.file_checks import RUN_MARKER
from metricloss_pl.data.folder import ImageFolderDataModule
from metricloss_pl.errors import UserError
from tests.helpers import make_folder, make_image
from tests.systems import make_link


def refusal(action, *args, **kwargs) -> str:
    """The one line with which the call is refused."""
    with pytest.raises(UserError) as caught:
        action(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(data: ImageFolderDataModule, part: str) -> list[str]:
    samples = data.read(part)
    assert samples is not None
    return samples.names


def test_parts_in_folders(tmp_path):
    root = make_folder(tmp_path, classes=("dog", "cat", "ant"), images=2, parts=("train", "test"))
    data = ImageFolderDataModule(root=str(root))
    assert data.class_names == ["ant", "cat", "dog"]
    assert data.num_classes == 3
    train = data.read("train")
    assert train.names == [f"train/{name}/{i}.png" for name in ("ant", "cat", "dog") for i in range(2)]
    assert train.images == [root / name for name in train.names]
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert names(data, "test") == [name.replace("train/", "test/") for name in train.names]
    assert data.read("val") is None


@pytest.mark.parametrize(
    ("train", "name", "test"),
    [("train", "val", "test"), ("train", "valid", "test"), ("training", "validation", "testing")],
)
def test_official_validation_part(tmp_path, train, name, test):
    make_folder(tmp_path, images=3, parts=(train, name, test))
    data = ImageFolderDataModule(root=str(tmp_path))
    assert data.class_names == ["cat", "dog"]
    for part, folder in (("train", train), ("val", name), ("test", test)):
        assert names(data, part) == [f"{folder}/{label}/{i}.png" for label in ("cat", "dog") for i in range(3)]


def test_one_folder_is_cut_stratified_and_alike_for_every_seed(tmp_path):
    make_folder(tmp_path, images=10)
    first, second = (ImageFolderDataModule(root=str(tmp_path), seed=seed, test_fraction=0.3) for seed in (0, 7))
    train, test = first.read("train"), first.read("test")
    assert test.labels.bincount().tolist() == [3, 3]
    assert sorted(train.names + test.names) == sorted(f"{name}/{i}.png" for name in ("cat", "dog") for i in range(10))
    assert names(second, "test") == test.names
    assert first.read("val") is None


def test_missing_test_part_is_cut_from_train_and_validation_stays(tmp_path):
    make_folder(tmp_path, images=5, parts=("train", "val"))
    data = ImageFolderDataModule(root=str(tmp_path))
    assert len(names(data, "train")) == 8
    assert len(names(data, "test")) == 2
    assert all(name.startswith("train/") for name in names(data, "test"))
    assert len(names(data, "val")) == 10


@pytest.mark.parametrize("classes", [("bus", "train"), ("test", "val")])
def test_a_class_may_be_called_like_a_part(tmp_path, classes):
    make_folder(tmp_path, classes=classes, images=5)
    assert ImageFolderDataModule(root=str(tmp_path)).class_names == list(classes)


def test_folders_beside_the_parts_are_ignored(tmp_path):
    make_folder(tmp_path, parts=("train", "test"))
    (tmp_path / "notes").mkdir()
    assert ImageFolderDataModule(root=str(tmp_path)).class_names == ["cat", "dog"]


def test_hidden_and_foreign_files_are_ignored_and_subfolders_searched(tmp_path):
    make_folder(tmp_path, images=1, parts=("train", "test"))
    cats = tmp_path / "train" / "cat"
    make_image(cats / "deep" / "er" / "9.JPG", 16, 1)
    make_image(cats / ".hidden.png", 16, 1)
    make_image(cats / ".ipynb_checkpoints" / "0-checkpoint.png", 16, 1)
    (cats / "notes.txt").write_text("no image")
    (tmp_path / ".git").mkdir()
    (tmp_path / "train" / ".cache").mkdir()
    data = ImageFolderDataModule(root=str(tmp_path))
    assert names(data, "train") == ["train/cat/0.png", "train/cat/deep/er/9.JPG", "train/dog/0.png"]


def test_what_is_not_used_is_said(tmp_path):
    root = make_folder(tmp_path, images=1)
    for name in ("hierarchy.txt", "scan.heic", "cat/.DS_Store", "cat/Thumbs.db", "cat/.a.avif", "cat/.old/a.avif"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    make_image(root / ".shadow.png", 16, 0)
    data = ImageFolderDataModule(root=str(root), test_fraction=0.5)
    assert data.left_out() == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.warn_of_left_out()
    for name in ("cat/deep/2.HEIC", "cat/b.avif", "dog/photo.jpg?size=large"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    make_image(root / "loose.png", 16, 0)
    unread, loose = data.left_out()
    assert unread.startswith("not used: 3 files of unknown type, such as 'cat/b.avif'; ")
    assert loose == "not used: 1 image in no class folder, such as 'loose.png'; move or remove"
    with pytest.warns(UserWarning, match="^ImageFolderDataModule: not used: ") as caught:
        data.warn_of_left_out()
    assert len(caught) == 2


def test_what_is_not_used_beside_the_parts(tmp_path):
    root = make_folder(tmp_path, images=1, parts=("train", "dev", "test"))
    make_image(root / "notes" / "figure.png", 16, 0)
    make_image(root / "test" / "10.png", 16, 0)
    make_image(root / "test" / "9.png", 16, 0)
    (root / "test" / "dog" / "1.nef").touch()
    assert [line.partition(";")[0] for line in ImageFolderDataModule(root=str(root)).left_out()] == [
        "not used: 1 file of unknown type, such as 'test/dog/1.nef'",
        "not used: 2 images in no class folder, such as 'test/10.png'",
        "not used: 2 folders beside the sets, such as 'dev'",
    ]


def test_a_jpeg_as_browsers_call_it_is_read(tmp_path):
    root = make_folder(tmp_path, images=1)
    make_image(root / "cat" / "1.jpg", 16, 1)
    (root / "cat" / "1.jpg").rename(root / "cat" / "1.JFIF")
    data = ImageFolderDataModule(root=str(root), test_fraction=0.4, val_fraction=0)
    assert sorted(names(data, "train") + names(data, "test")) == ["cat/0.png", "cat/1.JFIF", "dog/0.png"]
    data.check_files()


def test_batches(tmp_path):
    make_folder(tmp_path, images=10, size=16)
    data = ImageFolderDataModule(root=str(tmp_path), batch_size=4, image_size=12)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 12, 12)
    assert (images.float().mean((1, 2, 3)) > 128).tolist() == (labels == 1).tolist()  # the dogs are the bright ones


def test_class_without_images_is_named(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    message = refusal(ImageFolderDataModule(root=str(tmp_path)).setup, "fit")
    assert str(tmp_path / "empty") in message


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_without_training_images_is_named(tmp_path, part):
    make_folder(tmp_path, parts=("train", "val", "test"))
    make_image(tmp_path / part / "emu" / "0.png", 16, 0)
    message = refusal(ImageFolderDataModule, root=str(tmp_path))
    assert f"class 'emu' is in {tmp_path / part} but not in {tmp_path / 'train'}" in message


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_may_lack_images_for_validation_and_test(tmp_path, part, there):
    make_folder(tmp_path, parts=("train", "val", "test"))
    make_image(tmp_path / "train" / "emu" / "0.png", 16, 0)
    for other in {"val", "test"} - {part}:
        make_image(tmp_path / other / "emu" / "0.png", 16, 0)
    if there:
        (tmp_path / part / "emu").mkdir()
    data = ImageFolderDataModule(root=str(tmp_path))
    assert data.class_names == ["cat", "dog", "emu"]
    name = {"val": "validation", "test": "test"}[part]
    with pytest.warns(UserWarning, match=f"no {name} image of class 'emu': {name} metrics are over 2 of 3 classes"):
        data.setup(None)
    assert data.samples(part).labels.tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_broken_files_of_all_parts_are_named_before_training(tmp_path, cache_gb):
    root = make_folder(tmp_path, images=5, parts=("train", "test"))
    broken = [root / "train" / "cat" / "3.png", root / "test" / "dog" / "0.png"]
    for file in broken:
        file.write_bytes(file.read_bytes()[:400])  # its head is whole

    def look() -> ImageFolderDataModule:
        data = ImageFolderDataModule(root=str(root), image_size=16, cache_gb=cache_gb)
        data.setup("fit")
        data.check_files()
        return data

    message = refusal(look)
    assert message.startswith("2 files cannot be read")
    assert all(str(file) in message for file in broken)
    broken[0].unlink()
    assert f"{broken[1]} cannot be read" in refusal(look)
    assert f"{broken[1]} cannot be read" in refusal(ImageFolderDataModule(root=str(root), cache_gb=0).setup, "test")
    broken[1].unlink()
    data = look()
    if cache_gb == 0:  # files that have been decoded once are not checked again
        last = root / "test" / "dog" / "1.png"
        last.write_bytes(last.read_bytes()[:400])
        data.setup("test")


def test_a_class_folder_whose_name_is_no_text(tmp_path):
    make_folder(tmp_path)
    make_image(tmp_path / "猫\u3000\u200d" / "0.png", 16, 0)
    assert ImageFolderDataModule(root=str(tmp_path)).num_classes == 3
    try:
        os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    except (OSError, UnicodeError):  # macOS, Windows
        pytest.skip("names are texts on this system")
    assert r"'caf\udce9'" in refusal(ImageFolderDataModule, root=str(tmp_path))


def test_missing_root_is_named(tmp_path):
    assert str(tmp_path / "none") in refusal(ImageFolderDataModule, root=str(tmp_path / "none"))


@pytest.mark.parametrize("part", ["", "train", "test"])
def test_folder_without_class_folders_is_named(tmp_path, part):
    for name in {"train", "test"} - {part} if part else ():
        make_folder(tmp_path, parts=(name,))
    make_image(tmp_path / part / "0.png", 16, 0)
    message = refusal(ImageFolderDataModule, root=str(tmp_path))
    assert f"{tmp_path / part} has no subfolders" in message


def test_two_validation_parts_are_named(tmp_path):
    make_folder(tmp_path, parts=("train", "val", "valid", "test"))
    message = refusal(ImageFolderDataModule, root=str(tmp_path))
    assert "both val and valid" in message


@pytest.mark.parametrize("fraction", [0.0, 1.1, -0.1, float("nan")])
def test_test_fraction_out_of_range(tmp_path, fraction):
    make_folder(tmp_path)
    assert f"test_fraction of ImageFolderDataModule is {fraction}" in refusal(
        ImageFolderDataModule, root=str(tmp_path), test_fraction=fraction
    )


def test_too_few_images_for_a_test_part(tmp_path):
    make_folder(tmp_path, images=1)
    assert "leaves none for test" in refusal(ImageFolderDataModule(root=str(tmp_path)).read, "train")


def test_root_may_start_at_home(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):  # the second on Windows
        monkeypatch.setenv(name, str(tmp_path))
    make_folder(tmp_path / "pets")
    data = ImageFolderDataModule(root="~/pets")
    assert Path(data.read("train").images[0]).is_file()


LAYOUTS = {
    "unlabeled images": (("train", "val"), "unlabeled/x"),
    "a folder of one class": (("train", "val"), "notes/cat"),
    "files of macOS": (("train", "test"), "__MACOSX/train/cat"),
    "capital letters": (("Train", "Val"), "Extra/x"),
    "other words": (("Training", "Testing"), "extra/x"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sets_beside_another_folder(tmp_path, layout):
    parts, beside = LAYOUTS[layout]
    make_folder(tmp_path, parts=parts)
    make_image(tmp_path / beside / "0.png", 16, 0)
    data = ImageFolderDataModule(root=str(tmp_path))
    assert data.class_names == ["cat", "dog"]
    assert names(data, "train")[0].startswith(f"{parts[0]}/cat/")
    lines = [line for line in data.left_out() if "beside the sets" in line]
    assert len(lines) == (0 if "MACOSX" in beside else 1)


@pytest.mark.parametrize("inside", ["", "cat"])
def test_runs_of_this_program_are_no_class_and_no_images(tmp_path, inside):
    make_folder(tmp_path)
    run = tmp_path / inside / "runs" / "folder_cosine" / "version_0"
    make_image(run / "figures" / "embeddings.png", 16, 0)
    (run / RUN_MARKER).touch()
    make_image(tmp_path / inside / "results" / "figures" / "curves.png", 16, 0)
    (tmp_path / inside / "results" / RUN_MARKER).touch()
    data = ImageFolderDataModule(root=str(tmp_path))
    assert data.class_names == ["cat", "dog"]
    assert len(data.all_images()) == 12
    assert data.left_out() == []


def test_runs_beside_images_of_a_class_leave_the_class(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "cat" / "version_0").mkdir()
    (tmp_path / "cat" / "version_0" / RUN_MARKER).touch()
    assert ImageFolderDataModule(root=str(tmp_path)).class_names == ["cat", "dog"]


def test_a_training_set_beside_folders_that_are_none_is_named(tmp_path):
    make_folder(tmp_path / "train")
    make_image(tmp_path / "unlabeled" / "0.png", 16, 0)
    message = refusal(ImageFolderDataModule, root=str(tmp_path))
    assert (
        f"beside unlabeled, which is no val or test: move away what is not used, or give {tmp_path / 'train'}"
        in message
    )


def test_a_root_one_level_too_high_is_named(tmp_path):
    make_folder(tmp_path / "pets", parts=("train", "test"))
    assert refusal(ImageFolderDataModule, root=str(tmp_path)).endswith(f"give {tmp_path / 'pets'}")


def test_classes_are_matched_by_name(tmp_path):
    make_folder(tmp_path, classes=("ant", "cat", "dog"), images=5)
    data = ImageFolderDataModule(root=str(tmp_path), classes=["dog", "cow", "cat"], test_fraction=1)
    with pytest.warns(UserWarning, match="no test image of class 'cow'"):
        data.setup("test")
    assert data.class_names == ["dog", "cow", "cat"]
    labels = {Path(name).parent.name: label for name, label in zip(*_labeled(data), strict=True)}
    assert labels == {"dog": 0, "cat": 2}
    assert len(data.samples("test")) == 10
    assert "not used: 5 images of 1 unknown class, 'ant' (5); the 3 known ones are" in data.left_out()[0]
    assert "has no training set" in refusal(data.setup, "fit")
    assert "has none of the classes 'x', 'y': it has 'ant', 'cat', 'dog'" in refusal(
        ImageFolderDataModule(root=str(tmp_path), classes=["x", "y"]).setup, "test"
    )


def _labeled(data: ImageFolderDataModule) -> tuple[list[str], list[int]]:
    samples = data.samples("test")
    return samples.names, samples.labels.tolist()


def test_all_images_for_validation(tmp_path):
    make_folder(tmp_path, classes=("cat", "dog"), images=5)
    data = ImageFolderDataModule(root=str(tmp_path), val_fraction=0)
    data.use_all_for("val")
    data.setup("validate")
    assert data.has_validation
    assert len(data.samples("val")) == 10


def test_class_folders_that_are_all_divided_alike_are_named(tmp_path):
    """Such as sets of unknown names, which would become the classes."""
    for name in ("seg_train", "seg_test"):
        make_folder(tmp_path / name, images=3)
    (line,) = ImageFolderDataModule(root=str(tmp_path)).left_out()
    assert "'cat' and 'dog'" in line
    make_image(tmp_path / "seg_train" / "0.png", 16, 0)
    assert ImageFolderDataModule(root=str(tmp_path)).left_out() == []


def test_a_link_to_itself_is_no_class(tmp_path):
    root = make_folder(tmp_path, images=2)
    make_link(root / "loop", "loop")
    assert ImageFolderDataModule(root=str(root)).class_names == ["cat", "dog"]
