"""Images and labels listed in a CSV file."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from metricloss_pl.data.samples import SPLIT_NAMES, Samples, Split, path_identity
from metricloss_pl.data.splits import group_numbers
from metricloss_pl.data.test_split import HeldOutDataModule
from metricloss_pl.errors import UserError, reason

_COLUMNS = ("file", "label", "split", "group")  # others are ignored


@dataclass(kw_only=True, eq=False, repr=False)
class ImageListDataModule(HeldOutDataModule):
    """A CSV file that lists images: columns `file` and `label`, and if wanted `split` and `group`; others are ignored.

    A label is a class's name or a number; the classes are sorted, by value where all are whole numbers. `split` is
    train, val or test. Images with the same `group` (a patient, a place) never stand on two sides of a split; an image
    without one is a group of its own.

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
        self._rows = read_rows(file, self._root)
        check_sets(file, self._rows, trained=self.classes is None)
        self._found_classes = sorted_classes(row.label for row in self._rows)
        self._grouped = len({row.group for row in self._rows}) < len(self._rows)

    @property
    def found_classes(self) -> list[str]:
        """The labels as text, sorted."""
        return self._found_classes

    @property
    def given_splits(self) -> list[Split]:
        """The sets that the list names."""
        return sorted({row.split for row in self._rows})

    def list_split(self, split: Split) -> Samples:
        """List the files of one set."""
        samples = samples_of(self._rows, split, self._found_classes, self._root)
        if not self._grouped:
            return samples
        rows = [row for row in self._rows if row.split == split]
        names = [  # an image that stands alone is known by itself
            f"group {row.group[0]}" if row.group[0] else f"image {identity}"
            for row, identity in zip(rows, samples.identify(), strict=True)
        ]
        return replace(samples, groups=torch.from_numpy(group_numbers(names)))


class Row(NamedTuple):
    """One line of a list."""

    place: str  # for messages
    file: str  # as written
    path: Path
    label: str
    split: Split
    group: tuple[str, int]  # its name; or no name and a number of its own, where the image stands alone


def samples_of(rows: list[Row], split: Split, class_names: list[str], root: Path) -> Samples:
    """Return the images of one split, known by their paths from `root`; a label is its text's position in the names."""
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


def read_rows(file: Path, root: Path) -> list[Row]:
    """Reads and checks the lines of a list.

    Args:
        file: The CSV file.
        root: Folder that its entries start from.

    Raises:
        UserError: The list cannot be read or is empty; a column is missing; a line has no file or label, more entries
            than there are columns, an unknown split, a file that does not exist or that an earlier line has already.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            head = stream.readline()
            stream.seek(0)
            delimiter = ";" if ";" in head and "," not in head else ","  # as spreadsheets write it in many countries
            reader = csv.DictReader(stream, skipinitialspace=True, delimiter=delimiter)
            columns = [name.strip().lower() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            for column in _COLUMNS:
                if columns.count(column) > 1:
                    raise UserError(f"{file}, line 1: two columns {column!r}: each needs a name of its own")
            for column in ("file", "label"):
                if column not in columns:
                    raise UserError(
                        f"{file}, line 1: no column {column!r}; its columns are {', '.join(columns) or 'none'}"
                    )
            rows = [_row(file, reader.line_num, cells, root) for cells in reader if _has_text(cells.values())]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a CSV file in UTF-8: {reason(error)}") from error
    if not rows:
        raise UserError(f"{file} lists no image: one line an image is needed below its head")
    check_unique(rows)
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
    path = root / text["file"]
    if not path.is_file():
        raise UserError(f"{place}: no file {path}")
    group = text.get("group", "")
    return Row(place, text["file"], path, text["label"], SPLIT_NAMES[split.lower()], (group, 0 if group else line))


def check_unique(rows: list[Row]) -> None:
    """Checks that no image is listed twice.

    Raises:
        UserError: One is.
    """
    first: dict[str, Row] = {}
    for row in rows:
        earlier = first.setdefault(os.path.normpath(row.path), row)
        if earlier is not row:
            raise UserError(f"{row.place}: {row.file} is listed already, in {_seen_from(row, earlier)}")


def _seen_from(row: Row, other: Row) -> str:
    """The place of `other`: in the same file its line is enough."""
    file, _, line = other.place.rpartition(", ")
    return line if row.place.startswith(f"{file}, ") else other.place


def check_sets(file: Path, rows: list[Row], trained: bool = True) -> None:
    """Check the given split.

    Args:
        file: The list, for messages.
        rows: Its lines.
        trained: Require training images, of each class.

    Raises:
        UserError: No image is for training; a group stands in two sets; a class of another split has no training image.
    """
    known = {row.label for row in rows if row.split == "train"}
    if trained and not known:
        raise UserError(f"{file}: no line has the split 'train'")
    first: dict[tuple[str, int], Row] = {}
    for row in rows:
        other = first.setdefault(row.group, row)
        if other.split != row.split:
            raise UserError(
                f"{row.place}: group {row.group[0]!r} is in {row.split}, "
                f"but in {_seen_from(row, other)} in {other.split}: a group stays in one split"
            )
        if trained and row.label not in known:
            raise UserError(f"{row.place}: class {row.label!r} is in {row.split}, but in no line of train")


def sorted_classes(labels: Iterable[str]) -> list[str]:
    """Returns the different labels in order: by value where all are whole numbers, else as text."""
    names = set(labels)
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
