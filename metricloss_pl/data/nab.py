"""NABirds with its official split."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from metricloss_pl.data.archives import ArchiveDataModule, Index
from metricloss_pl.data.cub import read_bird_index
from metricloss_pl.data.samples import Statistics
from metricloss_pl.data.training_settings import Auto
from metricloss_pl.download import Resource


@dataclass(kw_only=True, eq=False, repr=False)
class NABirdsDataModule(ArchiveDataModule):
    """NABirds (Van Horn et al. 2015): 555 kinds of birds, 23,929 images for training, 24,633 for test.

    A person has to accept its terms, so that nothing is downloaded: `nabirds.tar.gz` has to be put into `root`. The
    defaults are those of Barz and Denzler (2020): shorter side 512 px, crops of 448 px, batches of 96, and their mean
    and standard deviation.
    """

    batch_size: int | Auto = 96
    resize: int | None = 512
    image_size: int | Auto | None = 448
    mean: list[float] | None = field(default_factory=lambda: [125.30513 / 255, 129.66607 / 255, 118.45121 / 255])
    std: list[float] | None = field(default_factory=lambda: [57.00455 / 255, 56.70059 / 255, 68.44430 / 255])

    folder = "nabirds"
    archives_hold_folder = True
    resources = (
        Resource(
            "nabirds.tar.gz", "https://dl.allaboutbirds.org/nabirds", "df21a9e4db349a14e2b08adfd45873bd", by_hand=True
        ),
    )
    statistics = Statistics(classes=555, train=23929, test=24633, images_per_class=(4, 60))

    @property
    def hierarchy(self) -> str:
        """The file `hierarchy.txt`, whose leaves are numbers; `classes.txt` beside it is the class list to it."""
        return str(Path(self.root).expanduser() / self.folder / "hierarchy.txt")

    def read_index(self, folder: Path) -> Index:
        """Read the index files, which are like those of CUB; classes without images are inner nodes of a hierarchy."""
        return read_bird_index(folder, image_id=r"[0-9a-f-]+")
