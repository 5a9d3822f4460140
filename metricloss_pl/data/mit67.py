"""MIT Indoor 67 with its official split."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from metricloss_pl.data.archives import ArchiveDataModule, Index, index_by_folder
from metricloss_pl.data.samples import Statistics
from metricloss_pl.data.training_settings import Auto
from metricloss_pl.download import Resource


@dataclass(kw_only=True, eq=False, repr=False)
class MIT67DataModule(ArchiveDataModule):
    """MIT Indoor 67 (Quattoni and Torralba 2009): 67 kinds of rooms, 5,360 images for training, 1,340 for test.

    The defaults are those of Barz and Denzler (2020): shorter side 256 px, crops of 224 px, batches of 96, and their
    mean and standard deviation. The class names are in the data, so that the constructor downloads them
    (2.4 GB) if they are missing.
    """

    batch_size: int | Auto = 96
    resize: int | None = 256
    image_size: int | Auto | None = 224
    mean: list[float] | None = field(default_factory=lambda: [124.62788 / 255, 110.01029 / 255, 94.95781 / 255])
    std: list[float] | None = field(default_factory=lambda: [68.56924 / 255, 66.86608 / 255, 67.35944 / 255])

    folder = "indoorCVPR_09"
    resources = (
        Resource(
            "indoorCVPR_09.tar",
            "http://groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar",
            "5d176e5f0e56624a453f2fe0d8b19ff7",
        ),
        Resource(
            "TrainImages.txt", "https://web.mit.edu/torralba/www/TrainImages.txt", "fd987513d0f623c424252770fac3f354"
        ),
        Resource(
            "TestImages.txt", "https://web.mit.edu/torralba/www/TestImages.txt", "f00bef137f39d51e4894303a7bf4c2d4"
        ),
    )
    statistics = Statistics(classes=67, train=5360, test=1340, images_per_class=(77, 83))

    def read_index(self, folder: Path) -> Index:
        """Read the lists; images in neither of them are not used."""
        return index_by_folder(folder, "Images", {"train": "TrainImages.txt", "test": "TestImages.txt"})
