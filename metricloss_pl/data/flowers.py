"""Oxford Flowers-102 in torchvision's layout, with its official split."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from metricloss_pl.data.archives import ArchiveDataModule, Index
from metricloss_pl.data.index_files import read_mat, reinstall_hint
from metricloss_pl.data.samples import Split, Statistics, file_samples
from metricloss_pl.data.training_settings import Auto
from metricloss_pl.download import Resource
from metricloss_pl.errors import UserError

_URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
_NAMES = (
    "pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily, moon "
    "orchid, bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear thistle, yellow "
    "iris, globe-flower, purple coneflower, peruvian lily, balloon flower, giant white arum lily, fire lily, "
    "pincushion flower, fritillary, red ginger, grape hyacinth, corn poppy, prince of wales feathers, stemless "
    "gentian, artichoke, sweet william, carnation, garden phlox, love in the mist, mexican aster, alpine sea holly, "
    "ruby-lipped cattleya, cape flower, great masterwort, siam tulip, lenten rose, barbeton daisy, daffodil, sword "
    "lily, poinsettia, bolero deep blue, wallflower, marigold, buttercup, oxeye daisy, common dandelion, petunia, "
    "wild pansy, primula, sunflower, pelargonium, bishop of llandaff, gaura, geranium, orange dahlia, pink-yellow "
    "dahlia?, cautleya spicata, japanese anemone, black-eyed susan, silverbush, californian poppy, osteospermum, "
    "spring crocus, bearded iris, windflower, tree poppy, gazania, azalea, water lily, rose, thorn apple, morning "
    "glory, passion flower, lotus, toad lily, anthurium, frangipani, clematis, hibiscus, columbine, desert-rose, tree "
    "mallow, magnolia, cyclamen, watercress, canna lily, hippeastrum, bee balm, ball moss, foxglove, bougainvillea, "
    "camellia, mallow, mexican petunia, bromelia, blanket flower, trumpet creeper, blackberry lily"
)


@dataclass(kw_only=True, eq=False, repr=False)
class Flowers102DataModule(ArchiveDataModule):
    """Oxford Flowers-102 (Nilsback and Zisserman 2008): 102 species; 1,020 images for training, as many for validation.

    6,149 images are for test. With `val_fraction: 0` the other two sets train, as in Barz and Denzler (2020). The
    other defaults are theirs: shorter side 512 px, crops of 448 px, batches of 96, mean and standard deviation.
    """

    batch_size: int | Auto = 96
    resize: int | None = 512
    image_size: int | Auto | None = 448
    mean: list[float] | None = field(default_factory=lambda: [110.77991 / 255, 97.65649 / 255, 75.32890 / 255])
    std: list[float] | None = field(default_factory=lambda: [74.90388 / 255, 62.70219 / 255, 69.76566 / 255])

    folder = "flowers-102"
    resources = (
        Resource("102flowers.tgz", f"{_URL}/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa"),
        Resource("imagelabels.mat", f"{_URL}/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
        Resource("setid.mat", f"{_URL}/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
    )
    statistics = Statistics(classes=102, train=2040, test=6149, images_per_class=(20, 20))
    classes = tuple(_NAMES.split(", "))

    def read_index(self, folder: Path) -> Index:
        """Read `imagelabels.mat` and `setid.mat`; their classes and images count from 1."""
        labels = read_mat(folder / "imagelabels.mat", "labels", reinstall_hint(folder)).tolist()
        index = Index(list(self.classes), {})
        variables: dict[Split, str] = {"train": "trnid", "val": "valid", "test": "tstid"}
        for split, variable in variables.items():
            images = read_mat(folder / "setid.mat", variable, reinstall_hint(folder)).tolist()
            if not 1 <= min(images) <= max(images) <= len(labels):
                raise UserError(f"{folder / 'setid.mat'}: {variable!r} names images that imagelabels.mat lacks")
            files = [f"jpg/image_{image:05d}.jpg" for image in images]
            index.sets[split] = file_samples(folder, files, [labels[image - 1] - 1 for image in images])
        return index
