"""Files in folders, unreadable files, and duplicates."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metricloss_pl.data import ImageFolderDataModule
from metricloss_pl.data.file_checks import (
    Duplicate,
    check_readable,
    describe_duplicates,
    describe_left_out,
    find_files,
    image_files,
)
from metricloss_pl.data.reading import UnreadableImages
from metricloss_pl.data.samples import Samples
from metricloss_pl.errors import UserError
from tests.data.conftest import ToyDataModule
from tests.data.images import store_of
from tests.helpers import make_folder, make_image
from tests.systems import make_link, make_pipe

Make = Callable[..., Any]


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
    (line,) = describe_left_out(root, [root / "cat"])
    assert line.startswith("not used: 4 paths that cannot be followed or opened, such as 'cat/self'; ")


def test_unusable_entries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    unusable = 4
    if hasattr(os, "mkfifo"):
        os.mkfifo(root / "cat" / "pipe.png")
        unusable += 1
    data = ImageFolderDataModule(root=str(root), test_fraction=0.4)
    assert [line.partition(";")[0] for line in data.left_out()] == [
        "not used: 1 file of unknown type, such as 'dog/12345'",
        f"not used: {unusable} paths that cannot be followed or opened, such as 'cat/closed'",
    ]
    with pytest.raises(UserError, match=r"no image in .*closed .*; not used: 1 path"):
        image_files(root / "cat" / "closed")


def test_predict_follows_links_and_names_unusable_entries(tmp_path: Path, store: Path) -> None:
    folder = tmp_path / "new"
    make_image(folder / "9.png", 8, 0)
    make_link(folder / "link", store)
    make_link(folder / "lost.png", tmp_path / "nowhere.png")
    data = ToyDataModule(predict_dir=str(folder))
    with pytest.warns(UserWarning, match=r"not used: 1 path .* 'lost\.png'"):
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


# Readability.


@pytest.mark.parametrize("broken", [1, 7])
def test_all_broken_files_are_named_at_once(tmp_path: Path, photos: list[Path], broken: int) -> None:
    """Also those whose heads are whole; many of them in a list of their own."""
    whole = photos[0].read_bytes()
    bad = [tmp_path / f"bad{index}.png" for index in range(broken)]
    for index, path in enumerate(bad):
        path.write_bytes(whole[: len(whole) // 2] if index % 2 else b"no image")
    with pytest.raises(UnreadableImages) as caught:
        check_readable([*photos, *bad], 3)
    message = str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == message  # as a loader's process hands it over
    assert "\n" not in message
    assert f"{bad[0]} " in message
    assert all(str(path) not in message for path in photos)
    if broken == 1:
        return
    assert message.startswith("7 files cannot be read")
    assert f"{bad[4]} (" in message
    assert f"{bad[5]} (" not in message
    names = Path(message.split("all are listed in ")[1].split(";")[0])
    assert names.read_text().splitlines() == [str(path) for path in bad]
    names.unlink()


def check_that_none_is_read(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        for read in (store_of, lambda files: check_readable(files, 3)):
            with pytest.raises(UserError, match=rf"{path.name} cannot be read as an image \([^\n]*$"):
                read([path])


def test_folders_bombs_pipes_and_sockets_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.pbm").write_text("P4\n40000 40000\n")
    (tmp_path / "folder.png").mkdir()
    make_pipe(tmp_path / "pipe.png")  # is not waited for
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        listening.bind("socket.png")
        assert listed(tmp_path) == ["bomb.pbm"]
        check_that_none_is_read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", "torn"])
@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_unreadable_files_are_named(tmp_path: Path, photos: list[Path], content: bytes | str, cache_gb: float) -> None:
    whole = photos[0].read_bytes()
    bad = tmp_path / "bad.png"
    bad.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"bad\.png cannot be read") as caught:
        store_of([photos[0], bad], cache_gb=cache_gb).fetch([0, 1])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"missing\.png cannot be read"):
        store_of([tmp_path / "missing.png"], cache_gb=cache_gb)


# Duplicates.


def test_duplicates_of_arrays(toy: Make, samples: Make) -> None:
    sets = {"train": samples([30, 40, 50]), "val": samples([9, 9, 9], seed=2, part="val")}
    test = samples([5, 6, 8], seed=1, part="test")
    images = test.images.clone()
    images[3], images[4], images[5] = sets["train"].images[17], sets["val"].images[2], images[6]
    module = toy(parts=sets | {"test": replace(test, images=images)})
    train, val, test_labels = (samples.labels.tolist() for samples in (*sets.values(), test))
    assert module.duplicates() == [
        Duplicate("test", "test[3]", test_labels[3], "train", "train[17]", train[17]),
        Duplicate("test", "test[4]", test_labels[4], "val", "val[2]", val[2]),
        Duplicate("test", "test[6]", test_labels[6], "test", "test[5]", test_labels[5]),
    ]
    with pytest.warns(UserWarning, match=r"2 duplicates .*test\[3\] \(test\) = train\[17\] \(train\)"):
        module.warn_of_duplicates()
    assert module._stores == {}  # nothing is decoded for it


@pytest.mark.filterwarnings("error")
def test_no_duplicates_no_warning(toy: Make, samples: Make) -> None:
    module = toy(parts={"train": samples([30, 40, 50]), "test": samples([5, 6, 8], seed=1)})
    module.warn_of_duplicates()
    assert module.duplicates() == []


def files(folder: Path, split: str, seeds: list[int]) -> Samples:
    paths = []
    for index, seed in enumerate(seeds):
        paths.append(folder / f"{split}{index}.bmp")  # bmp: all files have one size
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(paths[-1])
    return Samples(images=paths, labels=torch.arange(len(paths)) % 3, names=[path.name for path in paths])


def test_duplicates_of_files(toy: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {"train": files(tmp_path, "train", [0, 1, 2]), "test": files(tmp_path, "test", [5, 1, 6, 7, 8, 6])}
    module = toy(parts=sets, val_fraction=0)
    assert module.duplicates() == [
        Duplicate("test", "test1.bmp", 1, "train", "train1.bmp", 1),
        Duplicate("test", "test5.bmp", 2, "test", "test2.bmp", 2),
    ]
    read: list[str] = []
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or path.open("rb").read())
    (tmp_path / "train0.bmp").write_bytes(b"of another size")
    assert len(module.duplicates()) == 2
    assert len(read) == 8  # a file with a size of its own is not read


def test_duplicates_are_described_by_kind() -> None:
    pairs = [Duplicate("test", f"{number}.png", 0, "train", "0.png", 0) for number in range(4)]
    pairs += [Duplicate("train", "b.png", 1, "train", "a.png", 0), Duplicate("val", "d.png", 1, "val", "c.png", 1)]
    in_two_sets, of_two_classes, within = describe_duplicates(pairs, ["ant", "bee"])
    assert in_two_sets.startswith("4 duplicates in more than one set")
    assert in_two_sets.endswith("2.png (test) = 0.png (train), ...")
    assert in_two_sets.count(" = ") == 3
    assert of_two_classes.startswith("1 duplicate of two classes")
    assert of_two_classes.endswith(": b.png (train, bee) = a.png (train, ant)")
    assert within.endswith(": d.png = c.png (val)")
    assert describe_duplicates([], ["ant"]) == []
