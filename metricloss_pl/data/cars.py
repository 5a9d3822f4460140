"""Stanford Cars in torchvision's layout, with its official split."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from metricloss_pl.data.archives import ArchiveDataModule, Index
from metricloss_pl.data.index_files import read_mat, reinstall_hint
from metricloss_pl.data.samples import Samples, Statistics, file_samples
from metricloss_pl.data.training_settings import Auto
from metricloss_pl.download import Resource

_PAGE = "https://github.com/pytorch/vision/issues/7545"  # where copies are collected: the authors' server is gone


@dataclass(kw_only=True, eq=False, repr=False)
class StanfordCarsDataModule(ArchiveDataModule):
    """Stanford Cars (Krause et al. 2013): 196 models of cars, 8,144 images for training, 8,041 for test.

    Its authors' server is gone, so that nothing is downloaded: the archives have to be put into `root`, or their
    content into `root/stanford_cars` in torchvision's layout. The defaults are those of Barz and Denzler (2020):
    shorter side 512 px, crops of 448 px, batches of 96, and their mean and standard deviation.
    """

    batch_size: int | Auto = 96
    resize: int | None = 512
    image_size: int | Auto | None = 448
    mean: list[float] | None = field(default_factory=lambda: [120.03731 / 255, 117.33781 / 255, 116.01303 / 255])
    std: list[float] | None = field(default_factory=lambda: [75.40416 / 255, 75.15394 / 255, 77.28287 / 255])

    folder = "stanford_cars"
    resources = (
        Resource("car_devkit.tgz", _PAGE, "c3b158d763b6e2245038c8ad08e45376", by_hand=True),
        Resource("cars_train.tgz", _PAGE, "065e5b463ae28d29e77c1b4b166cfe61", by_hand=True),
        Resource("cars_test.tgz", _PAGE, "4ce7ebf6a94d07f1952d94dd34c4d501", by_hand=True),
        Resource("cars_test_annos_withlabels.mat", _PAGE, "b0a2b23655a3edd16d84508592a98d10", by_hand=True),
    )
    statistics = Statistics(classes=196, train=8144, test=8041, images_per_class=(24, 68))

    def read_index(self, folder: Path) -> Index:
        """Read the MATLAB files; their classes count from 1."""
        names = read_mat(folder / "devkit" / "cars_meta.mat", "class_names", reinstall_hint(folder))
        train = _read(folder, "devkit/cars_train_annos.mat", "cars_train")
        test = _read(folder, "cars_test_annos_withlabels.mat", "cars_test")
        return Index([str(name) for name in names], {"train": train, "test": test})


def _read(folder: Path, annotations: str, images: str) -> Samples:
    cars = read_mat(folder / annotations, "annotations", reinstall_hint(folder), fields=("fname", "class"))
    files = [f"{images}/{name}" for name in cars["fname"]]
    return file_samples(folder, files, [int(number) - 1 for number in cars["class"]])
