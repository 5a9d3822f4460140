"""Resizing and conversion to gray by Pillow's arithmetic, the same for files, arrays and tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["resize_image", "resized_size", "to_gray", "with_shorter_side"]


def resized_size(width: int, height: int, side: int | None) -> tuple[int, int]:
    """Return the width and height of an image whose shorter side is brought to `side` px; None: unchanged."""
    if side is None:
        return width, height
    long = int(side * max(width, height) / min(width, height))
    return (side, long) if width <= height else (long, side)


def resize_image(image: Image.Image, side: int | None) -> Image.Image:
    """Resize a Pillow image so that its shorter side has `side` px (antialiased bilinear); None: unchanged."""
    from PIL import Image

    size = resized_size(*image.size, side)
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def with_shorter_side(images: Tensor, side: int | None) -> Tensor:
    """Resize (..., C, H, W), uint8 or float32, as `resize_image` resizes each channel."""
    from PIL import Image

    if side is None or min(images.shape[-2:]) == side:
        return images
    channels = images.reshape(-1, *images.shape[-2:]).numpy()
    width, height = resized_size(images.shape[-1], images.shape[-2], side)
    resized = np.empty((len(channels), height, width), channels.dtype)
    for number, channel in enumerate(channels):
        resized[number] = resize_image(Image.fromarray(channel), side)
    return torch.from_numpy(resized).view(*images.shape[:-2], height, width)


def to_gray(images: Tensor) -> Tensor:
    """Convert (..., 3, H, W) to (..., 1, H, W) by the luma weights of ITU-R 601-2, rounded as Pillow does."""
    red, green, blue = images.unbind(-3)
    if images.is_floating_point():
        return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(-3)
    luma = (19595 * red.int() + 38470 * green.int() + 7471 * blue.int() + 0x8000) >> 16
    return luma.to(torch.uint8).unsqueeze(-3)
