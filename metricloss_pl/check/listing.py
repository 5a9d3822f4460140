"""Images and labels to check, from a folder or a CSV list, whatever is wrong with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from metricloss_pl.data.file_checks import find_files, is_image, not_used
from metricloss_pl.data.folder import ImageFolderDataModule, find_classes, find_sets
from metricloss_pl.data.lists import check_rows, read_csv, sorted_classes
from metricloss_pl.data.samples import Split
from metricloss_pl.errors import UserError

__all__ = ["Entry", "Listing", "list_entries"]


class Entry(NamedTuple):
    """One image."""

    path: Path
    name: str  # as in the predictions of a comparison
    label: str
    split: Split
    group: str  # empty without groups


class Listing(NamedTuple):
    """Images and classes of a folder or list."""

    entries: list[Entry]
    class_names: list[str]
    is_divided: bool  # into sets, by folders or the column `split`
    is_grouped: bool
    warnings: list[str]  # about unused files


def list_entries(source: str | Path, images_dir: str | Path | None = None) -> Listing:
    """List the images of a folder, as `ImageFolderDataModule` does, or of a CSV file, as `ImageListDataModule`.

    Files that do not exist are listed, too, and classes need no images.

    Args:
        source: The folder or list.
        images_dir: Folder that the files of a list start from. None: the folder of the list.

    Raises:
        UserError: There is no such folder or list, or it has another structure.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _list_folder(path)
    if not path.exists():
        raise UserError(
            f"{source}: there is no such folder or list; a folder of images or a CSV list of them is needed"
        )
    if path.suffix.lower() != ".csv":
        raise UserError(f"{source} cannot be checked: a folder of images or a CSV list of them is needed")
    root = path.parent if images_dir is None else Path(images_dir).expanduser()
    rows = read_csv(path, root)
    check_rows(path, rows, trained=False)
    entries = [Entry(row.path, row.file, row.label, row.split, row.group[0]) for row in rows]
    is_grouped = any(entry.group for entry in entries)
    is_divided = {entry.split for entry in entries} != {"train"}
    class_names = sorted_classes(entry.label for entry in entries)
    return Listing(entries, class_names, is_divided, is_grouped, _describe_unlisted(entries, root))


def _describe_unlisted(entries: list[Entry], root: Path) -> list[str]:
    """Return a warning if there are images beside the listed ones in `root`."""
    listed = {os.path.normpath(entry.path) for entry in entries}
    folders = {entry.path.parent for entry in entries if entry.path.is_relative_to(root)}
    beside = [file for folder in folders for file in find_files(folder, deep=False).files]
    unlisted = sorted(file for file in filter(is_image, beside) if os.path.normpath(file) not in listed)
    return not_used("image", "beside the listed ones", "add to the list, or move away", unlisted, root)


def _list_folder(root: Path) -> Listing:
    class_names = find_classes(find_sets(root), trained=False)
    data = ImageFolderDataModule(root=str(root), classes=class_names)
    entries = []
    for split in data.given_splits:
        samples = data.list_split(split)
        labels = [class_names[label] for label in samples.labels.tolist()]
        for path, name, label in zip(samples.files, samples.names, labels, strict=True):
            entries.append(Entry(path, name, label, split, ""))
    if not entries:
        raise UserError(f"no image in {root}: one folder of images per class is needed")
    return Listing(entries, class_names, set(data.given_splits) != {"train"}, False, data.left_out())
