"""Caltech-UCSD Birds-200-2011 with its official split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from metricloss_pl.data.base import ImageDataModule, Part
from metricloss_pl.data.download import fetch_archive
from metricloss_pl.data.samples import Samples
from metricloss_pl.errors import UserError, reason

URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
MD5 = "97eceeb196236b17998738112f37df78"
FOLDER = "CUB_200_2011"


@dataclass(kw_only=True, eq=False, repr=False)
class CUB200DataModule(ImageDataModule):
    """Caltech-UCSD Birds-200-2011 (Wah et al. 2011): 200 species, 5,994 images for training, 5,794 for test.

    The defaults are those of Barz and Denzler ("Deep Learning on Small Datasets without Pre-Training using Cosine
    Loss", 2020): shorter side 512 px, crops of 448 px, batches of 96, and their mean and standard deviation.

    The class names stand in the data, so that the constructor downloads (1.15 GB) where they are missing.

    Args:
        root: Folder that holds, or will hold, `CUB_200_2011`.
        download: Download what is missing; an archive `CUB_200_2011.tgz` in `root` is used instead.
        resize: Shorter side in px to which images are resized before the crop.
        image_size: Side in px of the square crop.
    """

    root: str = "data"
    download: bool = True
    batch_size: int = 96
    resize: int | None = 512
    image_size: int | None = 448
    mean: list[float] | None = field(default_factory=lambda: [123.82988 / 255, 127.35117 / 255, 110.25606 / 255])
    std: list[float] | None = field(default_factory=lambda: [59.22309 / 255, 58.07361 / 255, 67.80252 / 255])

    def __post_init__(self) -> None:
        super().__post_init__()
        self._folder = fetch_archive(URL, MD5, self.root, FOLDER, download=self.download)
        self._class_names, self._birds = read_index(self._folder)

    @property
    def class_names(self) -> list[str]:
        """The names in `classes.txt`, in the order of their numbers, such as "001.Black_footed_Albatross"."""
        return list(self._class_names)

    def read(self, part: Part) -> Samples | None:
        """Returns the files of the official training or test part; there is no official validation part."""
        if part == "val":
            return None
        birds = [bird for bird in self._birds if bird.is_training == (part == "train")]
        return Samples(
            images=[self._folder / "images" / bird.file for bird in birds],
            labels=torch.tensor([bird.label for bird in birds], dtype=torch.int64),
            names=[bird.file for bird in birds],
        )


class Bird(NamedTuple):
    """One image as the index files describe it."""

    file: str
    label: int
    is_training: bool


def read_index(folder: Path) -> tuple[list[str], list[Bird]]:
    """Reads the index files: `classes.txt`, `images.txt`, `image_class_labels.txt` and `train_test_split.txt`.

    Returns:
        The classes' names in ascending order of their numbers, and the images in ascending order of theirs. A label is
        the position of its class among the names, so that it counts from 0.

    Raises:
        UserError: A file is missing or broken, or they contradict one another.
    """
    classes = _read_pairs(folder / "classes.txt")
    files = _read_pairs(folder / "images.txt")
    of_class = _read_pairs(folder / "image_class_labels.txt")
    split = _read_pairs(folder / "train_test_split.txt")
    position = {str(number): label for label, number in enumerate(sorted(classes))}
    for described in (of_class, split):
        for number, entry in described.items():
            if number not in files:
                raise UserError(f"{entry.place}: image {number} is not in {folder / 'images.txt'}")
        for number, entry in files.items():
            if number not in described:
                other = "image_class_labels.txt" if described is of_class else "train_test_split.txt"
                raise UserError(f"{entry.place}: image {number} is not in {folder / other}")
    birds = []
    for number, entry in sorted(files.items()):
        if of_class[number].text not in position:
            raise UserError(
                f"{of_class[number].place}: class {of_class[number].text} is not in {folder / 'classes.txt'}"
            )
        if split[number].text not in ("0", "1"):
            raise UserError(f"{split[number].place}: {split[number].text!r}, where 1 (training) or 0 (test) is needed")
        birds.append(Bird(entry.text, position[of_class[number].text], split[number].text == "1"))
    return [entry.text for _, entry in sorted(classes.items())], birds


class _Entry(NamedTuple):
    place: str  # file and line, for messages
    text: str


def _read_pairs(file: Path) -> dict[int, _Entry]:
    """Reads lines of "<number> <text>"."""
    pairs: dict[int, _Entry] = {}
    for line, content in _lines(file):
        place = f"{file}, line {line}"
        number, _, text = content.partition(" ")
        if not number.isdecimal() or not text.strip():
            raise UserError(f"{place}: {content!r}, where a number and a text are needed")
        if int(number) in pairs:
            raise UserError(f"{place}: number {number} is listed already, at {pairs[int(number)].place}")
        pairs[int(number)] = _Entry(place, text.strip())
    if not pairs:
        raise UserError(f"{file} is empty: lines of a number and a text are needed")
    return pairs


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"no file {file}: remove {file.parent} to have it unpacked anew") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {reason(error)}") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()
