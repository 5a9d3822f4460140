"""All images of a data set in k folds, each of which is the test set once."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np

from metricloss_pl.data.base import ImageDataModule
from metricloss_pl.data.file_checks import Duplicate, find_duplicates
from metricloss_pl.data.samples import Samples, Split, check_samples, concatenate
from metricloss_pl.data.splits import assign_folds


@dataclass(kw_only=True, eq=False, repr=False)
class FoldDataModule(ImageDataModule):
    """One fold of another data module's images as the test set, and the other folds as the training set.

    Args:
        source: Data module of the images, official test images included; `of` also takes over its settings.
        folds: Number of folds.
        fold: Index of the fold that is the test set.
        partition: Seed of the division into folds.
    """

    source: ImageDataModule
    folds: int
    fold: int
    partition: int

    @classmethod
    def of(cls, source: ImageDataModule, folds: int, fold: int, partition: int) -> FoldDataModule:
        """Return one fold with the batch size, augmentations and other settings of `source`."""
        settings = {field.name: getattr(source, field.name) for field in dataclasses.fields(ImageDataModule)}
        settings["split_file"] = None  # the source uses it
        return cls(**settings, source=source, folds=folds, fold=fold, partition=partition)

    @property
    def class_names(self) -> list[str]:
        """Names of the source's classes."""
        return self.source.class_names

    def duplicates(self) -> list[Duplicate]:
        """Find images with the same bytes in two folds, of two classes, or within one class of one fold."""
        images, numbers = self._images_and_folds()
        folds = {f"fold {fold}": images.subset(np.flatnonzero(numbers == fold)) for fold in range(self.folds)}
        return find_duplicates(folds)

    def left_out(self) -> list[str]:
        """Return the source's warnings."""
        return self.source.left_out()

    def prepare_data(self) -> None:
        """Download the source's images if needed."""
        self.source.prepare_data()

    def read(self, split: Split) -> Samples | None:
        """Return the fold, or all images but it."""
        if split == "val":
            return None
        images, numbers = self._images_and_folds()
        in_fold = numbers == self.fold
        return images.subset(np.flatnonzero(in_fold if split == "test" else ~in_fold))

    def _images_and_folds(self) -> tuple[Samples, np.ndarray]:
        sets = {split: samples for split, samples in self.source.official_sets().items() if samples is not None}
        images = functools.reduce(concatenate, sets.values())
        if len(set(images.names)) < len(images):  # images of two sets have the same name
            names = [f"{split}/{name}" for split, samples in sets.items() for name in samples.names]
            images = dataclasses.replace(images, names=names)
        check_samples(images, self.num_classes, "whole")
        return images, assign_folds(images, self.folds, self.partition, self.class_names)
