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

from metricloss_pl.data.base import PART_NAMES, ImageDataModule, Part
from metricloss_pl.data.held_out import check_test_fraction, hold_out_test
from metricloss_pl.data.samples import Samples
from metricloss_pl.errors import UserError, reason

_COLUMNS = ("file", "label", "split", "group")  # others are ignored


@dataclass(kw_only=True, eq=False, repr=False)
class ImageListDataModule(ImageDataModule):
    """A CSV file that lists images: columns `file` and `label`, and if wanted `split` and `group`; others are ignored.

    A label is a class's name or a number; the classes are sorted, by value where all are whole numbers. `split` is
    train, val or test. Images with the same `group` (a patient, a place) never stand on two sides of a split; an image
    without one is a group of its own.

    Args:
        csv: The CSV file, separated by commas or semicolons, UTF-8.
        images_dir: Folder that the `file` entries start from. None: the folder of the CSV file.
        test_fraction: Share of the images that becomes the test part where none is marked as such, in (0, 1); the same
            for every `seed`.
    """

    csv: str
    images_dir: str | None = None
    test_fraction: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_test_fraction(self.test_fraction, self)
        file = Path(self.csv).expanduser()
        self._rows = read_rows(file, file.parent if self.images_dir is None else Path(self.images_dir).expanduser())
        check_parts(file, self._rows)
        self._class_names = sorted_classes(row.label for row in self._rows)
        numbers = {name: number for number, name in enumerate(dict.fromkeys(row.group for row in self._rows))}
        self._group_numbers = numbers if len(numbers) < len(self._rows) else None  # None: no two belong together

    @property
    def class_names(self) -> list[str]:
        """The labels as text, sorted; their order is the labels' numbers."""
        return list(self._class_names)

    def read(self, part: Part) -> Samples | None:
        """Returns the files of one part; where the list marks none for test, they are cut from those for training."""
        present = {row.part for row in self._rows}
        if part == "val" or "test" in present:
            return self._list(part) if part in present else None
        return hold_out_test(self._list("train"), part, self.test_fraction)

    def _list(self, part: Part) -> Samples:
        samples, groups = samples_of(self._rows, part, self._class_names), self._group_numbers
        if groups is None:
            return samples
        return replace(samples, groups=torch.tensor([groups[row.group] for row in self._rows if row.part == part]))


class Row(NamedTuple):
    """One line of a list."""

    place: str  # for messages
    file: str  # as written
    path: Path
    label: str
    part: Part
    group: tuple[str, int]  # its name; or no name and a number of its own, where the image stands alone


def samples_of(rows: list[Row], part: Part, class_names: list[str]) -> Samples:
    """Returns the images of one part; a label is the position of its text in `class_names`."""
    position = {name: label for label, name in enumerate(class_names)}
    chosen = [row for row in rows if row.part == part]
    return Samples(
        images=[row.path for row in chosen],
        labels=torch.tensor([position[row.label] for row in chosen], dtype=torch.int64),
        names=[row.file for row in chosen],
    )


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
    if split.lower() not in PART_NAMES:
        raise UserError(f"{place}: unknown split {split!r}; {', '.join(PART_NAMES)} are known")
    path = root / text["file"]
    if not path.is_file():
        raise UserError(f"{place}: no file {path}")
    group = text.get("group", "")
    return Row(place, text["file"], path, text["label"], PART_NAMES[split.lower()], (group, 0 if group else line))


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


def check_parts(file: Path, rows: list[Row]) -> None:
    """Checks the given split.

    Raises:
        UserError: No image is for training; a group stands in two parts; a class of another part has no training image.
    """
    trained = {row.label for row in rows if row.part == "train"}
    if not trained:
        raise UserError(f"{file}: no line has the split 'train'")
    first: dict[tuple[str, int], Row] = {}
    for row in rows:
        other = first.setdefault(row.group, row)
        if other.part != row.part:
            raise UserError(
                f"{row.place}: group {row.group[0]!r} is in {row.part}, "
                f"but in {_seen_from(row, other)} in {other.part}: a group stays in one part"
            )
        if row.label not in trained:
            raise UserError(f"{row.place}: class {row.label!r} is in {row.part}, but in no line of train")


def sorted_classes(labels: Iterable[str]) -> list[str]:
    """Returns the different labels in order: by value where all are whole numbers, else as text."""
    names = set(labels)
    if all(re.fullmatch(r"[+-]?[0-9]{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
