"""Policies of the AutoAugment family on whole batches: each image draws its own operations and strengths."""

from __future__ import annotations

import functools
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from metricloss_pl.augment.base import Augmentation
from metricloss_pl.augment.keys import uniform
from metricloss_pl.augment.operations import Operation, apply_operations
from metricloss_pl.errors import UserError

_BINS = 31  # strengths of RandAugment and TrivialAugment, from none to the strongest
_DRAWN = int(Operation.INVERT)  # their operations: all but INVERT, the last, which only AutoAugment has
_SIGNED = slice(Operation.SHEAR_X, Operation.CONTRAST + 1)  # either direction, with equal probability


class _Strongest(NamedTuple):
    """Strongest value of each kind of operation."""

    shear: float
    pixels: float | None  # None: 150 of 331 px, the side of the images of AutoAugment's search
    degrees: float
    factor: float
    bits: int


_MODERATE = _Strongest(shear=0.3, pixels=None, degrees=30.0, factor=0.9, bits=4)
_WIDE = _Strongest(shear=0.99, pixels=32.0, degrees=135.0, factor=0.99, bits=2)


@functools.lru_cache(maxsize=32)
def _strengths(strongest: _Strongest, bins: int, height: int, width: int, device: torch.device) -> Tensor:
    """Return (2, operations, bins) float64: strengths of positive and of negative sign."""
    share = 150.0 / 331.0
    shear = torch.linspace(0, strongest.shear, bins)
    factor = torch.linspace(0, strongest.factor, bins)
    table = torch.zeros(len(Operation), bins)
    table[Operation.SHEAR_X] = table[Operation.SHEAR_Y] = shear
    table[Operation.TRANSLATE_X] = torch.linspace(0, strongest.pixels or share * width, bins)
    table[Operation.TRANSLATE_Y] = torch.linspace(0, strongest.pixels or share * height, bins)
    table[Operation.ROTATE] = torch.linspace(0, strongest.degrees, bins)
    table[Operation.COLOR : Operation.CONTRAST + 1] = factor
    table[Operation.POSTERIZE] = torch.linspace(8, strongest.bits, bins).round()
    table[Operation.SOLARIZE] = torch.linspace(1, 0, bins)
    negative = table.clone()
    negative[_SIGNED] *= -1
    return torch.stack([table, negative]).double().to(device)


