"""Published hierarchies, by name."""

from __future__ import annotations

from pathlib import Path

import torch.hub

from metricloss_pl.class_embeddings.hierarchy import Format, Hierarchy
from metricloss_pl.class_embeddings.matching import read_class_list
from metricloss_pl.download import Resource, fetch
from metricloss_pl.files import FilePath

__all__ = ["HIERARCHIES", "open_hierarchy"]

_AUTHORS = "https://raw.githubusercontent.com/cvjena/semantic-embeddings/c236a34daec5bcd054cbcb973207a8338c2f2cd1"


def _authors_file(file: str, md5: str) -> Resource:
    return Resource(file.rpartition("/")[2], f"{_AUTHORS}/{file}", md5)


# Lines <parent> <child>, and names of the leaves. In CUB, the class names begin with the ids of the leaves.
_FILES = {
    "cifar100": (
        _authors_file("Cifar-Hierarchy/cifar.parent-child.txt", "7cdbaf9443fe897e4ab3f73b6fa24ee5"),
        _authors_file("Cifar-Hierarchy/class_names.txt", "5c5f4aeddd4bf620d32e54efe675e545"),
    ),
    "cub_flat": (_authors_file("CUB-Hierarchy/cub_flat.parent-child.txt", "55eb40ff1ceabd564764b823488f1315"),),
    "cub_wikispecies": (
        _authors_file("CUB-Hierarchy/cub_wikispecies.parent-child.txt", "6b33c0630cbd77a62fe8c5cca3c3ac02"),
    ),
    "cub_deep": (_authors_file("CUB-Hierarchy/cub_balanced.parent-child.txt", "cf9c0b9a2027c65e3b3a868f126a34af"),),
}

# The coarse labels of CIFAR-100 (Krizhevsky 2009), each with its five classes.
_SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}

HIERARCHIES = (*_FILES, "cifar100_superclasses")


def open_hierarchy(
    hierarchy: FilePath, class_list: FilePath | None = None, format: Format = "auto", allow_dag: bool = False
) -> Hierarchy:
    """Open a published hierarchy by its name, or read one from a file.

    `cub_flat`, `cub_wikispecies` and `cub_deep` (for CUB-200-2011) and `cifar100` are those of Barz & Denzler (2019,
    2020). Their files are downloaded once, into `metricloss_pl` in torch.hub's folder. `cifar100_superclasses` has the
    twenty superclasses of CIFAR-100 between its root and its classes.

    Args:
        hierarchy: Name or file of the hierarchy.
        class_list: File of lines `<id> <name>`, in place of the published one.
        format: Format of a file: see `Hierarchy.from_file`.
        allow_dag: Whether nodes of a file may have several parents: see `Hierarchy.from_pairs`.

    Raises:
        UserError: The file is missing, can't be downloaded, or holds no tree.
    """
    name = str(hierarchy)
    if name == "cifar100_superclasses":
        pairs = [(coarse, fine) for coarse, classes in _SUPERCLASSES.items() for fine in classes.split()]
        names = {} if class_list is None else read_class_list(class_list)
        return Hierarchy.from_pairs([("CIFAR-100", coarse) for coarse in _SUPERCLASSES] + pairs, names, name)
    if name not in _FILES:
        return Hierarchy.from_file(hierarchy, format, class_list, allow_dag)
    folder = fetch(_FILES[name], Path(torch.hub.get_dir()) / "metricloss_pl", name)
    file, *lists = (folder / resource.name for resource in _FILES[name])
    if class_list is None and lists:
        [class_list] = lists
    return Hierarchy.from_file(file, "parent_child", class_list)
