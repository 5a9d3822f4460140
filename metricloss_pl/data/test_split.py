"""Data of a user's own, whose classes are found in them and whose test set is cut from them if they have none."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch

from metricloss_pl.data.base import ImageDataModule, Part
from metricloss_pl.data.samples import Samples, concatenate
from metricloss_pl.data.splits import split_off
from metricloss_pl.errors import UserError, plural

_TEST_SEED = 1797  # fixed: the test set must not change with a run's `seed`
_SHOWN = 5  # class names, of many


@dataclass(kw_only=True, eq=False, repr=False)
class HeldOutDataModule(ImageDataModule, ABC):
    """Labelled images, of which a stratified (and grouped) share is held out for test where no test set is given.

    A subclass answers `found_classes`, `given` and `list_part`; it may override defaults and add fields.

    Args:
        test_fraction: Share of the images that becomes the test set where none is given, in (0, 1]; the same images for
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
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise UserError(f"classes of {type(self).__name__} names {twice!r} twice")
        self._whole: Part | None = "test" if self.test_fraction == 1 else None

    @property
    @abstractmethod
    def found_classes(self) -> list[str]:
        """The names of the classes in the data, in the order of the labels of `list_part`."""

    @property
    @abstractmethod
    def given(self) -> Collection[Part]:
        """The sets that the data are divided into already; undivided images are "train"."""

    @abstractmethod
    def list_part(self, part: Part) -> Samples:
        """List the images of one of the `given` sets."""

    @property
    def class_names(self) -> list[str]:
        """The names in `classes`, else those found; their order is the labels'."""
        return list(self.found_classes if self.classes is None else self.classes)

    @property
    def has_validation(self) -> bool:
        """Return whether there is a validation set; answered right after construction."""
        return super().has_validation or self._whole == "val"

    def use_all_for(self, part: Part) -> None:
        """Test or validate on all images, if the data have no such set of their own; nothing else is read then."""
        self._whole = part

    def read(self, part: Part) -> Samples | None:
        """Return the images of one set; a test set that is not given is cut from the training set.

        Raises:
            UserError: No image is left for test, or there is none of `classes`.
        """
        if self._whole is not None:
            whole = [self._whole] if self._whole in self.given else list(self.given)
            return self._list(whole) if part == self._whole else None
        if part in self.given and (part != "train" or "test" in self.given):
            return self._list([part])
        if part == "val" or "train" not in self.given:
            return None
        return self._hold_out(self._list(["train"]), part)

    def all_images(self) -> Samples:
        """List all images of `classes`, whatever set they are in."""
        return self._list(self.given)

    def left_out(self) -> list[str]:
        """Say how many images of other classes than `classes` there are."""
        unknown = [name for name in self.found_classes if name not in self.class_names]
        if not unknown:
            return []
        counts = np.zeros(len(self.found_classes), dtype=np.int64)
        for part in self.given:
            counts += np.bincount(self.list_part(part).labels.numpy(), minlength=len(counts))
        numbers = [f"{name!r} ({counts[self.found_classes.index(name)]})" for name in unknown[:_SHOWN]]
        number = sum(counts[self.found_classes.index(name)] for name in unknown)
        more = ", ..." if len(unknown) > _SHOWN else ""
        return [
            f"not used: {plural(number, 'image')} of {plural(len(unknown), 'unknown class')}, {', '.join(numbers)}"
            f"{more}; the {self.num_classes} known ones are {_listed(self.class_names)}"
        ]

    def _set_up_fit(self) -> None:
        if self._whole != "val":
            super()._set_up_fit()
        elif "val" not in self._parts and (images := self.official("val")) is not None:
            self._add({"val": images})  # of images that are all for validation, there are none to train on

    def _hold_out(self, everything: Samples, part: Part) -> Samples:
        if len(everything) == 0:
            return everything
        everything = everything.identified()
        train, test = split_off(everything, self.test_fraction, _TEST_SEED, self.class_names, purpose="test")
        if len(test) == 0:
            whole = "" if everything.groups is None else ", and groups stay whole"
            raise UserError(
                f"test_fraction {self.test_fraction} of {plural(len(everything), 'image')} leaves none for test: every "
                f"class keeps one for training{whole}; give more images{' and groups' if whole else ''}, a larger "
                "fraction, or a test set of your own"
            )
        return everything.subset(train if part == "train" else test)

    def _list(self, parts: Collection[Part]) -> Samples:
        """List the images of `classes` in given sets, with their labels."""
        listed = functools.reduce(concatenate, map(self.list_part, parts))
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
