"""Miniature data sets of the real layouts, of noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def make_image(file: Path, size: int, seed: int, level: int = 128) -> None:
    """Writes a colour image of noise around a grey level."""
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
