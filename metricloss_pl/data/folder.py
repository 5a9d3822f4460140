"""Images in folders that are named after their classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from metricloss_pl.data.base import PART_NAMES, ImageDataModule, Part
from metricloss_pl.data.held_out import check_test_fraction, hold_out_test
from metricloss_pl.data.reading import IMAGE_EXTENSIONS, describe_unread, find_files, image_files, not_used
from metricloss_pl.data.samples import Samples
from metricloss_pl.errors import UserError


@dataclass(kw_only=True, eq=False, repr=False)
class ImageFolderDataModule(ImageDataModule):
    """A folder of images: `root/<class>/*`, or `root/train/<class>/*` and likewise `root/test` and perhaps `root/val`.

    The classes are the folders' names, sorted. Images may lie deeper inside a class's folder; hidden files and files
    that are no images are passed over (see `left_out`). A hierarchy of the classes may stand in `root/hierarchy.txt`.

    Args:
        root: The folder. `train` may also be called `training`, `val` `valid` or `validation`, and `test` `testing`.
        test_fraction: Share of the images that becomes the test part where `root` has none, in (0, 1); the same for
            every `seed`.
    """

    root: str
    test_fraction: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_test_fraction(self.test_fraction, self)
        self._root = Path(self.root).expanduser()
        self._folders = find_parts(self._root)
        self._class_names = common_classes(self._folders)

    @property
    def class_names(self) -> list[str]:
        """The names of the class folders, sorted; their order is the labels'."""
        return list(self._class_names)

    @property
    def hierarchy(self) -> str:
        """The file `hierarchy.txt` in `root`."""
        return str(self._root / "hierarchy.txt")

    def read(self, part: Part) -> Samples | None:
        """Lists the files of one part; a test part that is not there is cut from the training part.

        Raises:
            UserError: A class folder holds no image.
        """
        if part == "val" or "test" in self._folders:
            return self._list(part) if part in self._folders else None
        return hold_out_test(self._list("train"), part, self.test_fraction)

    def left_out(self) -> list[str]:
        """Says which files of unknown kinds, images beside the class folders and folders beside the parts go unused."""
        root, parts, classes = self._root, list(self._folders.values()), self._class_names
        loose = sorted(
            path
            for folder in {root, *parts}
            for path in find_files(folder, deep=False).files
            if path.suffix.lower() in IMAGE_EXTENSIONS
        )
        beside = [root / name for name in _subfolders(root)] if root not in parts else []
        unknown = [
            folder for folder in beside if folder not in parts and any((folder / name).is_dir() for name in classes)
        ]
        return [
            *describe_unread(root, [part / name for part in parts for name in classes], beside={root, *parts}),
            *not_used("image", "in no class's folder", "move or remove", loose, root),
            *not_used("folder", "of classes", "the parts are called train, val and test", unknown, root),
        ]

    def _list(self, part: Part) -> Samples:
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(self._class_names):
            of_class = image_files(self._folders[part] / name)
            files += of_class
            labels += [label] * len(of_class)
        names = [file.relative_to(self._root).as_posix() for file in files]
        return Samples(images=files, labels=torch.tensor(labels), names=names)


def find_parts(root: Path) -> dict[Part, Path]:
    """Finds the folder of each part; a folder of classes is a training part alone.

    A class may be called `train` or `test`: folders are parts where `train` and `test` are both there, or where
    `train` is and no folder has another name than a part.

    Raises:
        UserError: `root` is missing or has no sub-folders, or two of them are the same part.
    """
    names = _subfolders(root)
    if not names:
        raise UserError(f"{root} holds no folders: one folder a class is needed")
    of_lower = {PART_NAMES.get(name.lower()) for name in names}
    for name in names:
        if name not in PART_NAMES and name.lower() in PART_NAMES and "train" in of_lower:
            raise UserError(f"{root} holds {name}: a part's folder is written small, {name.lower()}; rename it")
    found = {PART_NAMES.get(name) for name in names}
    parts_only = "train" in found and None not in found
    if not parts_only and not {"train", "test"} <= found:
        return {"train": root}
    parts: dict[Part, Path] = {}
    for name in names:
        part = PART_NAMES.get(name)
        if part in parts:
            raise UserError(f"{root} holds both {parts[part].name} and {name}: one {part} folder is needed")
        if part is not None:
            parts[part] = root / name
    return parts


def common_classes(parts: dict[Part, Path]) -> list[str]:
    """Returns the sorted names of the class folders, which have to be the same in each part.

    Raises:
        UserError: A part has no class folders, or a class stands in one part but not in another.
    """
    classes = {part: _subfolders(folder) for part, folder in parts.items()}
    for part, folder in parts.items():
        if not classes[part]:
            raise UserError(f"{folder} holds no folders: one folder a class is needed")
    for part, folder in parts.items():
        for name in sorted(set(classes["train"]) ^ set(classes[part])):
            has, lacks = (parts["train"], folder) if name in classes["train"] else (folder, parts["train"])
            raise UserError(f"class {name!r} is in {has} but not in {lacks}: all parts need the same classes")
    return classes["train"]


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: a folder with one sub-folder a class is needed")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        if not name.isprintable():
            raise UserError(f"{folder} holds the folder {name!r}, whose name is no printable UTF-8: rename it")
    return names
