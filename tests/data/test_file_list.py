from __future__ import annotations

from pathlib import Path

import pytest

from metricloss_pl.data.lists import FileListDataModule
from metricloss_pl.errors import UserError
from tests.helpers import make_image
from tests.systems import make_pipe


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("a/1.jpg", "a/2.JPEG", "a/3.png", "b/1.jpg", "b/some image.jpg", "b/2.v2.jpg"):
        make_image(tmp_path / "images" / name, 8, len(name))
    make_image(tmp_path / "held_out" / "5.jpg", 8, 5)
    return tmp_path / "images"


def write(root: Path, **lists: str) -> dict[str, str]:
    """Writes root/../<part>.txt, entries divided by ";"; returns the data module's arguments."""
    for part, lines in lists.items():
        (root.parent / f"{part}.txt").write_text(lines.replace(";", "\n") + "\n")
    return {"root": str(root)} | {part: str(root.parent / f"{part}.txt") for part in lists}


def refused(root: Path, test_root: str | None = None, **lists: str) -> str:
    """The one line with which the lists are refused."""
    with pytest.raises(UserError) as caught:
        FileListDataModule(**write(root, **lists), test_root=test_root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_lists_of_all_parts(root):
    lists = write(root, train="a/1 10; b/1.jpg 9 ;;a/2 10", val="b/some image 9", test="b/2.v2 9;a/3 10")
    data = FileListDataModule(**lists)
    assert data.class_names == ["9", "10"]
    train, val, test = (data.read(part) for part in ("train", "val", "test"))
    assert train.images == [root / "a" / "1.jpg", root / "b" / "1.jpg", root / "a" / "2.JPEG"]
    assert train.names == ["a/1", "b/1.jpg", "a/2"]
    assert train.labels.tolist() == [1, 0, 1]
    assert val.images == [root / "b" / "some image.jpg"]
    assert test.images == [root / "b" / "2.v2.jpg", root / "a" / "3.png"]
    assert test.labels.tolist() == [0, 1]
    data.setup()
    assert next(iter(data.test_dataloader()))[0].shape == (2, 3, 8, 8)


def test_a_list_as_an_editor_leaves_it(root):
    lists = write(root, train="", test="b/1 bee")
    Path(lists["train"]).write_bytes("\ufeffa/1\tant\r\nb/some image.jpg\t\tbee \r\n\r\n".encode())
    data = FileListDataModule(**lists)
    assert data.class_names == ["ant", "bee"]
    assert data.read("train").names == ["a/1", "b/some image.jpg"]


def test_parts_that_have_no_list_are_cut(root):
    data = FileListDataModule(**write(root, train="a/1 ant;a/2 ant;a/3 ant;b/1 bee;b/some image bee;b/2.v2 bee"))
    assert data.class_names == ["ant", "bee"]
    assert data.read("val") is None
    assert (len(data.read("train")), len(data.read("test"))) == (5, 1)
    data = FileListDataModule(**write(root, train="a/1 ant;b/1 bee", test="a/2 ant"))
    assert (len(data.read("train")), len(data.read("test"))) == (2, 1)
    assert data.read("val") is None


def test_test_images_elsewhere(root):
    lists = write(root, train="a/1 0", test="5 0")
    data = FileListDataModule(**lists, test_root=str(root.parent / "held_out"))
    assert data.read("test").images == [root.parent / "held_out" / "5.jpg"]


def test_name_of_two_images(root):
    make_image(root / "a" / "1.png", 8, 0)
    data = FileListDataModule(**write(root, train="a/1.jpg 0;a/1.png 0", test="b/1 0"))
    assert data.read("train").images == [root / "a" / "1.jpg", root / "a" / "1.png"]
    assert f"train.txt, line 1: 2 files of that name {root / 'a' / '1'}" in refused(root, train="a/1 0")


def test_folders_and_pipes_are_no_images(root):
    (root / "a" / "9.png").mkdir()
    make_pipe(root / "a" / "8.png")
    for name in ("8", "9.png"):
        assert f"train.txt, line 1: no file {root / 'a' / name}" in refused(root, train=f"a/{name} 0")


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"train": "a/1 0;a/9 0"}, "train.txt, line 2: no file "),
        ({"train": "a/1 0;c/1 0"}, "train.txt, line 2: no file "),
        ({"train": "a/1"}, "train.txt, line 1: 'a/1', where a file and a label are needed"),
        ({"train": ";"}, "train.txt is empty: a list of lines `<file> <label>` is needed"),
        ({"train": "a/1 0;a/1.jpg 0"}, "train.txt, line 2: a/1.jpg is listed already, in line 1"),
        (
            {"train": "a/2 0;a/1 0", "test": "a/1 0"},
            "test.txt, line 1: a/1 is listed already, in {0}/train.txt, line 2",
        ),
        ({"train": "a/1 0", "test": "b/1 1"}, "test.txt, line 1: class '1' is in test, but in no line of train"),
    ],
)
def test_wrong_line_is_named(root, lists, words):
    assert words.format(root.parent) in refused(root, **lists)


def test_missing_list_and_folder(root):
    with pytest.raises(UserError, match=r"none\.txt: there is no such file: a list of lines"):
        FileListDataModule(root=str(root), train=str(root / "none.txt"))
    assert "no file" in refused(root / "none", train="a/1 0")
