"""Images and labels that are listed in a CSV file, or in one text file per set."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from metricloss_pl.data.file_checks import is_image
from metricloss_pl.data.index_files import read_list
from metricloss_pl.data.samples import SPLIT_NAMES, Samples, Split, path_identity
from metricloss_pl.data.splits import group_numbers
from metricloss_pl.data.test_split import HeldOutDataModule
from metricloss_pl.errors import UserError, plural, reason

_COLUMNS = ("file", "label", "split", "group")  # others are ignored


class Row(NamedTuple):
    """One line of a list."""

    place: str  # for messages
    file: str  # as written
    path: Path
    label: str
    split: Split
    group: tuple[str, int]  # its name; or no name and a number of its own, for an image without a group


@dataclass(kw_only=True, eq=False, repr=False)
class ImageListDataModule(HeldOutDataModule):
    """CSV file that lists images: columns `file` and `label`, optionally `split` and `group`; others are ignored.

    A label is a class's name or a number; the classes are sorted, by value if all are whole numbers. `split` is train,
    val or test. Images with the same `group` (a patient, a place) are never on two sides of a split; an image without
    one is a group of its own.

    Args:
        csv: The CSV file, separated by commas or semicolons, UTF-8.
        images_dir: Folder that the `file` entries start from. None: the folder of the CSV file.
    """

    csv: str
    images_dir: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        file = Path(self.csv).expanduser()
        self._root = file.parent if self.images_dir is None else Path(self.images_dir).expanduser()
        self._rows = read_csv(file, self._root)
        _check_files(self._rows)
        check_rows(file, self._rows, trained=self.classes is None)
        self._found_classes = sorted_classes(row.label for row in self._rows)
        self._grouped = len({row.group for row in self._rows}) < len(self._rows)

    @property
    def found_classes(self) -> list[str]:
        """Sorted labels as text."""
        return self._found_classes

    @property
    def given_splits(self) -> list[Split]:
        """Sets that the list names."""
        return sorted({row.split for row in self._rows})

    def list_split(self, split: Split) -> Samples:
        """List the files of one set."""
        samples = samples_of(self._rows, split, self._found_classes, self._root)
        if not self._grouped:
            return samples
        rows = [row for row in self._rows if row.split == split]
        names = [  # an image without a group is identified by itself
            f"group {row.group[0]}" if row.group[0] else f"image {identity}"
            for row, identity in zip(rows, samples.identify(), strict=True)
        ]
        return replace(samples, groups=torch.from_numpy(group_numbers(names)))


@dataclass(kw_only=True, eq=False, repr=False)
class FileListDataModule(HeldOutDataModule):
    """Folder of images with one list per set, of lines `<file> <label>`, such as those of cvjena/deic.

    A file may be written without its extension. A label is a class's name or a number; the classes are sorted, by value
    if all are whole numbers.

    Args:
        root: Folder that the lists' files start from.
        train: List of the training images.
        val: List of the validation images. None: they are cut from those for training.
        test: List of the test images. None: they are cut from those for training.
        test_root: Folder that the test list's files start from. None: `root`.
    """

    root: str
    train: str
    val: str | None = None
    test: str | None = None
    test_root: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._folder = Path(self.root).expanduser()
        roots = {"test": self._folder if self.test_root is None else Path(self.test_root).expanduser()}
        lists: dict[Split, str | None] = {"train": self.train, "val": self.val, "test": self.test}
        self._lists = {split: Path(file).expanduser() for split, file in lists.items() if file is not None}
        self._rows = read_file_lists(
            [(split, file, roots.get(split, self._folder)) for split, file in self._lists.items()],
            trained=self.classes is None,
        )
        self._found_classes = sorted_classes(row.label for row in self._rows)

    @property
    def found_classes(self) -> list[str]:
        """Sorted labels as text."""
        return self._found_classes

    @property
    def given_splits(self) -> list[Split]:
        """Sets that have a list."""
        return list(self._lists)

    def list_split(self, split: Split) -> Samples:
        """List the files of one set."""
        return samples_of(self._rows, split, self._found_classes, self._folder)


def samples_of(rows: list[Row], split: Split, class_names: list[str], root: Path) -> Samples:
    """Return the images of one set, identified by their paths from `root`; labels are positions in `class_names`."""
    position = {name: label for label, name in enumerate(class_names)}
    chosen = [row for row in rows if row.split == split]
    return Samples(
        images=[row.path for row in chosen],
        labels=torch.tensor([position[row.label] for row in chosen], dtype=torch.int64),
        names=[row.file for row in chosen],
        identities=[_identity(row.path, root) for row in chosen],
    )


def _identity(path: Path, root: Path) -> str:
    text, start = str(path), f"{root}{os.sep}"
    if text.startswith(start) and ".." not in text:  # relpath takes ten times as long
        return path_identity(text.removeprefix(start))
    try:
        return path_identity(os.path.relpath(path, root))
    except ValueError:  # on another drive
        return path_identity(text)


def read_csv(file: Path, root: Path) -> list[Row]:
    """Read and check the lines of a CSV file; the images may be missing.

    Raises:
        UserError: The list cannot be read or is empty; a column is missing; a line has no file or label, more entries
            than there are columns, or an unknown split.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            head = stream.readline()
            stream.seek(0)
            delimiter = ";" if ";" in head and "," not in head else ","  # as spreadsheets write it in many countries
            reader = csv.DictReader(stream, skipinitialspace=True, delimiter=delimiter)
            columns = reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
            for column in _COLUMNS:
                if columns.count(column) > 1:
                    raise UserError(f"{file}, line 1: two columns {column!r}: each needs a name of its own")
                if column not in columns and column in ("file", "label"):
                    raise UserError(
                        f"{file}, line 1: no column {column!r}; its columns are {', '.join(columns) or 'none'}"
                    )
            rows = [_row(file, reader.line_num, cells, root) for cells in reader if _has_text(cells.values())]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {reason(error)}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a CSV file in UTF-8: {reason(error)}") from error
    if not rows:
        raise UserError(f"{file} lists no image: one line per image is needed below its head")
    return rows


