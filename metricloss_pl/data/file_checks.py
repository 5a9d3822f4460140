"""Checks of image files: found in folders, left out, readable, and without duplicates."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from metricloss_pl.data.reading import (
    DECODING_THREADS,
    IMAGE_EXTENSIONS,
    UnreadableImages,
    check_file,
    one_thread,
    read_image,
)
from metricloss_pl.data.samples import Samples
from metricloss_pl.errors import UserError, plural

RUN_MARKER = ".metricloss_run"  # marks the folder of a run or a comparison, which holds figures, not data
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
_COMPANIONS = (".csv", ".db", ".html", ".ini", ".json", ".md", ".txt", ".xml", ".yaml", ".yml")  # lie among images
_SHOWN = 3  # pairs of duplicates, of many


class Found(NamedTuple):
    """Content of a folder, sorted by path, without hidden files and folders."""

    files: list[Path]
    unusable: list[Path]  # links that lead nowhere or to a folder around them, closed folders, pipes, devices
    runs: list[Path]  # folders of runs, which are not searched


def find_files(folder: Path, deep: bool = True) -> Found:
    """List the files in a folder, following links to files and folders.

    Args:
        folder: The folder. Paths start with it, also those of files behind links.
        deep: Search its subfolders, too.
    """
    found = Found([], [], [])
    _search(folder, (), deep, found)
    for paths in found:
        paths.sort()
    return found


def _search(folder: Path, around: tuple[str, ...], deep: bool, found: Found) -> None:
    around = (*around, os.path.realpath(folder))
    try:
        with os.scandir(folder) as listing:
            entries = [entry for entry in listing if not is_hidden(entry.name)]
    except OSError:
        found.unusable.append(folder)
        return
    for entry in entries:
        path = folder / entry.name
        if path.is_dir() if entry.is_symlink() else entry.is_dir():
            target = os.path.realpath(path) if entry.is_symlink() else ""
            if target and any(Path(target) in (Path(other), *Path(other).parents) for other in around):
                found.unusable.append(path)
            elif (path / RUN_MARKER).is_file():
                found.runs.append(path)
            elif deep:
                _search(path, around, deep, found)
        elif path.is_file() if entry.is_symlink() else entry.is_file():
            found.files.append(path)
        else:
            found.unusable.append(path)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or an operating system's."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def is_image(path: Path) -> bool:
    """Return whether a path has the extension of an image file."""
    return path.suffix.lower() in IMAGE_EXTENSIONS


def image_files(folder: str | Path) -> list[Path]:
    """List the images in a folder and its subfolders, sorted by path, without hidden ones.

    Raises:
        UserError: The folder is missing or holds no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"no folder {root}: a folder of images is needed")
    found = find_files(root)
    files = list(filter(is_image, found.files))
    if not files:
        lines = [f"no image in {root} (extensions: {', '.join(IMAGE_EXTENSIONS)})", *_describe_unusable(root, [found])]
        raise UserError("; ".join(lines))
    return files


