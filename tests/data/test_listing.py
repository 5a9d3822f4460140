"""Folders of images: links are followed, and what cannot be used is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metricloss_pl.data import ImageFolderDataModule
from metricloss_pl.data.reading import describe_unread, find_files, image_files
from metricloss_pl.errors import UserError
from tests.data.conftest import ToyDataModule
from tests.helpers import make_folder, make_image
from tests.systems import make_link


def listed(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in image_files(folder)]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Images outside the folder that links lead to."""
    for name in ("0.png", "deep/1.PNG", ".hidden/2.png"):
        make_image(tmp_path / "store" / name, 8, 0)
    return tmp_path / "store"


def test_links_are_followed(tmp_path: Path, store: Path) -> None:
    """To folders and files, within the folder or out of it, and more than one to the same folder."""
    root = tmp_path / "root"
    make_image(root / "a.png" / "0.png", 8, 0)  # a folder with an image's name
    make_link(root / "b", store)
    make_link(root / "c", store)
    make_link(root / "d.png", store / "0.png")
    make_link(root / "e", root / "a.png")
    make_image(tmp_path / "further" / "3.png", 8, 0)
    make_link(store / "more", tmp_path / "further")
    of_store = ["0.png", "deep/1.PNG", "more/3.png"]
    assert listed(root) == [
        "a.png/0.png", *(f"b/{name}" for name in of_store), *(f"c/{name}" for name in of_store), "d.png", "e/0.png"
    ]  # fmt: skip
    make_link(tmp_path / "link", root)
    assert listed(tmp_path / "link") == listed(root)


def test_links_to_a_folder_around_them_end(tmp_path: Path, store: Path) -> None:
    """Else they would bring the images of all classes into one, or those of one again and again."""
    root = tmp_path / "root"
    make_image(root / "cat" / "0.png", 8, 0)
    make_image(root / "dog" / "0.png", 8, 0)
    make_link(root / "cat" / "self", root / "cat")
    make_link(root / "cat" / "up", "..")
    make_link(root / "cat" / "store", store)
    make_link(store / "back", root / "cat")
    make_link(store / "deep" / "top", tmp_path)
    assert listed(root / "cat") == ["0.png", "store/0.png", "store/deep/1.PNG"]
    (line,) = describe_unread(root, [root / "cat"])
    assert line.startswith("not used: 4 links to a folder that it lies in, such as 'cat/self'; ")


def test_what_cannot_be_used_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "root", images=3)
    make_link(root / "dog" / "lost.png", tmp_path / "nowhere.png")
    make_link(root / "dog" / "round.png", root / "dog" / "round.png")
    make_link(root / "dog" / ".hidden.png", tmp_path / "nowhere.png")
    make_link(root / "fox", tmp_path / "nowhere")
    (root / "dog" / "12345").touch()
    (root / "cat" / "closed").mkdir()
    scandir = os.scandir

    def refusing(path: str | Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    expected = [
        "not used: 1 file of a kind that is not read, such as 'dog/12345'",
        "not used: 3 links whose target is missing or closed, such as 'dog/lost.png'",
        "not used: 1 folder that cannot be opened, such as 'cat/closed'",
    ]
    if hasattr(os, "mkfifo"):
        os.mkfifo(root / "cat" / "pipe.png")
        expected.append("not used: 1 special file (pipe, socket or device), such as 'cat/pipe.png'")
    data = ImageFolderDataModule(root=str(root), test_fraction=0.4)
    assert [line.partition(";")[0] for line in data.left_out()] == expected
    with pytest.raises(UserError, match=r"no image in .*closed: .*; not used: 1 folder that cannot be opened"):
        image_files(root / "cat" / "closed")


def test_predict_follows_links_and_says_what_is_not_used(tmp_path: Path, store: Path) -> None:
    folder = tmp_path / "new"
    make_image(folder / "9.png", 8, 0)
    make_link(folder / "link", store)
    make_link(folder / "lost.png", tmp_path / "nowhere.png")
    data = ToyDataModule(predict_dir=str(folder))
    with pytest.warns(UserWarning, match=r"not used: 1 link whose target is missing or closed, such as 'lost\.png'"):
        data.setup("predict")
    assert data.predict_files == ["9.png", "link/0.png", "link/deep/1.PNG"]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        make_image(tmp_path / name, 8, 0)
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    assert listed(tmp_path) == [name]
    assert [path.name for path in find_files(tmp_path).files] == [name]
