"""Sets that torchvision knows how to download: MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, whole in memory."""

from __future__ import annotations

import math
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from filelock import FileLock
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from metricloss_pl.data.base import ImageDataModule
from metricloss_pl.data.samples import Samples, Split, Statistics, array_samples
from metricloss_pl.download import UNREADABLE_ARCHIVE
from metricloss_pl.errors import UserError, reason
from metricloss_pl.files import UNREADABLE_PICKLE


@dataclass(kw_only=True, eq=False, repr=False)
class _TorchvisionDataModule(ImageDataModule, ABC):
    """A set of torchvision with an official training and test split.

    Args:
        root: Folder that holds, or will hold, torchvision's folder of the set.
        download: Download what is missing; nothing is downloaded where the files are there.
    """

    root: str = "data"
    download: bool = True

    dataset: ClassVar[Any]  # torchvision's class
    folder: ClassVar[str]  # the set's own folder, under root
    files: ClassVar[tuple[str, ...]]  # what has to be in it
    classes: ClassVar[tuple[str, ...]]

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        return list(self.classes)

    def prepare_data(self) -> None:
        """Downloads the set where it is not there yet.

        Raises:
            UserError: The download failed.
        """
        if not self.download:
            return
        try:
            if not self._is_whole():
                self._download()
        except (*UNREADABLE_ARCHIVE, HTTPException, OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{self._expected()}; downloading failed: {reason(error)}") from error

    def read(self, split: Split) -> Samples | None:
        """Reads the training or the test split; there is no official validation split.

        Raises:
            UserError: The files are missing or broken.
        """
        if split == "val":
            return None
        if not all((self._directory() / name).is_file() for name in self.files):
            raise UserError(f"{self._expected()}; switch `download` on, or put them there")
        try:
            dataset = self.dataset(self.root, train=split == "train")
        except UNREADABLE_PICKLE as error:
            raise UserError(
                f"{self._directory()} cannot be read ({reason(error)}): remove it, then download it again"
            ) from error
        return array_samples(np.asarray(dataset.data), dataset.targets, split)

    def _download(self) -> None:
        root = Path(self.root).expanduser()
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{self.dataset.__name__}.lock"):  # another run may be at it
            if not self._is_whole():
                self._discard_torn_files()
                self.dataset(self.root, download=True)

    def _directory(self) -> Path:
        return Path(self.root).expanduser() / self.folder

    def _expected(self) -> str:
        return (
            f"{self.dataset.__name__} is not in {self._directory()}, where {', '.join(self.files)} are expected whole"
        )

    @abstractmethod
    def _is_whole(self) -> bool:
        """Tells whether all files are there, none of them cut short by an interruption."""

    def _discard_torn_files(self) -> None:
        """Removes what an interruption left and torchvision would take as complete."""


@dataclass(kw_only=True, eq=False, repr=False)
class MNISTDataModule(_TorchvisionDataModule):
    """MNIST (LeCun et al. 1998): handwritten digits, grey, 28 x 28 px; 60,000 for training, 10,000 for test."""

    in_channels: int = 1

    dataset = datasets.MNIST
    folder = "MNIST/raw"
    files = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    classes = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")

    def _is_whole(self) -> bool:
        return all(_is_whole_idx(self._directory() / name) for name in self.files)

    def _discard_torn_files(self) -> None:
        for name in self.files:
            if not _is_whole_idx(self._directory() / name):
                (self._directory() / name).unlink(missing_ok=True)


def _is_whole_idx(file: Path) -> bool:
    """Tells whether an IDX file is there, and as long as its head says."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        zeros, kind, dimensions = struct.unpack(">HBB", stream.read(4).ljust(4, b"\xff"))
        sizes = stream.read(4 * dimensions)
    if zeros != 0 or kind != 8 or len(sizes) != 4 * dimensions:  # 8: unsigned bytes
        return False
    content: int = math.prod(struct.unpack(f">{dimensions}I", sizes))
    return file.stat().st_size == 4 + len(sizes) + content


@dataclass(kw_only=True, eq=False, repr=False)
class FashionMNISTDataModule(MNISTDataModule):
    """Fashion-MNIST (Xiao et al. 2017): clothing, grey, 28 x 28 px; 60,000 for training, 10,000 for test."""

    dataset = datasets.FashionMNIST
    folder = "FashionMNIST/raw"
    classes = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )


@dataclass(kw_only=True, eq=False, repr=False)
class CIFAR10DataModule(_TorchvisionDataModule):
    """CIFAR-10 (Krizhevsky 2009): objects in colour, 32 x 32 px; 50,000 for training, 10,000 for test."""

    dataset = datasets.CIFAR10
    folder = "cifar-10-batches-py"
    files: ClassVar[tuple[str, ...]] = (
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
        "batches.meta",
    )
    classes: ClassVar[tuple[str, ...]] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )

    def _is_whole(self) -> bool:
        sums = [*self.dataset.train_list, *self.dataset.test_list]
        sums.append([self.dataset.meta["filename"], self.dataset.meta["md5"]])
        return all(check_integrity(self._directory() / name, md5) for name, md5 in sums)


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
class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100 (Krizhevsky 2009): objects in colour, 32 x 32 px; 500 images a class for training, 10,000 for test.

    Mean and standard deviation are those of Barz and Denzler (2020).
    """

    mean: list[float] | None = field(default_factory=lambda: [129.30386 / 255, 124.06987 / 255, 112.43356 / 255])
    std: list[float] | None = field(default_factory=lambda: [68.17020 / 255, 65.39176 / 255, 70.41801 / 255])

    dataset = datasets.CIFAR100
    folder = "cifar-100-python"
    files = ("train", "test", "meta")
    statistics = Statistics(classes=100, train=50000, test=10000, images_per_class=(500, 500))
    classes = tuple(_CIFAR100_NAMES.split())
