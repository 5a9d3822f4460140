"""Base class of all augmentations, with draws and checks that several of them share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from metricloss_pl.errors import UserError

ATTEMPTS = 10  # at a rectangle that fits


class Augmentation(ABC):
    """Random change of training images; in YAML a class name, or `class_path` and `init_args`.

    Called with images (B, C, H, W), uint8 or float32 in [0, 1], and the images' keys (B,) int64, both on one
    device, it returns images of the same dtype, shape and range. All of its randomness comes from the keys.

    With `before_crop` it is applied to the resized images and may change their size, else to the crops. With
    `changes_color` the images must be gray or color.
    """

    before_crop: bool = False
    changes_color: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        """Return the changed images (B, C, H, W)."""

    def for_size(self, image_size: int | None) -> Augmentation:
        """Return the augmentation for crops of this side in px (None: images as they are), by default itself."""
        return self

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({arguments})"


def check_probability(owner: Augmentation, probability: float) -> float:
    """Return the probability if it is in [0, 1]; raise a `UserError` otherwise."""
    if not 0 <= probability <= 1:
        raise UserError(f"{type(owner).__name__}: probability is {probability}: a number from 0 to 1 is needed")
    return float(probability)


def check_range(owner: Augmentation, name: str, values: tuple[float, float], upper: float) -> tuple[float, float]:
    """Return (low, high) if 0 < low <= high <= upper; raise a `UserError` otherwise."""
    low, high = values
    if not 0 < low <= high <= upper:
        limit = f"at most {upper:g}" if math.isfinite(upper) else "finite"
        raise UserError(f"{type(owner).__name__}: {name} is {list(values)}: 0 < low <= high, {limit}, is needed")
    return float(low), float(high)


def draw_rectangles(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], draws: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first of several random rectangles that fits into (height, width) px.

    Args:
        height: Height of the image in px.
        width: Width of the image in px.
        area: Smallest and largest share of the image's area, drawn uniformly.
        aspect: Smallest and largest ratio of height to width, drawn log-uniformly.
        draws: (B, 2 * ATTEMPTS) numbers in [0, 1).

    Returns:
        Heights and widths in px, (B,) int64, and whether any fits, (B,) bool.
    """
    shares = area[0] + (area[1] - area[0]) * draws[:, :ATTEMPTS]
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratios = (low + (high - low) * draws[:, ATTEMPTS:]).exp()
    heights = (shares * height * width * ratios).sqrt().round().to(torch.int64)
    widths = (shares * height * width / ratios).sqrt().round().to(torch.int64)
    fits = (heights >= 1) & (widths >= 1) & (heights <= height) & (widths <= width)
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    return heights.gather(1, first)[:, 0], widths.gather(1, first)[:, 0], fits.any(1)
