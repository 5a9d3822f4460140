"""Images and labels listed in one text file a split, with lines `<file> <label>`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metricloss_pl.data.file_checks import is_image
from metricloss_pl.data.image_list import Row, check_sets, check_unique, samples_of, sorted_classes
from metricloss_pl.data.index_files import read_list
from metricloss_pl.data.samples import Samples, Split
from metricloss_pl.data.test_split import HeldOutDataModule
from metricloss_pl.errors import UserError


@dataclass(kw_only=True, eq=False, repr=False)
class FileListDataModule(HeldOutDataModule):
    """Any folder of images, and one list a split with lines `<file> <label>`, such as those of cvjena/deic.

    A file may be written without its extension. A label is a class's name or a number; the classes are sorted, by value
    where all are whole numbers.

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
        """The labels as text, sorted."""
        return self._found_classes

    @property
    def given_splits(self) -> list[Split]:
        """The sets that there are lists of."""
        return list(self._lists)

    def list_split(self, split: Split) -> Samples:
        """List the files of one set."""
        return samples_of(self._rows, split, self._found_classes, self._folder)


def read_file_lists(lists: Sequence[tuple[Split, Path, Path]], trained: bool = True) -> list[Row]:
    """Read and check the lists of a data set.

    Args:
        lists: The split, the list, and the folder that its files start from.
        trained: Require a training image of each class.

    Raises:
        UserError: A list cannot be read or is empty; a line has no label, a file that is not there or that another line
            has already, or a class that no line of the training list has.
    """
    rows: list[Row] = []
    listings: dict[Path, dict[str, list[Path]]] = {}
    for split, file, root in lists:
        for place, name, label in read_list(file):
            path = root / name
            if path.parent not in listings:
                listings[path.parent] = _by_name(path.parent)
            found = listings[path.parent].get(path.name, [])
            if len(found) != 1:
                which = f"{len(found)} files of that name" if found else "no file"
                raise UserError(f"{place}: {which} {path}")
            rows.append(Row(place, name, found[0], label, split, ("", len(rows))))
    check_unique(rows)
    check_sets(lists[0][1], rows, trained)
    return rows


def _by_name(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder by their names, and its images also by their names without the extension."""
    files = sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    found: dict[str, list[Path]] = {}
    for file in files:
        if is_image(file):
            found.setdefault(file.stem, []).append(file)
    return found | {file.name: [file] for file in files}
