"""Sizes and augmentations of the training images, given or derived from the training set."""

from __future__ import annotations

import functools
import math
from abc import ABC
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from metricloss_pl.augment import Augmentation, HorizontalFlip, Rotation90
from metricloss_pl.data.labeled_sets import LabeledSets
from metricloss_pl.data.reading import DECODING_THREADS, UnreadableImages, read_head
from metricloss_pl.data.sampler import process_group
from metricloss_pl.data.samples import Samples
from metricloss_pl.errors import plural

__all__ = ["Auto", "Orientation", "TrainingSettings", "batch_size_for", "pretrained_weights", "repeat_for"]

Auto = Literal["auto"]
Orientation = Literal["upright", "any"]
_FLIPS: dict[str | None, list[Augmentation]] = {
    None: [],
    "upright": [HorizontalFlip()],
    "any": [HorizontalFlip(), Rotation90()],  # all eight symmetries of the square
}

_LARGEST_SIDE = 128  # px
_LARGEST_PRETRAINED_SIDE = 224
_BATCH_SIZES = (16, 128)
_REPEATS = (1, 12)


@dataclass(kw_only=True, eq=False, repr=False)
class TrainingSettings(LabeledSets, ABC):
    """Labeled sets with the sizes and augmentations of a training, given or derived from the training set.

    Args:
        batch_size: Images per step and process. `auto`: the power of two next to an eighth of the training images, from
            16 to 128, shared out to the processes; in evaluation 64.
        repeat: Number of times that each training image is used per epoch, augmented differently each time. `auto`:
            8 sqrt(500 / N) for N training images, from 1 to 12, so that the uses of all images grow with sqrt(N).
        oversample_to: Alternative to `repeat`: images N per epoch of the largest class. Each image is repeated
            floor(N / n) times, at least once, with n the size of that class, so that epochs of small and large sets
            have about the same length. None: `repeat` times.
        in_channels: Channels of the images. Gray (1) and color (3) are converted into each other; any other number must
            be that of the images.
        image_size: Side in px of the square crop that the network sees: random in training if the image is larger, else
            the center; smaller images are padded by reflection. `auto`: the size that the pretrained weights of the
            backbone were trained on, at most 224 if the network takes others; without such weights the median of the
            shorter sides of the training and validation images, at most 128. None: images as they are, of one size.
        augment: Augmentations of the training images, applied in this order.
        orientation: Flips and rotations that leave the class of an image unchanged, applied before `augment`.
            `upright`: left and right may be exchanged. `any`: images have no upright orientation, as those of
            microscopes and satellites; they are flipped and rotated by multiples of 90 degrees. None: none.
    """

    batch_size: int | Auto = 64
    repeat: int | Auto = 1
    oversample_to: int | None = None
    in_channels: int = 3
    image_size: int | Auto | None = None
    augment: list[Augmentation] = field(default_factory=list)
    orientation: Orientation | None = None

    @property
    def resolved_batch_size(self) -> int:
        """Training images per step and process; if `batch_size` is `auto`, the training images are listed for it."""
        return self._resolve_batch_size(None)

    @property
    def resolved_repeat(self) -> int:
        """Uses of each training image per epoch; unless `repeat` says it, the training images are listed for it."""
        return self._resolve_repeat(None)

    @property
    def resolved_image_size(self) -> int | None:
        """Side in px of the images; if `image_size` is `auto`, the heads of the training images are read for it.

        A model that is evaluated gets images of the size that it was trained on.
        """
        if self.image_size != "auto":
            return self.image_size
        if (trained := self._format_in_evaluation()) is not None:
            return trained["image_size"]
        weights = pretrained_weights(getattr(self, "trainer", None))
        if weights is not None and weights.image_size is not None:
            size: int = weights.image_size
            return size if weights.is_size_fixed else min(size, _LARGEST_PRETRAINED_SIDE)
        sides = np.concatenate([self._shorter_sides(samples) for samples in self._images_to_divide()])
        return int(min(np.median(sides), _LARGEST_SIDE)) if len(sides) else _LARGEST_SIDE

    def _resolve_batch_size(self, train: Samples | None) -> int:
        """Return the images per step and process for training images, which are listed if they are None and needed."""
        if self.batch_size != "auto":
            return self.batch_size
        train = self._training_images() if train is None else train
        return max(1, batch_size_for(len(train)) // self._processes()[0])

    def _resolve_repeat(self, train: Samples | None) -> int:
        """Return the uses per epoch of training images, which are listed if they are None and needed."""
        if self.oversample_to is None and self.repeat != "auto":
            return self.repeat
        train = self._training_images() if train is None else train
        if self.oversample_to is None:
            return repeat_for(len(train))
        return max(1, self.oversample_to // int(train.labels.bincount().max()))

    def _format_in_evaluation(self) -> dict[str, int | None] | None:
        """Return how images were prepared in the training of the model that a Trainer evaluates, if it is known."""
        trainer = getattr(self, "trainer", None)
        if trainer is None or trainer.state.fn in (None, TrainerFn.FITTING):
            return None
        return getattr(trainer.lightning_module, "image_format", None)

    def _awaits_checkpoint(self) -> bool:
        """Return whether the size of the images is that of a checkpoint which a Trainer has yet to load."""
        trainer = getattr(self, "trainer", None)
        is_evaluated = trainer is not None and trainer.state.fn not in (None, TrainerFn.FITTING)
        return self.image_size == "auto" and is_evaluated and self._format_in_evaluation() is None

    @property
    def augmentations(self) -> list[Augmentation]:
        """Augmentations of the training images, those of `orientation` first."""
        return [*_FLIPS[self.orientation], *self.augment]

    def _warn_of_enlarged(self) -> None:
        """Warn of training images that are smaller than the size that the network sees."""
        size = self.resolved_image_size
        if size is None or not (smaller := int((self._shorter_sides(self._training_images()) < size).sum())):
            return
        weights = pretrained_weights(getattr(self, "trainer", None))
        source = "" if weights is None or weights.image_size is None else f", the size for {weights.source}"
        images = plural(smaller, "training image")
        self._warn([f"{images} of less than {size} px will be enlarged to {size} px{source}"])

    def _shorter_sides(self, samples: Samples) -> np.ndarray:
        """Return the shorter side in px of each image that can be read, without decoding files."""
        if isinstance(samples.images, Tensor):
            return np.full(len(samples), min(samples.images.shape[-2:]))
        known = self._known_sides
        new = [path for path in samples.files if path not in known]
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            known.update(zip(new, pool.map(self._shorter_side, new), strict=True))
        sides = np.array([known[path] for path in samples.files])
        return sides[sides > 0]

    @functools.cached_property
    def _known_sides(self) -> dict[Path, int]:
        return {}

    def _shorter_side(self, path: Path) -> int:
        try:
            return min(read_head(path, self.in_channels)[:2])
        except UnreadableImages:  # named when it is decoded
            return 0

    def _images_to_divide(self) -> list[Samples]:
        """Return the training and validation images, whose sizes do not depend on `val_fraction`."""
        sets = [self._samples.get(split) for split in ("train", "val")] if "train" in self._samples else self.divide()
        return [samples for samples in sets if samples is not None]

    def _training_images(self) -> Samples:
        return self._images_to_divide()[0]

    def _processes(self) -> tuple[int, int]:
        """Return the number of processes and the rank of this one."""
        trainer = getattr(self, "trainer", None)
        return process_group() if trainer is None else (trainer.world_size, trainer.global_rank)


def pretrained_weights(trainer: Trainer | None) -> Any:
    """Return the metadata of the pretrained weights of the backbone that a Trainer trains, or None."""
    backbone = None if trainer is None else getattr(trainer.lightning_module, "backbone", None)
    return getattr(backbone, "weights_metadata", None)


def batch_size_for(images: int) -> int:
    """Return the power of two next to an eighth of the training images, from 16 to 128."""
    return int(min(max(2 ** round(math.log2(max(1, images) / 8)), _BATCH_SIZES[0]), _BATCH_SIZES[1]))


def repeat_for(images: int) -> int:
    """Return how often each of so many training images is used per epoch: 8 sqrt(500 / images), from 1 to 12."""
    return min(max(round(8 * math.sqrt(500 / max(1, images))), _REPEATS[0]), _REPEATS[1])
