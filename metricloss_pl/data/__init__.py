"""The LightningDataModules: labelled images in a training, a validation and a test part."""

from metricloss_pl.data.augment import (
    Augmentation,
    Cutout,
    HorizontalFlip,
    RandAugment,
    RandomErasing,
    Rotation,
    ShiftCrop,
    TrivialAugment,
    VerticalFlip,
)
from metricloss_pl.data.base import ImageDataModule
from metricloss_pl.data.cub import CUB200DataModule
from metricloss_pl.data.digits import DigitsDataModule
from metricloss_pl.data.folder import ImageFolderDataModule
from metricloss_pl.data.image_list import ImageListDataModule
from metricloss_pl.data.npz import NpzDataModule
from metricloss_pl.data.torchvision_sets import CIFAR10DataModule, FashionMNISTDataModule, MNISTDataModule
from metricloss_pl.data.unlabelled import UnlabelledFolderDataModule

__all__ = [
    "Augmentation",
    "CIFAR10DataModule",
    "CUB200DataModule",
    "Cutout",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "HorizontalFlip",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageListDataModule",
    "MNISTDataModule",
    "NpzDataModule",
    "RandAugment",
    "RandomErasing",
    "Rotation",
    "ShiftCrop",
    "TrivialAugment",
    "UnlabelledFolderDataModule",
    "VerticalFlip",
]
