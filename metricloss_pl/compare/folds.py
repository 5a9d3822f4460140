"""All images of a data set in k folds, each of them the test part once."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metricloss_pl.data import ImageDataModule
from metricloss_pl.data.base import Part
from metricloss_pl.data.duplicates import Duplicate, find_duplicates
from metricloss_pl.data.reading import digests_of
from metricloss_pl.data.samples import Samples, check_samples, concatenate
from metricloss_pl.data.splits import split_off
from metricloss_pl.errors import UserError, plural

__all__ = ["FoldDataModule", "digest", "fold_numbers", "images_root", "official_parts"]


@dataclass(kw_only=True, eq=False, repr=False)
class FoldDataModule(ImageDataModule):
    """One fold of another data module's images as the test part, and the others as the training part.

    Args:
        source: Whose images, an official test part too; its settings are taken over by :meth:`of`.
        folds: Number of folds.
        fold: Which of them is the test part.
        partition: Seed of the division into folds.
    """

    source: ImageDataModule
    folds: int
    fold: int
    partition: int

    @classmethod
    def of(cls, source: ImageDataModule, folds: int, fold: int, partition: int) -> FoldDataModule:
        """One fold with the batch size, augmentations and all else of ``source``."""
        settings = {field.name: getattr(source, field.name) for field in dataclasses.fields(ImageDataModule)}
        settings["split_file"] = None  # the source heeds it
        return cls(**settings, source=source, folds=folds, fold=fold, partition=partition)

    @property
    def class_names(self) -> list[str]:
        """Those of the source."""
        return self.source.class_names

    def duplicates(self) -> list[Duplicate]:
        """Finds images that stand twice or more: in two folds, under two classes, or within one class of one fold."""
        images, numbers = self._images_and_folds()
        folds = {f"fold {fold}": images.subset(np.flatnonzero(numbers == fold)) for fold in range(self.folds)}
        return find_duplicates(folds)

    def left_out(self) -> list[str]:
        """What the source says."""
        return self.source.left_out()

    def prepare_data(self) -> None:
        self.source.prepare_data()

    def read(self, part: Part) -> Samples | None:
        """The fold, or all but it."""
        if part == "val":
            return None
        images, numbers = self._images_and_folds()
        in_fold = numbers == self.fold
        return images.subset(np.flatnonzero(in_fold if part == "test" else ~in_fold))

    def _images_and_folds(self) -> tuple[Samples, np.ndarray]:
        images = _joined(official_parts(self.source))
        check_samples(images, self.num_classes, "whole")
        return images, fold_numbers(images, self.folds, self.partition, self.class_names)


def official_parts(data: ImageDataModule) -> dict[Part, Samples | None]:
    """The training, validation and test part as the data set has them; None where it has none."""
    parts: tuple[Part, ...] = ("train", "val", "test")
    return {part: data.official(part) for part in parts}


def _joined(parts: dict[Part, Samples | None]) -> Samples:
    """All images; where two parts have an image of one name, every name begins with its part."""
    found = {part: samples for part, samples in parts.items() if samples is not None}
    joined = functools.reduce(concatenate, found.values())
    if len(set(joined.names)) == len(joined):
        return joined
    names = [f"{part}/{name}" for part, samples in found.items() for name in samples.names]
    return dataclasses.replace(joined, names=names)


def fold_numbers(images: Samples, folds: int, seed: int, class_names: list[str]) -> np.ndarray:
    """The fold of each image (N,): as equally many of each class as can be, and whole groups.

    Raises:
        UserError: A class has fewer images than there are folds, or all its images are of one group.
    """
    counts = torch.bincount(images.labels, minlength=len(class_names))
    for name, count in zip(class_names, counts.tolist(), strict=True):
        if count < folds:
            raise UserError(f"class {name!r} has {plural(count, 'image')}: folds is {folds}, and each fold needs one")
    numbers = np.zeros(len(images), dtype=np.int64)
    rest = np.arange(len(images))
    images = images.identified()
    for fold in range(folds - 1):
        kept, cut = split_off(images.subset(rest), 1 / (folds - fold), seed, class_names, purpose="folds")
        numbers[rest[cut]] = fold
        rest = rest[kept]
    numbers[rest] = folds - 1
    for fold in range(folds):
        outside = torch.bincount(images.labels[np.flatnonzero(numbers != fold)], minlength=len(class_names))
        if not (numbers == fold).any() or (outside == 0).any():
            missing = class_names[int((outside == 0).int().argmax())]
            raise UserError(
                f"folds is {folds}: there are too few groups to share out class {missing!r} among so many; give fewer"
            )
    return numbers


def digest(images: Samples, known: dict[Path, bytes] | None = None) -> str:
    """Tells sets of images apart: by names, labels, groups, and the images themselves or their files.

    Args:
        images: The set.
        known: Digests of files that have been read; those of the others are added. None: all are read.
    """
    found = hashlib.blake2b(digest_size=10)
    found.update("\0".join(images.names).encode("utf-8", "surrogateescape"))
    found.update(images.labels.numpy().tobytes())
    if images.groups is not None:
        found.update(images.groups.numpy().tobytes())
    if isinstance(images.images, Tensor):
        found.update(images.images.contiguous().numpy().tobytes())
    else:
        known = {} if known is None else known
        new = [file for file in images.images if file not in known]
        known.update(zip(new, digests_of(new), strict=True))
        found.update(b"".join(known[file] for file in images.images))
    return found.hexdigest()


def images_root(parts: Iterable[Samples | None]) -> str | None:
    """The folder from which the names of the images lead to their files; None where there is no such folder.

    Args:
        parts: The images; None for parts that a data set does not have.
    """
    files = [
        (os.path.abspath(file), name)
        for samples in parts
        if samples is not None and not isinstance(samples.images, Tensor)
        for file, name in zip(samples.images, samples.names, strict=True)
    ]
    if not files:
        return None
    path, name = files[0]
    if os.path.isabs(name):  # a list may name files by their whole paths
        root = os.path.commonpath([os.path.dirname(path) for path, _ in files])
    else:
        root = path.removesuffix(os.sep + os.path.normpath(name))
    leads = all(os.path.normpath(os.path.join(root, name)) == path for path, name in files)
    return root if leads else None
