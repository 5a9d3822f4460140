"""Miniature data sets of the real layouts, of noise."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

Expected = dict[str, dict[str, str]]  # the class of each image, by part


def make_image(file: Path, size: int, seed: int, level: int = 128) -> None:
    """Writes a color image of noise around a gray level."""
    noise = np.random.default_rng(seed).integers(-60, 60, (size, size, 3))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((noise + level).clip(0, 255).astype(np.uint8)).save(file)


def make_folder(
    root: Path,
    classes: Sequence[str] = ("cat", "dog"),
    images: int = 6,
    size: int = 16,
    parts: Sequence[str] | None = None,
) -> Path:
    """Creates root/<class>/0.png, ..., or root/<part>/<class>/0.png, ...; the classes differ in brightness."""
    seed = 0
    for part in parts or ("",):
        for number, name in enumerate(classes):
            level = round(60 + 136 * number / max(len(classes) - 1, 1))
            for image in range(images):
                make_image(root / part / name / f"{image}.png", size, seed, level)
                seed += 1
    return root


def make_cub(root: Path, classes: int = 4, images_per_class: int = 6, size: int = 40) -> Path:
    """Creates root/CUB_200_2011 with its index files; the first half of each class (rounded up) is for training."""
    folder = root / "CUB_200_2011"
    index: dict[str, list[str]] = {"classes": [], "images": [], "image_class_labels": [], "train_test_split": []}
    for number in range(1, classes + 1):
        name = f"{number:03d}.Bird_{number}"
        index["classes"].append(f"{number} {name}")
        for image in range(images_per_class):
            image_id = len(index["images"]) + 1
            file = f"{name}/Bird_{number}_{image:04d}.jpg"
            make_image(folder / "images" / file, size, image_id, level=60 + 136 * number // classes)
            index["images"].append(f"{image_id} {file}")
            index["image_class_labels"].append(f"{image_id} {number}")
            index["train_test_split"].append(f"{image_id} {int(image < (images_per_class + 1) // 2)}")
    for name, lines in index.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def pack(archive: Path, *members: Path) -> None:
    """Packs files and folders under their own names."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as packed:
        for member in members:
            packed.add(member, arcname=member.name)


def make_nab(root: Path, classes: int = 4, images_per_class: int = 6, size: int = 24) -> Expected:
    """Creates root/nabirds: classes 295, 296, ... below two inner nodes; images are numbered by UUIDs."""
    folder = root / "nabirds"
    index: dict[str, list[str]] = {"classes": ["0 Birds", "1 Ducks, Geese, and Swans"], "hierarchy": ["1 0"]}
    index |= {"images": [], "image_class_labels": [], "train_test_split": []}
    expected: Expected = {"train": {}, "test": {}}
    for number in range(classes):
        name = f"Wood Duck (Plumage {number})"
        index["classes"].append(f"{295 + number} {name}")
        index["hierarchy"].append(f"{295 + number} 1")
        for image in range(images_per_class):
            image_id = uuid.UUID(int=hash((number, image)) % 2**128)
            file = f"{295 + number:04d}/{image_id.hex}.jpg"
            make_image(folder / "images" / file, size, 100 * number + image)
            index["images"].append(f"{image_id} {file}")
            index["image_class_labels"].append(f"{image_id} {295 + number}")
            index["train_test_split"].append(f"{image_id} {image % 2}")
            expected["train" if image % 2 else "test"][file] = name
    for file, lines in index.items():
        (folder / f"{file}.txt").write_text("\n".join(lines) + "\n")
    return expected


def make_cars(root: Path, classes: int = 3, images_per_class: int = 4, size: int = 24) -> Expected:
    """Creates root/stanford_cars as torchvision has it; both parts number their images from 1."""
    folder = root / "stanford_cars"
    names = [f"Maker Model {number} Coupe 2012" for number in range(1, classes + 1)]
    expected: Expected = {}
    for part, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        cars = [(f"{i + 1:05d}.jpg", i % classes + 1) for i in range(classes * images_per_class)]
        for name, _ in cars:
            make_image(folder / f"cars_{part}" / name, size, len(expected) * 1000 + int(name[:5]))
        (folder / file).parent.mkdir(exist_ok=True)
        boxes = [("bbox_x1", "O"), ("bbox_y1", "O"), ("bbox_x2", "O"), ("bbox_y2", "O")]
        rows = [(1, 1, size, size, number, name) for name, number in cars]
        savemat(folder / file, {"annotations": np.array(rows, dtype=[*boxes, ("class", "O"), ("fname", "O")])})
        expected[part] = {f"cars_{part}/{name}": names[number - 1] for name, number in cars}
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(names, dtype=object)})
    return expected


