"""Images and labels listed in one text file a part, with lines `<file> <label>`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metricloss_pl.data.base import ImageDataModule, Part
from metricloss_pl.data.held_out import check_test_fraction, hold_out_test
from metricloss_pl.data.image_list import Row, check_parts, check_unique, samples_of, sorted_classes
from metricloss_pl.data.index_files import read_list
from metricloss_pl.data.reading import IMAGE_EXTENSIONS
from metricloss_pl.data.samples import Samples
from metricloss_pl.errors import UserError


@dataclass(kw_only=True, eq=False, repr=False)
class FileListDataModule(ImageDataModule):
    """Any folder of images, and one list a part with lines `<file> <label>`, such as those of cvjena/deic.

    A file may be written without its extension. A label is a class's name or a number; the classes are sorted, by value
    where all are whole numbers.

    Args:
        root: Folder that the lists' files start from.
        train: List of the training images.
        val: List of the validation images. None: they are cut from those for training.
        test: List of the test images. None: they are cut from those for training.
        test_root: Folder that the test list's files start from. None: `root`.
        test_fraction: Share of the training images that becomes the test part where there is no `test`, in (0, 1); the
            same for every `seed`.
    """

    root: str
    train: str
    val: str | None = None
    test: str | None = None
    test_root: str | None = None
    test_fraction: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_test_fraction(self.test_fraction, self)
        root = Path(self.root).expanduser()
        roots = {"test": root if self.test_root is None else Path(self.test_root).expanduser()}
        lists: dict[Part, str | None] = {"train": self.train, "val": self.val, "test": self.test}
        self._rows = read_file_lists(
            [(part, Path(file).expanduser(), roots.get(part, root)) for part, file in lists.items() if file is not None]
        )
        self._class_names = sorted_classes(row.label for row in self._rows)

    @property
    def class_names(self) -> list[str]:
        """The labels as text, sorted; their order is the labels' numbers."""
        return list(self._class_names)

    def read(self, part: Part) -> Samples | None:
        """Returns the files of one part; where there is no test list, they are cut from those for training."""
        given = {"train": self.train, "val": self.val, "test": self.test}[part]
        if part == "val" or self.test is not None:
            return None if given is None else samples_of(self._rows, part, self._class_names)
        return hold_out_test(samples_of(self._rows, "train", self._class_names), part, self.test_fraction)


def read_file_lists(lists: Sequence[tuple[Part, Path, Path]]) -> list[Row]:
    """Reads and checks the lists of a data set.

    Args:
        lists: The part, the list, and the folder that its files start from.

    Raises:
        UserError: A list cannot be read or is empty; a line has no label, a file that is not there or that another line
            has already, or a class that no line of the training list has.
    """
    rows: list[Row] = []
    listings: dict[Path, dict[str, list[Path]]] = {}
    for part, file, root in lists:
        for place, name, label in read_list(file):
            path = root / name
            if path.parent not in listings:
                listings[path.parent] = _by_name(path.parent)
            found = listings[path.parent].get(path.name, [])
            if len(found) != 1:
                which = f"{len(found)} files of that name" if found else "no file"
                raise UserError(f"{place}: {which} {path}")
            rows.append(Row(place, name, found[0], label, part, ("", len(rows))))
    check_unique(rows)
    check_parts(lists[0][1], rows)
    return rows


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder by their names, and its images also by their names without the extension."""
    files = sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    found: dict[str, list[Path]] = {}
    for file in files:
        if file.suffix.lower() in IMAGE_EXTENSIONS:
            found.setdefault(file.stem, []).append(file)
    return found | {file.name: [file] for file in files}
