"""Policies of color and geometric operations."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from metricloss_pl.augment.base import Augmentation
from metricloss_pl.errors import UserError

_BILINEAR = v2.InterpolationMode.BILINEAR


class _PerImage(Augmentation):
    """An augmentation of torchvision, applied image by image under a random state that the image's key seeds."""

    _transform: nn.Module

    changes_color = True

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        generator = torch.default_generator
        state = generator.get_state()
        try:
            changed = []
            for image, key in zip(images, keys.tolist(), strict=True):
                generator.manual_seed(key % 2**64)
                changed.append(self._transform(image))
        finally:
            generator.set_state(state)
        return torch.stack(changed)


class RandAugment(_PerImage):
    """torchvision's RandAugment (Cubuk et al. 2020): random operations of one strength, image by image.

    Args:
        num_ops: Operations per image; at least 0.
        magnitude: Strength of the operations, from 0 to 30.
    """

    def __init__(self, num_ops: int = 2, magnitude: int = 9) -> None:
        if num_ops < 0:
            raise UserError(f"RandAugment: num_ops is {num_ops}: at least 0 is needed")
        if not 0 <= magnitude <= 30:
            raise UserError(f"RandAugment: magnitude is {magnitude}: a whole number from 0 to 30 is needed")
        self.num_ops = num_ops
        self.magnitude = magnitude
        self._transform = v2.RandAugment(num_ops=num_ops, magnitude=magnitude, interpolation=_BILINEAR)


class TrivialAugment(_PerImage):
    """torchvision's TrivialAugmentWide (Mueller and Hutter 2021): one random operation of random strength per image."""

    def __init__(self) -> None:
        self._transform = v2.TrivialAugmentWide(interpolation=_BILINEAR)