def make_flowers(root: Path, names: Sequence[str], size: int = 10) -> Expected:
    """Creates root/flowers-102 with one image of each class for training, one for validation and two for test."""
    folder = root / "flowers-102"
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(1, len(names) + 1), 4))
    for image in range(1, len(labels) + 1):
        make_image(folder / "jpg" / f"image_{image:05d}.jpg", size, image)
    of_class = np.argsort(labels, kind="stable").reshape(-1, 4) + 1
    split = {"train": of_class[:, 2], "val": of_class[:, 0], "test": of_class[:, [1, 3]].ravel()}
    savemat(folder / "imagelabels.mat", {"labels": labels.astype(np.uint8)[None]})
    variables = {"trnid": split["train"], "valid": split["val"], "tstid": split["test"]}
    savemat(folder / "setid.mat", {name: ids.astype(np.uint16)[None] for name, ids in variables.items()})
    return {
        part: {f"jpg/image_{image:05d}.jpg": names[labels[image - 1] - 1] for image in ids}
        for part, ids in split.items()
    }


def make_mit67(root: Path, size: int = 24) -> Expected:
    """Creates root/indoorCVPR_09: the archive's Images, some of them in neither list, and the two lists."""
    folder = root / "indoorCVPR_09"
    expected: Expected = {"train": {}, "test": {}}
    for number, name in enumerate(("mall", "airport_inside", "bar")):
        for image, part in enumerate(("train", "test", "", "train", "test", "train")):
            file = f"{name}/{name}" + (" shopping.jpg" if image == 0 else f"_{image:04d}.jpg")
            make_image(folder / "Images" / file, size, 100 * number + image)
            if part:
                expected[part][file] = name
    for part, files in expected.items():
        (folder / f"{part.title()}Images.txt").write_text("\n".join(files))  # no line end at the end, as published
    return expected


def make_imagenet(root: Path, lists: Path, images_per_class: int = 6, size: int = 24) -> Expected:
    """Creates ImageNet's three archives in `root`, and in `lists` the lists of both subsets: the same images."""
    wnids = ["n01440764", "n01443537", "n01484850"]
    expected: Expected = {"train": {}, "val": {}, "test": {}}
    work = root / "work"
    for number, wnid in enumerate(wnids):
        files = [f"{wnid}_{image * 37}.JPEG" for image in range(images_per_class + 1)]  # one is in no list
        for image, name in enumerate(files):
            make_image(work / wnid / name, size, 100 * number + image)
        pack(work / "train" / f"{wnid}.tar", *(work / wnid / name for name in files))
        expected["train"] |= {f"{wnid}/{name}": wnid for name in files[1::2]}
        expected["val"] |= {f"{wnid}/{name}": wnid for name in files[2::2]}
    pack(root / "ILSVRC2012_img_train.tar", *sorted((work / "train").iterdir()))
    ids = {"n01440764": 7, "n01443537": 2, "n01484850": 5}  # ILSVRC's own numbers, in no order
    truth = [wnids[image % 3] for image in range(9)]
    for image, wnid in enumerate(truth, start=1):
        make_image(work / "val" / f"ILSVRC2012_val_{image:08d}.JPEG", size, 1000 + image)
        expected["test"][f"ILSVRC2012_val_{image:08d}.JPEG"] = wnid
    pack(root / "ILSVRC2012_img_val.tar", *sorted((work / "val").iterdir()))
    data = work / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{ids[wnid]}\n" for wnid in truth))
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height"]
    synsets = [(number, wnid, "fish, some fish", "a fish", 0, [], 0) for wnid, number in ids.items()]
    synsets.append((1001, "n00001740", "entity", "all", 3, [2, 5, 7], 1))
    savemat(data / "meta.mat", {"synsets": np.array(synsets, dtype=[(field, "O") for field in fields])})
    pack(root / "ILSVRC2012_devkit_t12.tar.gz", data.parent)
    lists.mkdir(parents=True)
    for part, files in expected.items():
        lines = [f"{file.removesuffix('.JPEG')} {wnids.index(wnid)}" for file, wnid in files.items()]
        (lists / f"{part}.txt").write_text("\n".join(lines) + "\n")
        entries = list(files)[::-1] if part == "test" else [file.split("/") for file in files]
        (lists / f"{part}.pickle").write_bytes(pickle.dumps(entries))
    return expected
