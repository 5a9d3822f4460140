"""Augmentations of whole batches of images, on the images' device, drawn from a key per image."""

from metricloss_pl.augment.base import Augmentation
from metricloss_pl.augment.erasing import Cutout, RandomErasing
from metricloss_pl.augment.geometric import (
    HorizontalFlip,
    RandomResizedCrop,
    Rotation,
    Rotation90,
    ShiftCrop,
    VerticalFlip,
)
from metricloss_pl.augment.policies import AutoAugment, RandAugment, TrivialAugment

__all__ = [
    "Augmentation",
    "AutoAugment",
    "Cutout",
    "HorizontalFlip",
    "RandAugment",
    "RandomErasing",
    "RandomResizedCrop",
    "Rotation",
    "Rotation90",
    "ShiftCrop",
    "TrivialAugment",
    "VerticalFlip",
]