def _has_text(entries: Iterable[str | list[str] | None]) -> bool:
    """Return whether a line has any entry; `csv` lists those beyond the last column."""
    return any("".join(entry or "").strip() for entry in entries)


def _row(file: Path, line: int, cells: dict[str | None, str | None], root: Path) -> Row:
    place = f"{file}, line {line}"
    if _has_text([cells.pop(None, None)]):
        raise UserError(f"{place}: more entries than columns; an entry with a comma needs quotes")
    text = {column: (entry or "").strip() for column, entry in cells.items()}
    for column in ("file", "label"):
        if not text[column]:
            raise UserError(f"{place}: no {column}")
    split = text.get("split", "train")
    if split.lower() not in SPLIT_NAMES:
        raise UserError(f"{place}: unknown split {split!r}; {', '.join(SPLIT_NAMES)} are known")
    group = text.get("group", "")
    path, found_split = root / text["file"], SPLIT_NAMES[split.lower()]
    return Row(place, text["file"], path, text["label"], found_split, (group, 0 if group else line))


def _check_files(rows: list[Row]) -> None:
    """Check that the image of each line exists."""
    missing = [row for row in rows if not row.path.is_file()]
    if missing:
        more = f", and none for {plural(len(missing) - 1, 'other line')}" if len(missing) > 1 else ""
        raise UserError(f"{missing[0].place}: no file {missing[0].path}{more}")


def read_file_lists(lists: Sequence[tuple[Split, Path, Path]], trained: bool = True) -> list[Row]:
    """Read and check the lists of a data set.

    Args:
        lists: Set, list, and folder that its files start from.
        trained: Require a training image of each class.

    Raises:
        UserError: A list cannot be read or is empty; a line has no label, a file that does not exist or that another
            line has already, or a class that is not in the training list.
    """
    rows: list[Row] = []
    listings: dict[Path, dict[str, list[Path]]] = {}
    for split, file, root in lists:
        for place, name, label in read_list(file):
            path = root / name
            if path.parent not in listings:
                listings[path.parent] = _files_by_name(path.parent)
            found = listings[path.parent].get(path.name, [])
            if len(found) != 1:
                which = f"{len(found)} files of that name" if found else "no file"
                raise UserError(f"{place}: {which} {path}")
            rows.append(Row(place, name, found[0], label, split, ("", len(rows))))
    check_rows(lists[0][1], rows, trained)
    return rows


def _files_by_name(folder: Path) -> dict[str, list[Path]]:
    """Return the files of a folder by their names, and its images also by their names without the extension."""
    files = sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    found: dict[str, list[Path]] = {}
    for file in filter(is_image, files):
        found.setdefault(file.stem, []).append(file)
    return found | {file.name: [file] for file in files}


def check_rows(file: Path, rows: list[Row], trained: bool) -> None:
    """Check that images are listed once, that groups are in one set, and that each class is trained on."""
    known = {row.label for row in rows if row.split == "train"}
    if trained and not known:
        raise UserError(f"{file}: no line has the split 'train'")
    first_of_file: dict[str, Row] = {}
    first_of_group: dict[tuple[str, int], Row] = {}
    for row in rows:
        other = first_of_file.setdefault(os.path.normpath(row.path), row)
        if other is not row:
            raise UserError(f"{row.place}: {row.file} is listed already, in {_seen_from(row, other)}")
        other = first_of_group.setdefault(row.group, row)
        if other.split != row.split:
            raise UserError(
                f"{row.place}: group {row.group[0]!r} is in {row.split}, but in {_seen_from(row, other)} in "
                f"{other.split}: a group belongs to one set"
            )
        if trained and row.label not in known:
            raise UserError(f"{row.place}: class {row.label!r} is in {row.split}, but in no line of train")


def _seen_from(row: Row, other: Row) -> str:
    """Return the place of `other`; in the same file its line is enough."""
    file, _, line = other.place.rpartition(", ")
    return line if row.place.startswith(f"{file}, ") else other.place


def sorted_classes(labels: Iterable[str]) -> list[str]:
    """Return the different labels in order: by value if all are whole numbers, else as text."""
    names = set(labels)
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
