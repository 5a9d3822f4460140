"""LightningDataModules: labeled images in a training, a validation and a test set."""

from metricloss_pl.data.archives import ArchiveDataModule
from metricloss_pl.data.base import ImageDataModule
from metricloss_pl.data.cars import StanfordCarsDataModule
from metricloss_pl.data.cub import CUB200DataModule
from metricloss_pl.data.digits import DigitsDataModule
from metricloss_pl.data.flowers import Flowers102DataModule
from metricloss_pl.data.folder import ImageFolderDataModule
from metricloss_pl.data.imagenet_subset import ImageNetSubsetDataModule
from metricloss_pl.data.lists import FileListDataModule, ImageListDataModule
from metricloss_pl.data.mit67 import MIT67DataModule
from metricloss_pl.data.nab import NABirdsDataModule
from metricloss_pl.data.npz import NpzDataModule
from metricloss_pl.data.torchvision_sets import (
    CIFAR10DataModule,
    CIFAR100DataModule,
    FashionMNISTDataModule,
    MNISTDataModule,
)
from metricloss_pl.data.unlabeled import UnlabeledFolderDataModule

__all__ = [
    "ArchiveDataModule",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "CUB200DataModule",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "FileListDataModule",
    "Flowers102DataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageListDataModule",
    "ImageNetSubsetDataModule",
    "MIT67DataModule",
    "MNISTDataModule",
    "NABirdsDataModule",
    "NpzDataModule",
    "StanfordCarsDataModule",
    "UnlabeledFolderDataModule",
]
