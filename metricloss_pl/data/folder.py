"""Images in folders that are named after their classes."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from metricloss_pl.data.base import PART_NAMES, Part
from metricloss_pl.data.reading import (
    IMAGE_EXTENSIONS,
    describe_unread,
    find_files,
    image_files,
    is_output,
    is_passed_over,
    not_used,
)
from metricloss_pl.data.samples import Samples
from metricloss_pl.data.test_split import HeldOutDataModule
from metricloss_pl.errors import UserError, reason


@dataclass(kw_only=True, eq=False, repr=False)
class ImageFolderDataModule(HeldOutDataModule):
    """A folder of images: `root/<class>/*`, or `root/train/<class>/*` and likewise `root/test`, `root/val` or both.

    The classes are the folders' names, sorted. Images may lie deeper inside a class's folder; hidden files and files
    that are no images are passed over, as are folders beside the sets' and the runs that this program writes (see
    `left_out`). A hierarchy of the classes may stand in `root/hierarchy.txt`.

    Args:
        root: The folder. `train` may also be called `training`, `val` `valid` or `validation`, and `test` `testing`, in
            small or capital letters.
    """

    root: str

    def __post_init__(self) -> None:
        super().__post_init__()
        self._root = Path(self.root).expanduser()
        self._listed: dict[Part, Samples] = {}
        self._folders = find_parts(self._root, self.classes)
        self._found_classes = find_classes(self._folders, trained=self.classes is None)

    @property
    def found_classes(self) -> list[str]:
        """The names of the class folders, sorted."""
        return self._found_classes

    @property
    def hierarchy(self) -> str:
        """The file `hierarchy.txt` in `root`."""
        return str(self._root / "hierarchy.txt")

    @property
    def given(self) -> list[Part]:
        """The sets that have a folder of their own."""
        return list(self._folders)

    def list_part(self, part: Part) -> Samples:
        """List the files of one set.

        Raises:
            UserError: A class folder of the training set holds no image.
        """
        if part in self._listed:
            return self._listed[part]
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(self._found_classes):
            folder = self._folders[part] / name
            required = part == "train" and self.classes is None
            of_class = image_files(folder) if required or _holds_image(folder) else []
            files += of_class
            labels += [label] * len(of_class)
        names = [file.relative_to(self._root).as_posix() for file in files]
        self._listed[part] = Samples(images=files, labels=torch.tensor(labels, dtype=torch.int64), names=names)
        return self._listed[part]

    def left_out(self) -> list[str]:
        """Say which files of unknown kinds, images beside the class folders, folders and classes go unused."""
        root, parts, classes = self._root, list(self._folders.values()), self._found_classes
        loose = sorted(
            path
            for folder in {root, *parts}
            for path in find_files(folder, deep=False).files
            if path.suffix.lower() in IMAGE_EXTENSIONS
        )
        beside = [root / name for name in _subfolders(root)] if root not in parts else []
        unknown = [folder for folder in beside if folder not in parts and _holds_image(folder)]
        class_folders = [part / name for part in parts for name in classes if (part / name).is_dir()]
        return [
            *describe_unread(root, class_folders, beside={root, *parts}),
            *not_used("image", "in no class's folder", "move or remove", loose, root),
            *not_used("folder", "beside the sets", "these are called train, val and test", unknown, root),
            *_describe_sets_as_classes(self._folders),
            *super().left_out(),
        ]


def find_parts(root: Path, classes: Collection[str] | None = None) -> dict[Part, Path]:
    """Find the folder of each set; a folder of classes is a training set alone.

    A class may be called `train` or `test`: folders are sets where `train` is there together with `val` or `test`, or
    where no folder has another name than a set.

    Args:
        root: The folder.
        classes: Known classes: a folder of other sets than a training set will do. None: they are to be found.

    Raises:
        UserError: `root` is missing or has no sub-folders, two of them are the same set, or `train` may be a set as
            well as a class.
    """
    names = _subfolders(root)
    if not names:
        raise UserError(f"{root} holds no folders: one folder per class is needed")
    parts: dict[Part, Path] = {}
    twice = None
    for name in names:
        part = PART_NAMES.get(name.lower())
        if part in parts:
            twice = twice or f"{root} holds both {parts[part].name} and {name}: one {part} folder is needed"
        elif part is not None:
            parts[part] = root / name
    others = [name for name in names if name.lower() not in PART_NAMES]
    untrained = classes is not None and not ("train" in parts or others or twice or set(names) & set(classes))
    if untrained and not any(map(_holds_image_directly, parts.values())):
        return parts
    if "train" not in parts or (len(parts) == 1 and others):
        if "train" in parts and _is_set(parts["train"]):
            raise UserError(
                f"{root} holds {parts['train'].name}, which is divided into folders as a training set is, beside "
                f"{others[0]}, which is no val or test: move away what is not used, or give {parts['train']} itself"
            )
        if len(names) == 1 and len(within := _subfolders(root / names[0])) > 1 and _is_set(root / names[0]):
            raise UserError(
                f"{root} holds one folder, {names[0]}, with {within[0]} and {within[1]} in it: give {root / names[0]}"
            )
        return {"train": root}
    if twice is not None:
        raise UserError(twice)
    return parts


def find_classes(parts: dict[Part, Path], trained: bool = True) -> list[str]:
    """Return the sorted names of the class folders.

    Args:
        parts: The folder of each set.
        trained: Require a training folder of each class.

    Raises:
        UserError: A set has no class folders, or a class has no training folder.
    """
    classes = {part: _subfolders(folder) for part, folder in parts.items()}
    for part, folder in parts.items():
        if not classes[part]:
            raise UserError(f"{folder} holds no folders: one folder per class is needed")
    for part, folder in parts.items():
        for name in classes[part]:
            if trained and name not in classes["train"]:
                raise UserError(
                    f"class {name!r} is in {folder} but not in {parts['train']}: a class needs training images"
                )
    return sorted({name for of_part in classes.values() for name in of_part})


def _describe_sets_as_classes(parts: dict[Part, Path]) -> list[str]:
    """Return the line on class folders that are all divided into folders of the same names, or none."""
    folders = [parts["train"] / name for name in _subfolders(parts["train"])] if "train" in parts else []
    if not folders or any(map(_holds_image_directly, folders)):
        return []
    within = [set(_subfolders(folder)) for folder in folders]
    shared = sorted(set.intersection(*within))
    if len(shared) < 2 or not all(_is_set(folder) for folder in folders):
        return []
    return [
        f"the folders of all {len(folders)} classes hold the folders {shared[0]!r} and {shared[1]!r}: if these are the "
        f"classes, call the folders above them train, val and test, or give one of them as root"
    ]


def _is_set(folder: Path) -> bool:
    """Return whether a folder looks like one of class folders: with images in two folders or more, none directly."""
    if _holds_image_directly(folder):
        return False
    return sum(_holds_image(folder / name) for name in _subfolders(folder)) > 1


def _holds_image(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    if _holds_image_directly(folder):
        return True
    return any(path.suffix.lower() in IMAGE_EXTENSIONS for path in find_files(folder).files)


def _holds_image_directly(folder: Path) -> bool:
    """Return whether an image lies in a folder itself; the first that is met decides."""
    with suppress(OSError), os.scandir(folder) as entries:
        return any(
            Path(entry.name).suffix.lower() in IMAGE_EXTENSIONS and not is_passed_over(entry.name) and entry.is_file()
            for entry in entries
        )
    return False


def _holds_outputs_alone(folder: Path) -> bool:
    """Return whether a folder is like the program's own `runs`: with runs or comparisons in it, and no other image."""
    if _holds_image_directly(folder):  # a class; its many files are not looked at
        return False
    within = _folders_in(folder)
    if not any(map(is_output, within)):
        within = [path for between in within if not _holds_image_directly(between) for path in _folders_in(between)]
        if not any(map(is_output, within)):
            return False
    return not _holds_image(folder)


def _folders_in(folder: Path) -> list[Path]:
    """Return the folders and links to folders within one, but for those that are hidden; none where it is closed."""
    with suppress(OSError), os.scandir(folder) as entries:
        return [folder / entry.name for entry in entries if entry.is_dir() and not is_passed_over(entry.name)]
    return []


def _subfolders(folder: Path) -> list[str]:
    """Return the names of the folders within one, sorted, but for those that are hidden or that this program wrote."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: a folder with one sub-folder per class is needed")
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except OSError as error:
        raise UserError(f"folder {folder} can't be opened ({reason(error)}): allow reading it") from error
    found = _folders_in(folder)
    loops = find_files(folder, deep=False).unusable["loop"] if any(path.is_symlink() for path in found) else []
    names = sorted(
        path.name for path in found if path not in loops and not (is_output(path) or _holds_outputs_alone(path))
    )
    for name in names:
        if not name.isprintable():
            raise UserError(f"{folder} holds the folder {name!r}, whose name is no printable UTF-8: rename it")
    return names
