"""Copies of photographs planted into a folder, and the share of them that `metricloss check` finds.

    python results/check_duplicates.py my_images

1,000 photographs are drawn. Of each, five copies are saved as JPEG: encoded again with quality 50, resized to 70 %
(bicubic), cropped to 95 % of width and height at a random place, and with 110 % and 90 % of the brightness; all but the
first with quality 90. They are compared with all images of the folder. With the first 500 photographs the least
correlation of the details is chosen: the largest multiple of 0.01 with which 98 % of the copies of each kind are found.
With the other 500 photographs recall and precision are measured for each kind: recall is the share of the copies that
are paired with their photograph, and precision the share of pairs of a copy and an image of the folder that show the
same photograph. Duplicates within the folder itself count against precision.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from metricloss_pl.check.near_duplicates import find_near_duplicates, read_thumbnails
from metricloss_pl.data.file_checks import image_files
from runs import store

RESULTS = Path(__file__).with_suffix(".jsonl")
PHOTOGRAPHS = 1000
SEED = 0
FOUND = 0.98  # share of the copies of each kind with the chosen threshold
THRESHOLDS = [number / 100 for number in range(70, 100)]


def crop(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Return a crop to 95 % of width and height at a random place."""
    width, height = round(0.95 * image.width), round(0.95 * image.height)
    left, top = generator.integers(image.width - width + 1), generator.integers(image.height - height + 1)
    return image.crop((int(left), int(top), int(left) + width, int(top) + height))


KINDS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "JPEG quality 50": lambda image, _: image,
    "resized to 70 %": lambda image, _: image.resize((round(0.7 * image.width), round(0.7 * image.height))),
    "cropped to 95 %": crop,
    "brightness 110 %": lambda image, _: ImageEnhance.Brightness(image).enhance(1.1),
    "brightness 90 %": lambda image, _: ImageEnhance.Brightness(image).enhance(0.9),
}


def rates(pairs: np.ndarray, source: np.ndarray, kind: np.ndarray, originals: int, half: int) -> dict[str, dict]:
    """Return recall and precision of each kind, for the copies of one half.

    Args:
        pairs: (M, 2) positions of images, the smaller first.
        source: Position of the photograph of each image.
        kind: Number of the kind of each copy and its half: 2 * kind + half; -1 for photographs.
        originals: Number of photographs, which come first.
        half: 0 or 1.
    """
    found = {}
    pairs = pairs[(pairs[:, 0] < originals) & (pairs[:, 1] >= originals)]
    for number, name in enumerate(KINDS):
        own = pairs[kind[pairs[:, 1]] == 2 * number + half]
        right = int((own[:, 0] == source[own[:, 1]]).sum())
        copies = int((kind == 2 * number + half).sum())
        found[name] = {"copies": copies, "recall": right / copies, "precision": right / max(1, len(own))}
    return found


def main() -> None:
    """Plant copies, find them, and print recall and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of photographs, as JPEG")
    given = parser.parse_args()
    files = image_files(given.folder)
    generator = np.random.default_rng(SEED)
    chosen = generator.permutation(len(files))[:PHOTOGRAPHS]
    source, kind = list(range(len(files))), [-1] * len(files)
    with tempfile.TemporaryDirectory() as folder:
        copies = []
        for number, position in enumerate(chosen.tolist()):
            with Image.open(files[position]) as opened:
                image = opened.convert("RGB")
            for index, (name, change) in enumerate(KINDS.items()):
                copies.append(Path(folder, f"{len(copies)}.jpg"))
                change(image, generator).save(copies[-1], quality=50 if name == "JPEG quality 50" else 90)
                source.append(position)
                kind.append(2 * index + (number >= PHOTOGRAPHS // 2))
        begin = time.perf_counter()
        thumbnails, _ = read_thumbnails([*files, *copies])
        read = time.perf_counter()
        found = np.array(find_near_duplicates(thumbnails, THRESHOLDS[0]))
        end = time.perf_counter()

    def at(threshold: float, half: int) -> dict[str, dict]:
        pairs = found[found[:, 2] >= threshold, :2].astype(np.int64)
        return rates(pairs, np.array(source), np.array(kind), len(files), half)

    good = [value for value in THRESHOLDS if min(rate["recall"] for rate in at(value, 0).values()) >= FOUND]
    line = {
        "folder": given.folder.name,
        "images": len(files),
        "copies": len(source) - len(files),
        "threshold": max(good),
        "kinds": at(max(good), 1),
        "seconds": {"read": round(read - begin, 1), "compare": round(end - read, 1)},
    }
    store(RESULTS, [line])
    print(f"threshold {line['threshold']}, {line['images']:,} images and {line['copies']:,} copies, {line['seconds']}")
    for name, rate in line["kinds"].items():
        print(f"{name:<18} recall {rate['recall']:.3f}, precision {rate['precision']:.3f} ({rate['copies']} copies)")


if __name__ == "__main__":
    main()
