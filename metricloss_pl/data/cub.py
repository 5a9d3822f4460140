"""Caltech-UCSD Birds-200-2011 with its official split, or with another one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from metricloss_pl.data.archives import ArchiveDataModule, Index
from metricloss_pl.data.index_files import read_numbered, reinstall_hint
from metricloss_pl.data.lists import read_file_lists, samples_of
from metricloss_pl.data.samples import Samples, Split, Statistics, file_samples
from metricloss_pl.data.training_settings import Auto
from metricloss_pl.download import Resource
from metricloss_pl.errors import UserError


@dataclass(kw_only=True, eq=False, repr=False)
class CUB200DataModule(ArchiveDataModule):
    """Caltech-UCSD Birds-200-2011 (Wah et al. 2011): 200 species, 5,994 images for training, 5,794 for test.

    The defaults are those of Barz and Denzler ("Deep Learning on Small Datasets without Pre-Training using Cosine
    Loss", 2020): shorter side 512 px, crops of 448 px, batches of 96, and their mean and standard deviation.

    The class names are in the data, so that the constructor downloads them (1.15 GB) if they are missing.

    Args:
        split: Replacement of the official split: a file like `train_test_split.txt`, such as the authors' `..._N.txt`
            for N images per class (images that it does not list are not used); or a folder of lists `train.txt`,
            `test.txt` and optionally `val.txt`, with lines `<file> <label>`, such as those of cvjena/deic.
    """

    split: str | None = None
    batch_size: int | Auto = 96
    resize: int | None = 512
    image_size: int | Auto | None = 448
    mean: list[float] | None = field(default_factory=lambda: [123.82988 / 255, 127.35117 / 255, 110.25606 / 255])
    std: list[float] | None = field(default_factory=lambda: [59.22309 / 255, 58.07361 / 255, 67.80252 / 255])

    folder = "CUB_200_2011"
    archives_hold_folder = True
    resources = (
        Resource(
            "CUB_200_2011.tgz",
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "97eceeb196236b17998738112f37df78",
        ),
    )
    statistics = Statistics(classes=200, train=5994, test=5794, images_per_class=(29, 30))

    def published_statistics(self) -> Statistics | None:
        """Return the numbers of the official split, or None if `split` replaces it."""
        return self.statistics if self.split is None else None

    def read_index(self, folder: Path) -> Index:
        """Read the index files; the names are those in `classes.txt`, such as "001.Black_footed_Albatross"."""
        split = None if self.split is None else Path(self.split).expanduser()
        if split is None or not split.is_dir():
            return read_bird_index(folder, split)
        names = read_bird_index(folder).class_names
        return Index(names, _read_lists(split, folder / "images", len(names)))


def read_bird_index(folder: Path, split_file: Path | None = None, image_id: str = "[0-9]{1,18}") -> Index:
    """Read `classes.txt`, `images.txt`, `image_class_labels.txt` and `train_test_split.txt`: lines `<number> <text>`.

    Args:
        folder: Folder of these files, and of the images in `images`.
        split_file: File that replaces `train_test_split.txt`; images that it does not list are not used.
        image_id: Regular expression of an image's number.

    Returns:
        Names of the classes that have images, in ascending order of their numbers, so that labels count from 0; and the
        images in ascending order of theirs. There is no official validation set.

    Raises:
        UserError: A file is missing or broken, or they contradict one another.
    """
    remedy = reinstall_hint(folder)
    classes = read_numbered(folder / "classes.txt", remedy)
    files = read_numbered(folder / "images.txt", remedy, image_id)
    class_numbers = read_numbered(folder / "image_class_labels.txt", remedy, image_id)
    if split_file is None:
        assigned = read_numbered(folder / "train_test_split.txt", remedy, image_id)
    else:
        assigned = read_numbered(split_file, "give a file like train_test_split.txt, or a folder of lists", image_id)
    for described, name in ((class_numbers, "image_class_labels.txt"), (assigned, "train_test_split.txt")):
        for number, (place, _) in described.items():
            if number not in files:
                raise UserError(f"{place}: image {number} is not in {folder / 'images.txt'}")
        for number, (place, _) in files.items():
            if number not in described and (split_file is None or described is class_numbers):
                raise UserError(f"{place}: image {number} is not in {folder / name}")
    for place, number in class_numbers.values():
        if number not in classes:
            raise UserError(f"{place}: class {number} is not in {folder / 'classes.txt'}")
    for place, flag in assigned.values():
        if flag not in ("0", "1"):
            raise UserError(f"{place}: {flag!r}, where 1 (training) or 0 (test) is needed")
    used = sorted({number for _, number in class_numbers.values()}, key=int)
    position = {number: label for label, number in enumerate(used)}
    order = sorted(assigned, key=lambda number: (len(number), number))
    sets: dict[Split, Samples] = {}
    flags: dict[Split, str] = {"train": "1", "test": "0"}
    for split, flag in flags.items():
        chosen = [number for number in order if assigned[number].text == flag]
        labels = [position[class_numbers[number].text] for number in chosen]
        sets[split] = file_samples(folder / "images", [files[number].text for number in chosen], labels)
    return Index([classes[number].text for number in used], sets)


def _read_lists(lists: Path, images: Path, num_classes: int) -> dict[Split, Samples]:
    """Read lists whose labels are the classes' positions."""
    splits: tuple[Split, ...] = ("train", "val", "test") if (lists / "val.txt").is_file() else ("train", "test")
    rows = read_file_lists([(split, lists / f"{split}.txt", images) for split in splits])
    labels = [str(label) for label in range(num_classes)]
    for row in rows:
        if row.label not in labels:
            raise UserError(f"{row.place}: label {row.label!r}, where a number from 0 to {num_classes - 1} is needed")
    return {split: samples_of(rows, split, labels, images) for split in splits}
