"""The data module that all data sets share: parts, splits, loaders. A data set adds `read` and `class_names`."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from metricloss_pl.data.augment import Augmentation
from metricloss_pl.data.dataset import ImageDataset, Views, identity_collate
from metricloss_pl.data.duplicates import Duplicate, describe_duplicates, find_duplicates
from metricloss_pl.data.reading import UnreadableImages, check_readable, describe_unread, find_broken, image_files
from metricloss_pl.data.sampler import EvaluationSampler, TrainSampler, process_group
from metricloss_pl.data.samples import Samples, Statistics, check_samples, check_statistics, concatenate
from metricloss_pl.data.split_file import (
    PART_NAMES,
    Part,
    SplitRow,
    digest_of_split,
    divide_by,
    read_split,
    rows_of,
    write_split,
)
from metricloss_pl.data.splits import choose_per_class, split_off
from metricloss_pl.data.store import ImageStore
from metricloss_pl.errors import UserError, check_choice, plural
from metricloss_pl.files import FilePath

__all__ = ["PART_NAMES", "SET_NAMES", "ImageDataModule", "Part"]

_PARTS: tuple[Part, ...] = ("train", "val", "test")
SET_NAMES: dict[str, str] = {"train": "training", "val": "validation", "test": "test"}
_MEASURED_FILES = 2000  # images from which mean and deviation of files on disk are measured


@dataclass(kw_only=True, eq=False, repr=False)
class ImageDataModule(LightningDataModule, ABC):
    """Labelled images in a training, a validation and a test part.

    A data set is a subclass, itself decorated with `@dataclass(kw_only=True, eq=False, repr=False)`, that answers
    `class_names` and `read`; it may override defaults and add fields. One that has its own `__post_init__` calls
    `super().__post_init__()`.

    Batches are images (B, C, S, S), uint8 or (16-bit and floating-point sources) float32 in [0, 1], not normalised,
    and labels (B,) int64; batches of `predict` add each image's index (B,), and the label is -1 where it is unknown.
    With `tta`, the images of `test` and `predict` are (B, V, C, S, S).

    Args:
        batch_size: Images a step and process.
        val_fraction: Share of the training part that becomes the validation part where the data set has none of its
            own, in [0, 1). 0: train on everything, an official validation part included, and validate on nothing.
        samples_per_class: Images a class that are used, training and validation together, drawn by `seed`. None: all.
        seed: Of splits, subsets, order and augmentations; at least 0.
        split_file: CSV file with the columns file, label and split (train, val or test): which image is in which set,
            such as the `split.csv` of another run; images that it lacks are not used. None: the sets that the data
            have, or that are cut from them.
        augment: Augmentations of the training images, applied in this order.
        repeat: Times that each training image comes in an epoch, augmented anew each time.
        oversample_to: In place of `repeat`, images N of the largest class in an epoch: each image comes floor(N / n)
            times, at least once, n being how many that class has. An epoch of few images is then about as long as one
            of many. None: `repeat` times.
        balanced_sampling: Draw each class equally often in training; images of small classes then come repeatedly.
        samples_per_class_in_batch: Images of each class in a training batch, for sets of far more classes than a batch
            can
            hold: a global batch has so many of each of batch_size x processes / samples_per_class_in_batch classes, and
                the
            classes come equally often. An epoch has as many batches as without. None: batches are drawn at random.
        in_channels: 3 for colour, 1 for grey; images of the other kind are converted.
        resize: Shorter side in px to which images are resized before the crop. None: `image_size`.
        train_resize: The same for the images that are augmented, such as a larger one for `RandomResizedCrop`, which
            enlarges what it cuts out. None: as `resize`.
        image_size: Side in px of the square crop that the network sees: at random in training where the image is
            larger, else the centre; smaller images are padded by reflection. None: images as they are, of one size.
        mean: Mean of each channel in [0, 1] units. None: measured on the training part.
        std: Standard deviation of each channel in [0, 1] units. None: measured on the training part.
        num_workers: Processes that prepare batches. 0: none but the main one, which is the fastest for small images.
        cache_gb: Image files of a part are decoded once and kept in memory if they fit into so many GB.
        predict_dir: Folder of unlabelled images for `predict`. None: `predict` runs over the test part.
        tta: Views of each image of `test` and `predict`, whose embeddings are averaged: ``flip``, the image and
            its mirror image; ``crops``, at the centre and in the four corners of the image as resized;
            ``crops_and_flips``, all ten. None: the image alone.

    Raises:
        UserError: An argument is out of its range.
    """

    batch_size: int = 64
    val_fraction: float = 0.1
    samples_per_class: int | None = None
    seed: int = 0
    split_file: FilePath | None = None
    augment: list[Augmentation] = field(default_factory=list)
    repeat: int = 1
    oversample_to: int | None = None
    balanced_sampling: bool = False
    samples_per_class_in_batch: int | None = None
    in_channels: Literal[1, 3] = 3
    resize: int | None = None
    train_resize: int | None = None
    image_size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    num_workers: int = 0
    cache_gb: float = 2.0
    predict_dir: str | None = None
    tta: Views | None = None

    statistics: ClassVar[Statistics | None] = None  # of a published set; checked when it is read

    def __post_init__(self) -> None:
        super().__init__()
        self._parts: dict[str, Samples] = {}
        self._stores: dict[str, ImageStore] = {}
        self._normalization: tuple[list[float], list[float]] | None = None
        self._files_checked = False
        self._unreadable: UnreadableImages | None = None
        self._split: list[SplitRow] | None = None
        self._divided_by_split: dict[Part, Samples] | None = None
        self._test_images: int | None = None
        self._check_arguments()
        if self.split_file is not None:
            self.use_split(self.split_file)

    # What a data set adds.

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of their labels; answered right after construction."""

    @abstractmethod
    def read(self, part: Part) -> Samples | None:
        """Reads one official part of the data set, or returns None where it has no such part.

        Downloads belong into `prepare_data`. What is returned is checked by the caller, who takes the images' sets from
        `split_file` where that is given: see `official`.
        """

    def all_images(self) -> Samples:
        """List all labeled images, whatever set they are in.

        Raises:
            UserError: There is none.
        """
        found = [samples for part in _PARTS if (samples := self.read(part)) is not None]
        if not found:
            raise UserError(f"{type(self).__name__} has no labeled image")
        return functools.reduce(concatenate, found)

    def published_statistics(self) -> Statistics | None:
        """What the official parts have to hold; None: whatever they hold is right."""
        return self.statistics

    # Facts.

    @property
    def num_classes(self) -> int:
        """The number of classes; answered right after construction."""
        return len(self.class_names)

    @property
    def image_format(self) -> dict[str, int | None]:
        """How images are prepared, for predicting on others alike; answered right after construction."""
        resize = self.image_size if self.resize is None else self.resize
        return {"in_channels": int(self.in_channels), "resize": resize, "image_size": self.image_size}

    @property
    def hierarchy(self) -> str | None:
        """File of a hierarchy of the classes, where the set brings one; it may be missing."""
        return None

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation part; answered right after construction."""
        return self.val_fraction > 0

    @property
    def normalization(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel of the training part in [0, 1] units, after `setup("fit")`."""
        if self._normalization is None:
            mean, std = self.mean, self.std
            if mean is None or std is None:
                measured_mean, measured_std = self._measure()
                mean, std = mean or measured_mean, std or measured_std
            self._normalization = (mean, std)
        return self._normalization

    @property
    def class_counts(self) -> Tensor:
        """Images of each class in the training part (C,) int64, after `setup("fit")`."""
        return torch.bincount(self.samples("train").labels, minlength=self.num_classes)

    @property
    def unreadable(self) -> UnreadableImages | None:
        """The images of `predict_dir` that cannot be read, which `predict` leaves out, after `setup("predict")`."""
        return self._unreadable

    @property
    def predict_files(self) -> list[str]:
        """One name an image, in the order of the predict set, after `setup("predict")`."""
        return list(self.samples("predict").names)

    def samples(self, part: str) -> Samples:
        """Returns the images in use of the part "train", "val", "test" or "predict", once it is set up."""
        if part not in self._parts:
            stage = {"train": "fit", "val": "fit"}.get(part, part)
            raise UserError(f"{type(self).__name__} has no {part} part: {self._why_missing(part, stage)}")
        return self._parts[part]

    def official(self, part: Part) -> Samples | None:
        """Return the images of one set, before anything is cut from it, or None where there is no such set.

        Raises:
            UserError: The images are not as they should be; or `split_file` names some for this set, and none is there.
        """
        samples = self.read(part) if self._split is None else self._read_by_split().get(part)
        if samples is not None:
            check_samples(samples, self.num_classes, part)
        return samples

    def use_split(self, path: FilePath | Path) -> str:
        """Take the images' sets from a file like that of `save_split`; images that it lacks are not used.

        Returns:
            The split's digest.

        Raises:
            UserError: It is missing, or no such file.
        """
        self._split, self._divided_by_split = read_split(path), None
        self._split_name = str(path)
        return digest_of_split(self._split)

    def split_rows(self) -> list[SplitRow]:
        """Return which image is in which set, after `prepare_data`."""
        parts = self._labelled_parts()
        self._test_images = len(parts["test"]) if "test" in parts else 0
        rows = [rows_of(samples, part, self.class_names) for part in _PARTS if (samples := parts.get(part)) is not None]
        return [row for of_part in rows for row in of_part]

    def save_split(self, path: str | Path) -> str:
        """Write which image is in which set, as a CSV file that `split_file` takes.

        Args:
            path: The file; it is there whole or not at all.

        Returns:
            The split's digest.
        """
        rows = self.split_rows()
        write_split(path, rows)
        return digest_of_split(rows)

    def describe(self) -> str:
        """Describe the data after `setup("fit")`: "26 training, 6 validation and 8 test images of 3 classes (...)"."""
        counts = self.class_counts
        sizes = [f"{int(counts.sum())} training"]
        if self.has_validation:
            sizes.append(f"{len(self.samples('val'))} validation")
        if number := self._count_test_images():
            sizes.append(f"{number} test")
        groups = self.samples("train").groups
        grouped = "" if groups is None else f", {len(groups.unique())} groups in training"
        least, most = int(counts.min()), int(counts.max())
        each = str(least) if least == most else f"{least} to {most}"
        return (
            f"{' and '.join([', '.join(sizes[:-1]), sizes[-1]] if len(sizes) > 1 else sizes)} images of "
            f"{self.num_classes} classes "
            f"({each} training {'image' if each == '1' else 'images'} per class{grouped})"
        )

    def in_memory(self, part: str) -> bool:
        """Whether the images of a part are kept decoded, once it is set up."""
        self.samples(part)
        return self._stores[part].images is not None

    def duplicates(self) -> list[Duplicate]:
        """Finds images that stand twice or more: in two parts, under two classes, or within one class of one part.

        Parts that are not set up yet are listed for it, and none is decoded. Files are compared byte for byte. Each
        image but the first of its like is given once, with that one.
        """
        return find_duplicates(self._labelled_parts())

    def warn_of_duplicates(self) -> None:
        """Warns in the first process of what `duplicates` finds.

        A training on the command line begins with it; one from Python does not, since it reads every image.
        """
        parts = self._labelled_parts()  # in every process, so that all fail alike
        if getattr(rank_zero_only, "rank", 0) == 0:
            self._warn(describe_duplicates(find_duplicates(parts), self.class_names))

    def left_out(self) -> list[str]:
        """Says what stands among the images and is not used, a line each; nothing where a list says what is used."""
        return []

    def warn_of_left_out(self) -> None:
        """Warns in the first process of what `left_out` finds. A training on the command line begins with it."""
        if getattr(rank_zero_only, "rank", 0) == 0:
            self._warn(self.left_out())

    def check_files(self) -> None:
        """Decodes each image file that is in use and not in memory, the test part's too, and keeps nothing.

        A training on the command line begins with it; without, a broken file shows when its image is first needed.

        Raises:
            UnreadableImages: Some cannot be decoded; all of these are named.
        """
        self._files_checked = True
        train = self._parts.get("train")
        if train is not None and isinstance(train.images, Tensor):
            return
        kept = [part for part, store in self._stores.items() if store.images is not None]
        self._check_readable(samples for part, samples in self._labelled_parts().items() if part not in kept)

    # Lightning's hooks.

    def setup(self, stage: str | None = None) -> None:
        """Reads what the stage ("fit", "validate", "test", "predict"; None: all) needs, and nothing else."""
        if stage in ("fit", "validate", None):
            self._set_up_fit()
        if stage in ("test", None) or (stage == "predict" and self.predict_dir is None):
            self._set_up_test(required=stage is not None)
        if stage in ("predict", None):
            self._set_up_predict()
        if stage in ("validate", "test", "predict"):
            self._check_files_of("val" if stage == "validate" else "test")

    def train_dataloader(self) -> DataLoader[Any]:
        """The augmented training part in a new order each epoch; the last incomplete global batch is dropped."""
        sampler = self._train_sampler(self.samples("train").labels)
        loader = self._loader(self._dataset("train", training=True), sampler)
        if self.trainer is not None:
            sampler.resume(lambda: self._progress(len(loader)))
        return loader

    def batches_in_epoch(self) -> int:
        """Length of `train_dataloader()`; before `setup("fit")` too, from lists alone."""
        train = self._parts["train"] if "train" in self._parts else self.divide()[0]
        return math.ceil(len(self._train_sampler(train.labels)) / self.batch_size)

    def train_eval_dataloader(self) -> DataLoader[Any]:
        """The training part in order, not augmented, each image once (each process has its share)."""
        return self._evaluation_loader("train")

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The validation part in order, each image once; an empty list, which Lightning skips, where there is none."""
        return self._evaluation_loader("val") if self.has_validation else []

    def test_dataloader(self) -> DataLoader[Any]:
        """The test part in order, each image once."""
        return self._evaluation_loader("test", views=self.tta)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The images of `predict_dir`, else the test part, in order; batches are (images, labels, index)."""
        return self._evaluation_loader("predict", with_index=True, views=self.tta)

    # How.

    def _check_arguments(self) -> None:
        where = f"of {type(self).__name__}"
        at_least: dict[str, tuple[float | None, float]] = {
            "batch_size": (self.batch_size, 1),
            "samples_per_class": (self.samples_per_class, 1),
            "seed": (self.seed, 0),
            "repeat": (self.repeat, 1),
            "oversample_to": (self.oversample_to, 1),
            "samples_per_class_in_batch": (self.samples_per_class_in_batch, 1),
            "resize": (self.resize, 1),
            "train_resize": (self.train_resize, 1),
            "image_size": (self.image_size, 1),
            "num_workers": (self.num_workers, 0),
            "cache_gb": (self.cache_gb, 0),
        }
        for name, (value, least) in at_least.items():
            if value is not None and not value >= least:
                raise UserError(f"{name} {where} is {value}: at least {least} is needed")
        if self.train_resize is not None and self.image_format["resize"] is None:
            raise UserError(
                f"train_resize {where} is {self.train_resize} without resize and image_size: one of them has to give "
                "the size in evaluation"
            )
        if self.balanced_sampling and self.samples_per_class_in_batch is not None:
            raise UserError(
                f"samples_per_class_in_batch {where} is {self.samples_per_class_in_batch} and balanced_sampling is "
                f"true: both even out "
                "the classes; choose one of them"
            )
        if self.repeat > 1 and self.oversample_to is not None:
            raise UserError(
                f"repeat {where} is {self.repeat} and oversample_to {self.oversample_to}: choose one of them"
            )
        if self.seed >= 2**63:
            raise UserError(f"seed {where} is {self.seed}: below 2**63 is needed")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"val_fraction {where} is {self.val_fraction}: a number from 0 to below 1 is needed")
        check_choice(f"tta {where}", self.tta, Views | None)
        if self.in_channels not in (1, 3):
            raise UserError(f"in_channels {where} is {self.in_channels}: 1 (grey) or 3 (colour) is needed")
        for name, values in {"mean": self.mean, "std": self.std}.items():
            if values is None:
                continue
            positive = name == "mean" or all(value > 0 for value in values)
            in_units = all(math.isfinite(value) and 0 <= value <= 1 for value in values)
            if len(values) != self.in_channels or not in_units or not positive:
                kind = "positive numbers" if name == "std" else "numbers"
                raise UserError(f"{name} {where} is {values}: {self.in_channels} {kind}, in [0, 1] units, are needed")

    def _why_missing(self, part: str, stage: str) -> str:
        if part == "val" and not self.has_validation:
            return "val_fraction is 0"
        return f'call setup("{stage}") first'

    def _warn(self, lines: Iterable[str]) -> None:
        for line in lines:
            rank_zero_warn(f"{type(self).__name__}: {line}")

    def _read_by_split(self) -> dict[Part, Samples]:
        """Put all images into the sets that the split says; say once which are new and which are gone."""
        assert self._split is not None
        if self._divided_by_split is None:
            parts, unlisted, missing = divide_by(self._split, self.all_images(), self.class_names)
            for part in _PARTS:
                wanted = sum(row.split == part for row in self._split)
                if wanted and part not in parts:
                    raise UserError(
                        f"{type(self).__name__} has none of the {wanted} {SET_NAMES[part]} images of {self._split_name}"
                    )
            self._warn(_describe_changes(unlisted, missing, self._split_name))
            self._divided_by_split = parts
        return self._divided_by_split

    def _check_statistics(self, part: Literal["train", "test"], *samples: Samples | None) -> None:
        published = self.published_statistics()
        if published is not None and self._split is None:
            labels = torch.cat([of_part.labels for of_part in samples if of_part is not None])
            check_statistics(published, part, labels, self.num_classes)

    def _labelled_parts(self) -> dict[str, Samples]:
        """The training, validation and test part; what is not set up yet is listed, and not decoded."""
        parts: dict[str, Samples | None] = dict(self._parts)
        if "train" not in parts:
            parts["train"], parts["val"] = self.divide()
        if "test" not in parts:
            parts["test"] = self._list_test()
        return {part: samples for part in _PARTS if (samples := parts.get(part)) is not None}

    def _count_test_images(self) -> int:
        if self._test_images is None:
            test = self._parts.get("test") or self._list_test()
            self._test_images = 0 if test is None else len(test)
        return self._test_images

    def _add(self, parts: dict[str, Samples]) -> None:
        """Prepares parts, all of them or none."""
        try:
            stores = {part: self._store(part, samples) for part, samples in parts.items()}
        except UnreadableImages:  # one file: now all are looked for
            test = self.official("test") if "train" in parts else None
            self._check_readable([*parts.values(), *([] if test is None else [test])])
            raise
        self._parts |= parts
        self._stores |= stores
        for part in ("val", "test"):
            if part in parts:
                self._warn(self._describe_absent_classes(part))

    def _describe_absent_classes(self, part: Literal["val", "test"]) -> list[str]:
        """Return the line on the classes without an image in a set, or none."""
        counts = torch.bincount(self._parts[part].labels, minlength=self.num_classes).tolist()
        absent = [name for name, count in zip(self.class_names, counts, strict=True) if count == 0]
        if not absent:
            return []
        of = f"class {absent[0]!r}" if len(absent) == 1 else f"{len(absent)} classes, such as {absent[0]!r}"
        name, present = SET_NAMES[part], self.num_classes - len(absent)
        return [f"no {name} image of {of}: {name} metrics are over {present} of {self.num_classes} classes"]

    def _store(self, part: str, samples: Samples) -> ImageStore:
        resize = self.image_format["resize"]
        if part == "train" and self.train_resize is not None:
            resize = self.train_resize
        return ImageStore(samples, in_channels=self.in_channels, resize=resize, cache_gb=self.cache_gb)

    def _check_files_of(self, part: Part) -> None:
        """Name all broken files of a part at once, not one by one as its images are needed."""
        if part in self._parts and not self._files_checked and self._stores[part].images is None:
            self._check_readable([self._parts[part]])

    def _check_readable(self, parts: Iterable[Samples]) -> None:
        files = [path for samples in parts if isinstance(samples.images, list) for path in samples.images]
        check_readable(files, self.in_channels)

    def _set_up_fit(self) -> None:
        if "train" in self._parts:
            return
        train, val = self.divide()
        self._add({"train": train} if val is None else {"train": train, "val": val})

    def divide(self) -> tuple[Samples, Samples | None]:
        """Lists the training and validation images in use, which nothing decodes yet.

        Raises:
            UserError: There are none, or too few for the settings; a class has none to train on.
        """
        train, val = self._divided()
        counts = torch.bincount(train.labels, minlength=self.num_classes)
        empty = [name for name, count in zip(self.class_names, counts.tolist(), strict=True) if count == 0]
        if empty:
            more = f" and {len(empty) - 1} more classes" if len(empty) > 1 else ""
            raise UserError(
                f"class {empty[0]!r}{more} of {type(self).__name__} has no image in the training part: "
                "give it images or leave it out of the classes"
            )
        return train, val

    def _divided(self) -> tuple[Samples, Samples | None]:
        train, val = self.official("train"), self.official("val")
        if train is None:
            raise UserError(f"{type(self).__name__} has no training part")
        self._check_statistics("train", train, val)
        if val is not None and not self.has_validation:
            train, val = concatenate(train, val), None
        wanted = self.samples_per_class
        if val is not None:
            if wanted is not None:
                in_val = math.floor(wanted * self.val_fraction + 0.5)
                if not 0 < in_val < wanted:
                    raise self._no_validation()
                train, val = self._choose(train, wanted - in_val), self._choose(val, in_val)
            return train, val
        if wanted is not None:
            train = self._choose(train, wanted)
        if not self.has_validation:
            return train, None
        train = train.identified()
        kept, cut = split_off(train, self.val_fraction, self.seed, self.class_names, equal=wanted is not None)
        if len(cut) == 0:
            raise self._no_validation()
        return train.subset(kept), train.subset(cut)

    def _choose(self, samples: Samples, count: int) -> Samples:
        samples = samples.identified()
        return samples.subset(choose_per_class(samples, count, self.seed, self.class_names))

    def _no_validation(self) -> UserError:
        of = "" if self.samples_per_class is None else f" of samples_per_class {self.samples_per_class}"
        return UserError(
            f"val_fraction {self.val_fraction}{of} leaves no image for training or none for validation in "
            f"{type(self).__name__}: another val_fraction is needed, or 0 to train on everything"
        )

    def _set_up_test(self, required: bool) -> None:
        if "test" in self._parts:
            return
        test = self._list_test()
        if test is None:
            if required:
                raise UserError(f"{type(self).__name__} has no test part")
            return
        self._add({"test": test})

    def _list_test(self) -> Samples | None:
        test = self.official("test")
        if test is not None:
            self._check_statistics("test", test)
        return test

    def _set_up_predict(self) -> None:
        if self.predict_dir is None:
            if "test" in self._parts:
                self._parts["predict"], self._stores["predict"] = self._parts["test"], self._stores["test"]
            return
        if "predict" in self._parts:
            return
        files = image_files(self.predict_dir)
        self._warn(describe_unread(Path(self.predict_dir), [Path(self.predict_dir)]))
        files = self._leave_out_broken(files)
        names = [path.relative_to(self.predict_dir).as_posix() for path in files]
        labels = torch.full((len(files),), -1, dtype=torch.int64)
        self._add({"predict": Samples(images=files, labels=labels, names=names)})

    def _leave_out_broken(self, files: list[Path]) -> list[Path]:
        """Return the files that can be read and warn of the others; each process looks at a share of them."""
        processes, rank = self._processes()
        broken = find_broken(files[rank::processes], self.in_channels)
        if processes > 1:
            shares: list[Any] = [None] * processes
            dist.all_gather_object(shares, broken)
            broken = {path: share[path] for path in files for share in shares if path in share}
        if not broken:
            return files
        self._unreadable = UnreadableImages.of(broken, write_list=rank == 0)
        if len(broken) == len(files):
            raise self._unreadable
        self._warn([f"{self._unreadable}; the other images are predicted"])
        return [path for path in files if path not in broken]

    def _train_sampler(self, labels: Tensor) -> TrainSampler:
        repeat = self.repeat
        if self.oversample_to is not None:
            repeat = max(1, self.oversample_to // int(torch.bincount(labels).max()))
        num_replicas, rank = self._processes()
        return TrainSampler(
            labels,
            self.batch_size,
            seed=self.seed,
            repeat=repeat,
            balanced=self.balanced_sampling,
            per_class=self.samples_per_class_in_batch,
            num_replicas=num_replicas,
            rank=rank,
        )

    def _measure(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel of the training images, as resized, in [0, 1] units."""
        self.samples("train")
        store = self._stores["train"]
        indices = np.arange(len(store))
        if not isinstance(store.images, Tensor) and len(store) > _MEASURED_FILES:
            generator = np.random.Generator(np.random.PCG64(self.seed))
            indices = np.sort(generator.choice(len(store), _MEASURED_FILES, replace=False))
        total = torch.zeros(self.in_channels, dtype=torch.float64)
        squares, pixels = total.clone(), 0
        levels = torch.arange(256, dtype=torch.float64) / 255
        for chunk in np.array_split(indices, max(1, len(indices) // 256)):
            images = store.fetch(chunk.tolist())
            for image in [images] if isinstance(images, Tensor) else [image[None] for image in images]:
                channels = image.transpose(0, 1).flatten(1)
                if image.dtype == torch.uint8:  # how often each value comes says all, many times faster
                    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
                    total += counts @ levels
                    squares += counts @ levels.square()
                else:
                    total += channels.double().sum(1)
                    squares += channels.double().square().sum(1)
                pixels += channels.shape[1]
        mean = total / pixels
        std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
        std[std < 1e-6] = 1.0  # a channel of one value only
        return mean.tolist(), std.tolist()

    def _processes(self) -> tuple[int, int]:
        """Number of processes and own rank."""
        if self.trainer is not None:
            return self.trainer.world_size, self.trainer.global_rank
        return process_group()

    def _progress(self, num_batches: int) -> tuple[int, int]:
        """The epoch to come, and how many of its batches ran before the run was resumed."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        progress: Any = loop.epoch_progress.current
        epoch = int(progress.processed)  # not trainer.current_epoch: that lags in a checkpoint of an epoch's end
        if not (loop.restarting and progress.ready > progress.processed):
            return epoch, 0
        # Lightning counts on from here, but would fetch from the epoch's beginning.
        ran = loop.epoch_loop.batch_progress.current.ready
        limit = self.trainer.limit_train_batches
        in_epoch = min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)
        if ran >= in_epoch:  # the epoch is over but not yet counted: with workers the next one begins to load at once
            return epoch + 1, 0
        return epoch, ran

    def _dataset(
        self, part: str, *, training: bool = False, with_index: bool = False, views: Views | None = None
    ) -> ImageDataset:
        samples = self.samples(part)
        return ImageDataset(
            self._stores[part],
            samples.labels,
            samples.names,
            image_size=self.image_size,
            resize=None if training or self.train_resize is None else self.image_format["resize"],
            training=training,
            augment=self.augment,
            seed=self.seed,
            with_index=with_index,
            views=views,
        )

    def _evaluation_loader(self, part: str, *, with_index: bool = False, views: Views | None = None) -> DataLoader[Any]:
        dataset = self._dataset(part, with_index=with_index, views=views)
        num_replicas, rank = self._processes()
        if len(dataset) < num_replicas:
            raise UserError(
                f"{len(dataset)} images in the {part} part of {type(self).__name__} for {num_replicas} processes: each "
                "needs one at least; use fewer processes"
            )
        return self._loader(dataset, EvaluationSampler(len(dataset), num_replicas=num_replicas, rank=rank))

    def _loader(self, dataset: ImageDataset, sampler: TrainSampler | EvaluationSampler) -> DataLoader[Any]:
        device = None if self.trainer is None else self.trainer.strategy.root_device.type
        return DataLoader(
            dataset=dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=identity_collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available() if device is None else device == "cuda",
        )


def _describe_changes(unlisted: list[str], missing: list[SplitRow], name: str) -> list[str]:
    """Return the lines on the images that a split lacks, and on those that are gone."""
    lines = []
    if unlisted:
        lines.append(
            f"not used: {plural(len(unlisted), 'image')} not in {name}, such as {unlisted[0]!r}; a new run "
            "uses all images"
        )
    if missing:
        counts = {part: sum(row.split == part for row in missing) for part in _PARTS}
        where = ", ".join(f"{count} {SET_NAMES[part]}" for part, count in counts.items() if count)
        lines.append(
            f"missing: {plural(len(missing), 'image')} of {name} ({where}), such as "
            f"{missing[0].file!r}; the others are used"
        )
    return lines
