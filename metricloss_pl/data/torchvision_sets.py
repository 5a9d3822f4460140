"""Sets that torchvision downloads: MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, whole in memory."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torchvision import datasets

from metricloss_pl.data.base import ImageDataModule
from metricloss_pl.data.samples import Samples, Split, Statistics, array_samples
from metricloss_pl.download import UNREADABLE_ARCHIVE, Resource, fetch, make_folder
from metricloss_pl.errors import UserError, reason
from metricloss_pl.files import UNREADABLE_PICKLE

_CLOTHING = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
_CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_NAMES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)


@dataclass(kw_only=True, eq=False, repr=False)
class _TorchvisionDataModule(ImageDataModule, ABC):
    """A set of torchvision with an official training and test set.

    Args:
        root: Folder that holds, or will hold, torchvision's folder of the set.
        download: Download missing files; nothing is downloaded if the folder is there.
    """

    root: str = "data"
    download: bool = True

    dataset: ClassVar[Any]  # torchvision's class
    folder: ClassVar[str]  # the set's own folder, under root
    classes: ClassVar[tuple[str, ...]]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of their labels."""
        return list(self.classes)

    def prepare_data(self) -> None:
        """Download the set if it is not there yet.

        Raises:
            UserError: The download failed.
        """
        if self.download:
            self._fetch(Path(self.root).expanduser())

    def _fetch(self, root: Path) -> None:
        def build(partial: Path) -> Path:
            try:
                self.dataset(partial, download=True)
            except (*UNREADABLE_ARCHIVE, HTTPException, OSError, RuntimeError, ValueError) as error:
                name = self.dataset.__name__
                raise UserError(f"{root / self.folder}: downloading {name} failed: {reason(error)}") from error
            return partial / self.folder

        make_folder(root / self.folder, build)

    def read(self, split: Split) -> Samples | None:
        """Read the training or the test set; there is no official validation set.

        Raises:
            UserError: The files are missing or broken.
        """
        if split == "val":
            return None
        folder = Path(self.root).expanduser() / self.folder
        if not folder.is_dir():
            raise UserError(f"{self.dataset.__name__} is not in {folder}: switch `download` on, or put it there")
        try:
            dataset = self.dataset(self.root, train=split == "train")
        except UNREADABLE_PICKLE as error:
            raise UserError(f"{folder} cannot be read ({reason(error)}): remove it to download it again") from error
        return array_samples(np.asarray(dataset.data), dataset.targets, split)


@dataclass(kw_only=True, eq=False, repr=False)
class MNISTDataModule(_TorchvisionDataModule):
    """MNIST (LeCun et al. 1998): handwritten digits, gray, 28 x 28 px; 60,000 for training, 10,000 for test."""

    in_channels: int = 1

    dataset = datasets.MNIST
    folder = "MNIST/raw"
    classes = tuple("0123456789")


@dataclass(kw_only=True, eq=False, repr=False)
class FashionMNISTDataModule(MNISTDataModule):
    """Fashion-MNIST (Xiao et al. 2017): clothing, gray, 28 x 28 px; 60,000 for training, 10,000 for test."""

    dataset = datasets.FashionMNIST
    folder = "FashionMNIST/raw"
    classes = tuple(_CLOTHING.split(", "))


@dataclass(kw_only=True, eq=False, repr=False)
class CIFAR10DataModule(_TorchvisionDataModule):
    """CIFAR-10 (Krizhevsky 2009): objects in color, 32 x 32 px; 50,000 for training, 10,000 for test."""

    dataset = datasets.CIFAR10
    folder = "cifar-10-batches-py"
    classes: ClassVar[tuple[str, ...]] = tuple(_CIFAR10_NAMES.split())

    def _fetch(self, root: Path) -> None:
        archive = Resource(self.dataset.filename, self.dataset.url, self.dataset.tgz_md5)
        fetch([archive], root, self.folder, archives_hold_folder=True)


@dataclass(kw_only=True, eq=False, repr=False)
class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100 (Krizhevsky 2009): objects in color, 32 x 32 px; 500 images per class for training, 10,000 for test.

    Mean and standard deviation are those of Barz and Denzler (2020).
    """

    mean: list[float] | None = field(default_factory=lambda: [129.30386 / 255, 124.06987 / 255, 112.43356 / 255])
    std: list[float] | None = field(default_factory=lambda: [68.17020 / 255, 65.39176 / 255, 70.41801 / 255])

    dataset = datasets.CIFAR100
    folder = "cifar-100-python"
    statistics = Statistics(classes=100, train=50000, test=10000, images_per_class=(500, 500))
    classes = tuple(_CIFAR100_NAMES.split())