class _Policy(Augmentation):
    """Random operations, one after the other; the images must be gray or color."""

    changes_color = True

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        operations, strengths = self.draw(keys, *images.shape[2:])
        for step in range(operations.shape[1]):
            images = apply_operations(images, operations[:, step], strengths[:, step])
        return images

    @abstractmethod
    def draw(self, keys: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return operations, int64, and strengths, float64, for images of that size, each (B, steps)."""


class RandAugment(_Policy):
    """RandAugment (Cubuk et al. 2020) as in torchvision: random operations of one strength per image.

    Args:
        num_ops: Operations per image; at least 0.
        magnitude: Strength of the operations, from 0 to 30.
    """

    def __init__(self, num_ops: int = 2, magnitude: int = 9) -> None:
        if num_ops < 0:
            raise UserError(f"RandAugment: num_ops is {num_ops}: at least 0 is needed")
        if not 0 <= magnitude < _BINS:
            raise UserError(f"RandAugment: magnitude is {magnitude}: a whole number from 0 to 30 is needed")
        self.num_ops = num_ops
        self.magnitude = magnitude

    def draw(self, keys: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return operations and strengths (B, num_ops)."""
        choice, sign = uniform(keys, 2 * self.num_ops).chunk(2, 1)
        operations = (choice * _DRAWN).to(torch.int64)
        table = _strengths(_MODERATE, _BINS, height, width, choice.device)[..., self.magnitude]
        return operations, table[(sign < 0.5).to(torch.int64), operations]


class TrivialAugment(_Policy):
    """TrivialAugment (Mueller and Hutter 2021), wide, as in torchvision: one operation of random strength per image."""

    def draw(self, keys: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return operations and strengths (B, 1)."""
        choice, level, sign = uniform(keys, 3).split(1, 1)
        operations = (choice * _DRAWN).to(torch.int64)
        table = _strengths(_WIDE, _BINS, height, width, choice.device)
        return operations, table[(sign < 0.5).to(torch.int64), operations, (level * _BINS).to(torch.int64)]


class AutoAugment(_Policy):
    """AutoAugment (Cubuk et al. 2019) with the policy for CIFAR-10, as in torchvision.

    One of 25 pairs of operations per image, each operation with its own probability and strength. The policy was
    searched with the labels of CIFAR-10, so that results on CIFAR-10 with it are not results from few labels alone.
    """

    def draw(self, keys: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return operations and strengths (B, 2)."""
        draws = uniform(keys, 5)
        codes, probabilities, levels = _cifar_pairs(draws.device)
        pairs = (draws[:, 0] * len(_CIFAR_PAIRS)).to(torch.int64)
        applied = draws[:, 1:3] < probabilities[pairs]
        operations = torch.where(applied, codes[pairs], int(Operation.IDENTITY))
        table = _strengths(_MODERATE, 10, height, width, draws.device)
        return operations, table[(draws[:, 3:] < 0.5).to(torch.int64), operations, levels[pairs]]


@functools.lru_cache(maxsize=4)
def _cifar_pairs(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return operations, probabilities and strengths (of 0 to 9), each (25, 2)."""
    codes, probabilities, levels = torch.tensor(_CIFAR_PAIRS, dtype=torch.float64, device=device).unbind(2)
    return codes.to(torch.int64), probabilities, levels.to(torch.int64)


# Operation, probability, strength (0 where it has none).
_CIFAR_PAIRS = (
    ((Operation.INVERT, 0.1, 0), (Operation.CONTRAST, 0.2, 6)),
    ((Operation.ROTATE, 0.7, 2), (Operation.TRANSLATE_X, 0.3, 9)),
    ((Operation.SHARPNESS, 0.8, 1), (Operation.SHARPNESS, 0.9, 3)),
    ((Operation.SHEAR_Y, 0.5, 8), (Operation.TRANSLATE_Y, 0.7, 9)),
    ((Operation.AUTOCONTRAST, 0.5, 0), (Operation.EQUALIZE, 0.9, 0)),
    ((Operation.SHEAR_Y, 0.2, 7), (Operation.POSTERIZE, 0.3, 7)),
    ((Operation.COLOR, 0.4, 3), (Operation.BRIGHTNESS, 0.6, 7)),
    ((Operation.SHARPNESS, 0.3, 9), (Operation.BRIGHTNESS, 0.7, 9)),
    ((Operation.EQUALIZE, 0.6, 0), (Operation.EQUALIZE, 0.5, 0)),
    ((Operation.CONTRAST, 0.6, 7), (Operation.SHARPNESS, 0.6, 5)),
    ((Operation.COLOR, 0.7, 7), (Operation.TRANSLATE_X, 0.5, 8)),
    ((Operation.EQUALIZE, 0.3, 0), (Operation.AUTOCONTRAST, 0.4, 0)),
    ((Operation.TRANSLATE_Y, 0.4, 3), (Operation.SHARPNESS, 0.2, 6)),
    ((Operation.BRIGHTNESS, 0.9, 6), (Operation.COLOR, 0.2, 8)),
    ((Operation.SOLARIZE, 0.5, 2), (Operation.INVERT, 0.0, 0)),
    ((Operation.EQUALIZE, 0.2, 0), (Operation.AUTOCONTRAST, 0.6, 0)),
    ((Operation.EQUALIZE, 0.2, 0), (Operation.EQUALIZE, 0.6, 0)),
    ((Operation.COLOR, 0.9, 9), (Operation.EQUALIZE, 0.6, 0)),
    ((Operation.AUTOCONTRAST, 0.8, 0), (Operation.SOLARIZE, 0.2, 8)),
    ((Operation.BRIGHTNESS, 0.1, 3), (Operation.COLOR, 0.7, 0)),
    ((Operation.SOLARIZE, 0.4, 5), (Operation.AUTOCONTRAST, 0.9, 0)),
    ((Operation.TRANSLATE_Y, 0.9, 9), (Operation.TRANSLATE_Y, 0.7, 9)),
    ((Operation.AUTOCONTRAST, 0.9, 0), (Operation.SOLARIZE, 0.8, 3)),
    ((Operation.EQUALIZE, 0.8, 0), (Operation.INVERT, 0.1, 0)),
    ((Operation.TRANSLATE_Y, 0.7, 9), (Operation.AUTOCONTRAST, 0.9, 0)),
)