def list_images(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """List files as they are given, and the images in folders with their subfolders, each once.

    Args:
        paths: A file or a folder, or several.

    Raises:
        UserError: A folder holds no image.
    """
    given = map(Path, [paths] if isinstance(paths, (str, Path)) else paths)
    return list(dict.fromkeys(file for path in given for file in (image_files(path) if path.is_dir() else [path])))


def describe_left_out(root: Path, folders: Iterable[Path], beside: Iterable[Path] = ()) -> list[str]:
    """Return warnings about files and links that may have been meant as images but are not used.

    Args:
        root: Folder that the paths are given relative to.
        folders: Folders of images in `root`, which are searched with their subfolders.
        beside: Folders in `root` without images; links in them may have been meant as folders of images.
    """
    found = [find_files(folder) for folder in folders]
    files = (path for folder in found for path in folder.files)
    unread = sorted(path for path in files if path.suffix.lower() not in IMAGE_EXTENSIONS + _COMPANIONS)
    return [
        *not_used("file", "of unknown type", "convert to .jpg or .png, or remove", unread, root),
        *_describe_unusable(root, [*found, *(find_files(folder, deep=False) for folder in beside)]),
    ]


def warn_of_unused(paths: Iterable[str]) -> None:
    """Warn of files in folders that may have been meant as images."""
    for folder in filter(Path.is_dir, map(Path, paths)):
        for line in describe_left_out(folder, [folder]):
            warnings.warn(f"{folder}: {line}", stacklevel=2)


def _describe_unusable(root: Path, found: Iterable[Found]) -> list[str]:
    paths = sorted(path for folder in found for path in folder.unusable)
    return not_used("path", "that cannot be followed or opened", "repair or remove", paths, root)


def not_used(thing: str, why: str, remedy: str, paths: Sequence[Path], root: Path) -> list[str]:
    """Return the warning about unused paths in `root`, or none: "not used: 2 files of unknown type, such as ..."."""
    if not paths:
        return []
    return [f"not used: {plural(len(paths), thing)} {why}, such as {paths[0].relative_to(root).as_posix()!r}; {remedy}"]


def find_unreadable(files: Sequence[Path], in_channels: int) -> dict[Path, str]:
    """Decode files, JPEGs at an eighth of their size, and return the reason for each that cannot be decoded."""

    def what_is_wrong(path: Path) -> str | None:
        try:
            read_image(path, in_channels, small=1)
        except UnreadableImages as error:
            return error.broken[path]
        return None

    with one_thread(), ThreadPoolExecutor(DECODING_THREADS) as pool:
        found = zip(files, pool.map(what_is_wrong, files), strict=True)
        return {path: why for path, why in found if why is not None}


def check_readable(files: Sequence[Path], in_channels: int) -> None:
    """Decode files and discard the pixels.

    Raises:
        UnreadableImages: Some cannot be decoded; all of these are named.
    """
    if broken := find_unreadable(files, in_channels):
        raise UnreadableImages.of(broken)


def digest_files(files: Sequence[Path]) -> list[bytes]:
    """Return a digest of each file's bytes.

    Raises:
        UnreadableImages: One cannot be read.
    """

    def digest(path: Path) -> bytes:
        check_file(path)
        return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()

    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        return list(pool.map(digest, files))


class Duplicate(NamedTuple):
    """An image, and the first one with the same bytes."""

    split: str
    name: str
    label: int
    earlier_split: str
    earlier_name: str
    earlier_label: int


def find_duplicates(sets: Mapping[Any, Samples]) -> list[Duplicate]:
    """Find images that occur more than once.

    Args:
        sets: Images by set, in the order in which one is earlier than another. Files are compared byte for byte, and
            read only if another one has the same size.

    Returns:
        Each such image once, with the first one like it.
    """
    found = []
    first: dict[Hashable, tuple[str, str, int]] = {}
    contents = _contents(sets)
    for split, samples in sets.items():
        for content, name, label in zip(contents[split], samples.names, samples.labels.tolist(), strict=True):
            if content in first:
                found.append(Duplicate(split, name, label, *first[content]))
            elif content is not None:
                first[content] = (split, name, label)
    return found


def describe_duplicates(found: Iterable[Duplicate], class_names: Sequence[str]) -> list[str]:
    """Return a warning for each kind of duplicates: in two sets, of two classes, or of one class in one set."""
    in_two_sets, of_two_classes, within = [], [], []
    for split, name, label, earlier_split, earlier_name, earlier_label in found:
        if split != earlier_split:
            in_two_sets.append(f"{name} ({split}) = {earlier_name} ({earlier_split})")
        if label != earlier_label:
            classes = class_names[label], class_names[earlier_label]
            of_two_classes.append(f"{name} ({split}, {classes[0]}) = {earlier_name} ({earlier_split}, {classes[1]})")
        if (split, label) == (earlier_split, earlier_label):
            within.append(f"{name} = {earlier_name} ({split})")
    kinds = {
        "in more than one set, so that results look better than they are": in_two_sets,
        "of two classes, one of which must be wrong": of_two_classes,
        "within one class of a set, where the picture counts more than once": within,
    }
    shown = {where: pairs[:_SHOWN] + ["..."] * (len(pairs) > _SHOWN) for where, pairs in kinds.items() if pairs}
    return [f"{plural(len(kinds[where]), 'duplicate')} {where}: {', '.join(pairs)}" for where, pairs in shown.items()]


def _contents(sets: Mapping[Any, Samples]) -> dict[str, list[Hashable]]:
    """Return a key per image that is equal for equal images; None if no other file has the same size."""
    files = {split: samples.images for split, samples in sets.items() if isinstance(samples.images, list)}
    sizes = {path: path.stat().st_size for paths in files.values() for path in paths}
    files_of_size = Counter(sizes[path] for paths in files.values() for path in paths)
    alike = [path for path, size in sizes.items() if files_of_size[size] > 1]
    digests: dict[Path, Hashable] = dict(zip(alike, digest_files(alike), strict=True))
    contents: dict[str, list[Hashable]] = {}
    for split, samples in sets.items():
        if isinstance(samples.images, Tensor):
            head = (samples.images.dtype, samples.images.shape[1:])
            contents[split] = [(head, identity) for identity in samples.identify()]
        else:
            contents[split] = [digests.get(path) for path in samples.images]
    return contents
