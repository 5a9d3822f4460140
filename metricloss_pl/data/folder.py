"""Images in folders that are named after their classes."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from metricloss_pl.data.file_checks import (
    RUN_MARKER,
    describe_left_out,
    find_files,
    image_files,
    is_hidden,
    is_image,
    not_used,
)
from metricloss_pl.data.samples import SPLIT_NAMES, Samples, Split
from metricloss_pl.data.test_split import HeldOutDataModule
from metricloss_pl.errors import UserError, plural, reason


@dataclass(kw_only=True, eq=False, repr=False)
class ImageFolderDataModule(HeldOutDataModule):
    """Folder of images: `root/<class>/*`, or `root/train/<class>/*` and likewise `root/test`, `root/val` or both.

    The classes are the sorted names of the folders, and images may lie deeper inside them. Hidden files, files that are
    no images, folders beside the sets and runs of this program are ignored (see `left_out`). A hierarchy of the classes
    may be in `root/hierarchy.txt`.

    Args:
        root: The folder. `train` may also be called `training`, `val` `valid` or `validation`, and `test` `testing`, in
            lower or upper case.
    """

    root: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self._root = Path(self.root).expanduser()
        self._listed: dict[Split, Samples] = {}
        self._folders = find_sets(self._root, self.classes)
        self._found_classes = find_classes(self._folders, trained=self.classes is None)

    @property
    def found_classes(self) -> list[str]:
        """Sorted names of the class folders."""
        return self._found_classes

    @property
    def hierarchy(self) -> str:
        """The file `hierarchy.txt` in `root`."""
        return str(self._root / "hierarchy.txt")

    @property
    def given_splits(self) -> list[Split]:
        """Sets that have a folder of their own."""
        return list(self._folders)

    def list_split(self, split: Split) -> Samples:
        """List the files of one set.

        Raises:
            UserError: A class folder of the training set has no image.
        """
        if split in self._listed:
            return self._listed[split]
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(self._found_classes):
            folder = self._folders[split] / name
            required = split == "train" and self.classes is None
            found = image_files(folder) if required or _holds_image(folder) else []
            files += found
            labels += [label] * len(found)
        names = [file.relative_to(self._root).as_posix() for file in files]
        self._listed[split] = Samples(images=files, labels=torch.tensor(labels, dtype=torch.int64), names=names)
        return self._listed[split]

    def left_out(self) -> list[str]:
        """Return warnings about unused files of unknown types, images outside class folders, folders and classes."""
        root, sets, classes = self._root, list(self._folders.values()), self._found_classes
        loose = sorted(
            path for folder in {root, *sets} for path in find_files(folder, deep=False).files if is_image(path)
        )
        beside = [root / name for name in _subfolders(root)] if root not in sets else []
        unknown = [folder for folder in beside if folder not in sets and _holds_image(folder)]
        class_folders = [folder / name for folder in sets for name in classes if (folder / name).is_dir()]
        return [
            *describe_left_out(root, class_folders, beside={root, *sets}),
            *not_used("image", "in no class folder", "move or remove", loose, root),
            *not_used("folder", "beside the sets", "sets are called train, val and test", unknown, root),
            *_describe_divided_classes(self._folders),
            *super().left_out(),
        ]


def find_sets(root: Path, classes: Collection[str] | None = None) -> dict[Split, Path]:
    """Return the folder of each set; a folder of classes is a training set alone.

    A class may be called `train` or `test`: folders are sets if `train` is there together with `val` or `test`, or if
    all folders are called like sets.

    Args:
        root: The folder.
        classes: Names of the classes, if they are known: then no training set is needed.

    Raises:
        UserError: The folder is missing or has no subfolder; two folders are one set; a training set is not recognized.
    """
    names = _subfolders(root)
    if not names:
        raise UserError(f"{root} has no subfolders: one folder per class is needed")
    sets: dict[Split, list[Path]] = {}
    for name in names:
        if name.lower() in SPLIT_NAMES:
            sets.setdefault(SPLIT_NAMES[name.lower()], []).append(root / name)
    others = [name for name in names if name.lower() not in SPLIT_NAMES]
    twice = next((folders for folders in sets.values() if len(folders) > 1), None)
    first = {split: folders[0] for split, folders in sets.items()}
    untrained = classes is not None and not ("train" in sets or others or twice or set(names) & set(classes))
    if untrained and not any(map(_holds_image_directly, first.values())):
        return first
    if "train" not in sets or (len(sets) == 1 and others):
        if "train" in sets and _is_set(first["train"]):
            raise UserError(
                f"{root} has {first['train'].name}, a folder of class folders, beside {others[0]}, which is no val or "
                f"test: move away what is not used, or give {first['train']}"
            )
        if len(names) == 1 and _is_set(root / names[0]):
            raise UserError(f"{root} has only the folder {names[0]}, which has class folders: give {root / names[0]}")
        return {"train": root}
    if twice is not None:
        raise UserError(f"{root} has both {twice[0].name} and {twice[1].name}: one folder per set is needed")
    return first


def find_classes(sets: dict[Split, Path], trained: bool = True) -> list[str]:
    """Return the sorted names of the class folders.

    Args:
        sets: Folder of each set.
        trained: Require a training folder of each class.

    Raises:
        UserError: A set has no class folders, or a class has no training folder.
    """
    classes = {split: _subfolders(folder) for split, folder in sets.items()}
    for split, folder in sets.items():
        if not classes[split]:
            raise UserError(f"{folder} has no subfolders: one folder per class is needed")
    for split, folder in sets.items():
        unknown = sorted(set(classes[split]) - set(classes["train"])) if trained else []
        if unknown:
            raise UserError(
                f"class {unknown[0]!r} is in {folder} but not in {sets['train']}: a class needs training images"
            )
    return sorted({name for names in classes.values() for name in names})


def _describe_divided_classes(sets: dict[Split, Path]) -> list[str]:
    """Return a warning if all class folders are divided alike, as sets of unknown names are."""
    folder = sets.get("train")
    classes = [] if folder is None else [folder / name for name in _subfolders(folder)]
    if not classes or not all(map(_is_set, classes)):
        return []
    shared = sorted(set.intersection(*(set(_subfolders(path)) for path in classes)))
    if len(shared) < 2:
        return []
    return [
        f"each of the {plural(len(classes), 'class')} in {folder} has the folders {shared[0]!r} and {shared[1]!r}: if "
        "these are the classes, call the folders above them train, val and test, or give one of them"
    ]


def _is_set(folder: Path) -> bool:
    """Return whether a folder looks like one of class folders: images in two folders or more, none directly."""
    if _holds_image_directly(folder):
        return False
    return sum(_holds_image(folder / name) for name in _subfolders(folder)) > 1


def _holds_image(folder: Path) -> bool:
    return folder.is_dir() and (_holds_image_directly(folder) or any(map(is_image, find_files(folder).files)))


def _holds_image_directly(folder: Path) -> bool:
    """Return whether an image lies in a folder itself, without listing all of it."""
    with suppress(OSError), os.scandir(folder) as entries:
        return any(is_image(Path(entry.name)) and not is_hidden(entry.name) and entry.is_file() for entry in entries)
    return False


def _holds_only_runs(folder: Path) -> bool:
    """Return whether a folder is, or contains, folders of runs, and has no image beside them."""
    if (folder / RUN_MARKER).is_file():
        return True
    if _holds_image_directly(folder):
        return False
    found = find_files(folder)
    return bool(found.runs) and not any(map(is_image, found.files))


def _subfolders(folder: Path) -> list[str]:
    """Return the sorted names of the folders within one, without hidden ones and those of runs."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: data.root must be a folder with one subfolder per class")
    try:
        with os.scandir(folder) as entries:
            paths = [folder / entry.name for entry in entries if not is_hidden(entry.name)]
        found = [path for path in paths if path.is_dir()]  # false for a link to itself
    except OSError as error:
        raise UserError(f"folder {folder} can't be opened ({reason(error)}): allow reading it") from error
    unusable = find_files(folder, deep=False).unusable if any(path.is_symlink() for path in found) else []
    names = sorted(path.name for path in found if path not in unusable and not _holds_only_runs(path))
    not_utf8 = [name for name in names if name.encode(errors="replace").decode() != name]
    if not_utf8:  # TensorBoard and `load` need text
        raise UserError(f"{folder} has the folder {not_utf8[0]!r}, whose name is not UTF-8: rename it")
    return names
