"""Published sets of image files: archives that are fetched once, and index files in them. A set is a short subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from metricloss_pl.data.base import ImageDataModule
from metricloss_pl.data.index_files import reinstall_hint
from metricloss_pl.data.samples import Samples, Split, file_samples
from metricloss_pl.download import Resource, fetch
from metricloss_pl.files import read_lines


class Index(NamedTuple):
    """Content of a set's index files: names of the classes in the order of their labels, and images of each set."""

    class_names: list[str]
    sets: dict[Split, Samples]


def index_by_folder(folder: Path, images: str, lists: dict[Split, str]) -> Index:
    """Read the index of a set whose images lie in folders named after their classes; these are sorted.

    Args:
        folder: The set's own folder.
        images: Folder of the class folders, in `folder`.
        lists: Text file of each set, in `folder`, with one `<class>/<file>` per line; other images are not used.

    Raises:
        UserError: A list is missing, cannot be read, or is empty.
    """
    remedy = reinstall_hint(folder)
    files = {split: [line.text for line in read_lines(folder / name, remedy=remedy)] for split, name in lists.items()}
    names = sorted({file.partition("/")[0] for listed in files.values() for file in listed})
    position = {name: label for label, name in enumerate(names)}
    sets = {
        split: file_samples(folder / images, listed, [position[file.partition("/")[0]] for file in listed])
        for split, listed in files.items()
    }
    return Index(names, sets)


@dataclass(kw_only=True, eq=False, repr=False)
class ArchiveDataModule(ImageDataModule, ABC):
    """A published set of image files, unpacked once into a folder of its own.

    A set is a subclass, itself decorated with `@dataclass(kw_only=True, eq=False, repr=False)`, with `folder`,
    `resources`, `statistics` and `read_index`. If the names of its classes are in the data, the constructor fetches the
    set; if they are given as `classes`, `prepare_data` does.

    Args:
        root: Folder that holds, or will hold, the set's own folder.
        download: Download missing files, if their authors allow it; archives in `root` are used instead.
    """

    root: str = "data"
    download: bool = True

    folder: ClassVar[str]  # the set's own, under root
    resources: ClassVar[tuple[Resource, ...]]
    archives_hold_folder: ClassVar[bool] = False  # `folder` is the top folder in the archives
    classes: ClassVar[tuple[str, ...]] = ()  # their names, if these are not in the data

    def __post_init__(self) -> None:
        super().__post_init__()
        self._index: Index | None = None
        self._class_names = list(self.classes) or self.index().class_names

    @abstractmethod
    def read_index(self, folder: Path) -> Index:
        """Read the index files in the set's unpacked folder."""

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of their labels."""
        return list(self._class_names)

    def index(self) -> Index:
        """Return the content of the index files; the set is fetched if needed.

        Raises:
            UserError: The set cannot be fetched, or an index file is missing or broken.
        """
        if self._index is None:
            root, hold_folder = self.root, self.archives_hold_folder
            folder = fetch(self.resources, root, self.folder, download=self.download, archives_hold_folder=hold_folder)
            self._index = self.read_index(folder)
        return self._index

    def prepare_data(self) -> None:
        """Fetch the set if it is not there yet."""
        self.index()

    def read(self, split: Split) -> Samples | None:
        """Return the files of one official set, or None if there is none."""
        return self.index().sets.get(split)
