"""Data of the user's own: classes are found in them, and a test set is cut from them if they have none."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch

from metricloss_pl.data.base import ImageDataModule
from metricloss_pl.data.samples import Samples, Split, concatenate
from metricloss_pl.data.splits import split_off
from metricloss_pl.errors import UserError, check_distinct, plural

_TEST_SEED = 1797  # fixed: the test set must not change with a run's `seed`
_SHOWN = 5  # class names, of many


@dataclass(kw_only=True, eq=False, repr=False)
class HeldOutDataModule(ImageDataModule, ABC):
    """Labeled images of which a stratified (and grouped) share is held out if there is no test set.

    A subclass implements `found_classes`, `given_splits` and `list_split`; it may override defaults and add fields.

    Args:
        test_fraction: Share of the images that becomes the test set if there is none, in (0, 1]; the same images for
            every `seed`. 1: all images, to test a network that was trained on others.
        classes: Names of the classes in the order of their labels; images of other classes are not used. None: the
            classes that are found, sorted. `test` takes those of the checkpoint.
    """

    test_fraction: float = 0.2
    classes: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.test_fraction <= 1:
            raise UserError(
                f"test_fraction of {type(self).__name__} is {self.test_fraction}: a number above 0 and at most 1 is "
                "needed"
            )
        check_distinct(f"classes of {type(self).__name__}", self.classes or [])
        self._whole: Split | None = "test" if self.test_fraction == 1 else None

    @property
    @abstractmethod
    def found_classes(self) -> list[str]:
        """Names of the classes in the data, in the order of the labels of `list_split`."""

    @property
    @abstractmethod
    def given_splits(self) -> Collection[Split]:
        """Sets that the data are already divided into; undivided images are "train"."""

    @abstractmethod
    def list_split(self, split: Split) -> Samples:
        """List the images of one of the `given_splits`."""

    @property
    def class_names(self) -> list[str]:
        """Names in `classes`, else those found; their order is the labels'."""
        return list(self.found_classes if self.classes is None else self.classes)

    @property
    def has_validation(self) -> bool:
        """Return whether there is a validation set; known right after construction."""
        return super().has_validation or self._whole == "val"

    def use_all_for(self, split: Split) -> None:
        """Test or validate on all images if the data have no such set of their own; nothing else is read then."""
        self._whole = split

    def read(self, split: Split) -> Samples | None:
        """Return the images of one set; without a test set, one is cut from the training set.

        Raises:
            UserError: No image is left for test, or there is none of `classes`.
        """
        if self._whole is not None:
            whole = [self._whole] if self._whole in self.given_splits else list(self.given_splits)
            return self._list(whole) if split == self._whole else None
        if split in self.given_splits and (split != "train" or "test" in self.given_splits):
            return self._list([split])
        if split == "val" or "train" not in self.given_splits:
            return None
        everything = self._list(["train"]).identified()
        if len(everything) == 0:
            return everything
        train, test = split_off(everything, self.test_fraction, _TEST_SEED, self.class_names, purpose="test")
        if len(test) == 0:
            raise UserError(
                f"test_fraction {self.test_fraction} of {plural(len(everything), 'image')} leaves none for test: every "
                "class keeps one for training, and groups stay whole; add images or groups, raise test_fraction, or "
                "give a test set"
            )
        return everything.subset(train if split == "train" else test)

    def all_images(self) -> Samples:
        """List the images of `classes` of all sets."""
        return self._list(self.given_splits)

    def left_out(self) -> list[str]:
        """Return a warning if there are images of other classes than `classes`."""
        unknown = [name for name in self.found_classes if name not in self.class_names]
        if not unknown:
            return []
        counts = sum(self.list_split(split).counts(len(self.found_classes)) for split in self.given_splits)
        images_of_class = dict(zip(self.found_classes, counts.tolist(), strict=True))  # type: ignore[union-attr]
        number = sum(images_of_class[name] for name in unknown)
        shown = ", ".join(f"{name!r} ({images_of_class[name]})" for name in unknown[:_SHOWN])
        more = ", ..." if len(unknown) > _SHOWN else ""
        return [
            f"not used: {plural(number, 'image')} of {plural(len(unknown), 'unknown class')}, {shown}{more}; the "
            f"{self.num_classes} known ones are {_listed(self.class_names)}"
        ]

    def _set_up_fit(self) -> None:
        if self._whole != "val":
            super()._set_up_fit()
        elif "val" not in self._samples and (images := self.official("val")) is not None:
            self._add({"val": images})  # no image is for training

    def _list(self, splits: Collection[Split]) -> Samples:
        """List the images of `classes` in given sets, with their labels."""
        listed = functools.reduce(concatenate, map(self.list_split, splits))
        if self.classes is None or self.classes == self.found_classes:
            return listed
        positions = {name: label for label, name in enumerate(self.classes)}
        new_labels = torch.tensor([positions.get(name, -1) for name in self.found_classes], dtype=torch.int64)
        if (new_labels < 0).all():
            raise UserError(
                f"{type(self).__name__} has none of the classes {_listed(self.classes)}: it has "
                f"{_listed(self.found_classes)}"
            )
        labels = new_labels[listed.labels]
        return replace(listed, labels=labels).subset(np.flatnonzero(labels.numpy() >= 0))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(map(repr, names[:_SHOWN]))}{more}"
