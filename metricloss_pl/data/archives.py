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
    """What a set's index files say: the classes' names in the order of their labels, and the images of each split."""

    class_names: list[str]
    sets: dict[Split, Samples]


def index_by_folder(folder: Path, images: str, lists: dict[Split, str]) -> Index:
    """Reads the index of a set whose images lie in folders named after their classes; these are sorted.

    Args:
        folder: The set's own folder.
        images: Folder of the classes' folders, in `folder`.
        lists: Text file of each split, in `folder`, with one `<class>/<file>` a line; other images are not used.

    Raises:
        UserError: A list is missing, cannot be read, or is empty.
    """
    remedy = reinstall_hint(folder)
    files = {split: [line.text for line in read_lines(folder / name, remedy=remedy)] for split, name in lists.items()}
    names = sorted({_class(file) for of_set in files.values() for file in of_set})
    position = {name: label for label, name in enumerate(names)}
    sets = {
        split: file_samples(folder / images, of_set, [position[_class(file)] for file in of_set])
        for split, of_set in files.items()
    }
    return Index(names, sets)


def _class(file: str) -> str:
    return file.partition("/")[0]


@dataclass(kw_only=True, eq=False, repr=False)
class ArchiveDataModule(ImageDataModule, ABC):
    """A published set of image files, unpacked once into a folder of its own.

    A set is a subclass, itself decorated with `@dataclass(kw_only=True, eq=False, repr=False)`, with `folder`,
    `resources`, `statistics` and `read_index`. Where the names of its classes stand in the data, the constructor
    fetches the set; where they are given as `classes`, `prepare_data` does.

    Args:
        root: Folder that holds, or will hold, the set's own folder.
        download: Download what is missing, where its authors allow it; archives that lie in `root` are used instead.
    """

    root: str = "data"
    download: bool = True

    folder: ClassVar[str]  # the set's own, under root
    resources: ClassVar[tuple[Resource, ...]]  # what it is made of
    archives_hold_folder: ClassVar[bool] = False  # `folder` is the top folder in the archives
    classes: ClassVar[tuple[str, ...]] = ()  # their names, where these do not stand in the data

    def __post_init__(self) -> None:
        super().__post_init__()
        self._index: Index | None = None
        self._class_names = list(self.classes) or self.index().class_names

    @abstractmethod
    def read_index(self, folder: Path) -> Index:
        """Reads the index files in the set's unpacked folder."""

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        return list(self._class_names)

    def index(self) -> Index:
        """What the index files say; the set is fetched if need be.

        Raises:
            UserError: It cannot be fetched, or an index file is missing or broken.
        """
        if self._index is None:
            folder = fetch(
                self.resources,
                self.root,
                self.folder,
                download=self.download,
                archives_hold_folder=self.archives_hold_folder,
            )
            self._index = self.read_index(folder)
        return self._index

    def prepare_data(self) -> None:
        """Fetches the set where it is not there yet."""
        self.index()

    def read(self, split: Split) -> Samples | None:
        """Returns the files of one official split, or None where there is no such split."""
        return self.index().sets.get(split)
