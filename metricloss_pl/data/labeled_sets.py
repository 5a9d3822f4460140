"""Labeled images divided into sets: the official ones, sets cut from them, or the sets of a split file."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from metricloss_pl.data.file_checks import Duplicate, describe_duplicates, find_duplicates
from metricloss_pl.data.samples import (
    SPLITS,
    Samples,
    Split,
    Statistics,
    check_samples,
    check_statistics,
    concatenate,
)
from metricloss_pl.data.split_file import SplitRow, digest_of_split, read_split, rows_of, split_by_rows, write_split
from metricloss_pl.data.splits import divide_training
from metricloss_pl.errors import UserError
from metricloss_pl.files import FilePath


@dataclass(kw_only=True, eq=False, repr=False)
class LabeledSets(ABC):
    """Labeled images in a training, a validation and a test set, without decoding them.

    A data set implements `class_names` and `read`.

    Args:
        val_fraction: Share of the training set that becomes the validation set if the data set has none of its own, in
            [0, 1). 0: train on everything, an official validation set included, without validation.
        samples_per_class: Images per class in total, split into training and validation, drawn by `seed`. None: all.
        seed: Seed of splits, subsets, order and augmentations; at least 0.
        split_file: CSV file with the columns file, label and split (train, val or test) that assigns each image to a
            set, such as the `split.csv` of another run. Images that it does not list are not used. None: the sets of
            the data, or sets cut from them.
    """

    val_fraction: float = 0.1
    samples_per_class: int | None = None
    seed: int = 0
    split_file: FilePath | None = None

    statistics: ClassVar[Statistics | None] = None  # of a published set; checked when it is read

    def __post_init__(self) -> None:
        self._samples: dict[str, Samples] = {}  # sets that are set up
        self._split_rows: list[SplitRow] | None = None
        self._split_source = ""
        self._split_sets: dict[Split, Samples] | None = None
        if not 0 <= self.val_fraction < 1:
            raise UserError(
                f"val_fraction of {type(self).__name__} is {self.val_fraction}: a number from 0 to below 1 is needed"
            )
        if self.split_file is not None:
            self.use_split(self.split_file)

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of their labels; known right after construction."""

    @abstractmethod
    def read(self, split: Split) -> Samples | None:
        """Read one official set, or return None if there is none.

        Downloads belong into `prepare_data`. The caller checks the result.
        """

    def all_images(self) -> Samples:
        """List the labeled images of all sets.

        Raises:
            UserError: There is none.
        """
        found = [samples for split in SPLITS if (samples := self.read(split)) is not None]
        if not found:
            raise UserError(f"{type(self).__name__} has no labeled image")
        return functools.reduce(concatenate, found)

    def left_out(self) -> list[str]:
        """Return warnings about files among the images that are not used."""
        return []

    def published_statistics(self) -> Statistics | None:
        """Return the numbers that the official sets must have, if there are any."""
        return self.statistics

    @property
    def num_classes(self) -> int:
        """Number of classes; known right after construction."""
        return len(self.class_names)

    @property
    def has_validation(self) -> bool:
        """Return whether there is a validation set; known right after construction."""
        return self.val_fraction > 0

    def official(self, split: Split) -> Samples | None:
        """Return the images of one set, before anything is cut from it, or None if there is no such set.

        Raises:
            UserError: The images are not as they should be, or none of the set's images in `split_file` is there.
        """
        if self._split_rows is None:
            samples = self.read(split)
        else:
            if self._split_sets is None:
                images, source = self.all_images(), self._split_source
                self._split_sets, warnings = split_by_rows(self._split_rows, images, self.class_names, source)
                self._warn(warnings)
            samples = self._split_sets.get(split)
        if samples is not None:
            check_samples(samples, self.num_classes, split)
        return samples

    def official_sets(self) -> dict[Split, Samples | None]:
        """Return the result of `official` for each set."""
        return {split: self.official(split) for split in SPLITS}

    def divide(self) -> tuple[Samples, Samples | None]:
        """List the training and validation images in use, without decoding any.

        Raises:
            UserError: There are none, or too few for the settings; a class has none to train on.
        """
        train, val = self.official("train"), self.official("val")
        if train is None:
            raise UserError(f"{type(self).__name__} has no training set")
        labels = train.labels if val is None else torch.cat([train.labels, val.labels])
        self._check_statistics("train", labels)
        fraction, wanted = self.val_fraction, self.samples_per_class
        return divide_training(
            train, val, self.class_names, val_fraction=fraction, samples_per_class=wanted, seed=self.seed
        )

    def use_split(self, path: FilePath | Path) -> str:
        """Assign images to sets as a file of `save_split` does; images that it does not list are not used.

        Returns:
            Digest of the split.

        Raises:
            UserError: The file is missing or no split.
        """
        self._split_rows, self._split_sets = read_split(path), None
        self._split_source = str(path)
        return digest_of_split(self._split_rows)

    def split_rows(self) -> list[SplitRow]:
        """Return the set of each image, after `prepare_data`."""
        return [row for split, samples in self.list_sets().items() for row in rows_of(samples, split, self.class_names)]

    def save_split(self, path: str | Path) -> str:
        """Write the set of each image as a CSV file for `split_file`, atomically.

        Returns:
            Digest of the split.
        """
        rows = self.split_rows()
        write_split(path, rows)
        return digest_of_split(rows)

    def duplicates(self) -> list[Duplicate]:
        """Find images with the same bytes in two sets, of two classes, or within one class of one set.

        Sets that are not set up yet are listed for it, and none is decoded.
        """
        return find_duplicates(self.list_sets())

    def warn_of_duplicates(self) -> None:
        """Warn in the first process of the result of `duplicates`."""
        sets = self.list_sets()  # in every process, so that all fail alike
        if getattr(rank_zero_only, "rank", 0) == 0:
            self._warn(describe_duplicates(find_duplicates(sets), self.class_names))

    def warn_of_left_out(self) -> None:
        """Warn in the first process of the result of `left_out`."""
        if getattr(rank_zero_only, "rank", 0) == 0:
            self._warn(self.left_out())

    def _warn(self, lines: Iterable[str]) -> None:
        for line in lines:
            rank_zero_warn(f"{type(self).__name__}: {line}")

    def _check_statistics(self, split: Literal["train", "test"], labels: Tensor) -> None:
        published = self.published_statistics()
        if published is not None and self._split_rows is None:
            check_statistics(published, split, labels, self.num_classes)

    def list_sets(self) -> dict[Split, Samples]:
        """Return the training, validation and test set in use; those that are not set up yet are listed."""
        sets: dict[Split, Samples | None] = {split: self._samples.get(split) for split in SPLITS}
        if sets["train"] is None:
            sets["train"], sets["val"] = self.divide()
        if sets["test"] is None:
            sets["test"] = self.list_test()
        return {split: samples for split, samples in sets.items() if samples is not None}

    def list_test(self) -> Samples | None:
        """Return the test set, which nothing decodes yet, or None where there is none."""
        test = self.official("test")
        if test is not None:
            self._check_statistics("test", test.labels)
        return test
