import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits

from metricloss_pl.check import near_duplicates
from metricloss_pl.check.near_duplicates import Thumbnails, find_near_duplicates, read_thumbnails
from tests.check.pictures import picture, save

CHANGES = {
    "encoded again": lambda image: image,
    "resized": lambda image: image.resize((112, 84)),
    "enlarged": lambda image: image.resize((400, 300)),
    "squeezed": lambda image: image.resize((160, 112)),
    "cropped at a corner": lambda image: image.crop((8, 0, 160, 114)),
    "cropped by a little": lambda image: image.crop((4, 0, 160, 117)),
    "cropped at the sides": lambda image: image.crop((4, 3, 156, 117)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "gray": lambda image: image.convert("L"),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return [save(picture(seed), folder / f"{seed}.png") for seed in range(24)]


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found(change, originals, tmp_path):
    chosen = (3, 11, 20)
    copies = [
        save(CHANGES[change](Image.open(originals[number])), tmp_path / f"{number}.jpg", quality=50)
        for number in chosen
    ]
    thumbnails, broken = read_thumbnails([*originals, *copies])
    pairs = find_near_duplicates(thumbnails)
    assert not broken
    assert [(pair.first, pair.second) for pair in pairs] == [(number, 24 + n) for n, number in enumerate(chosen)]


def test_the_order_of_the_images_does_not_matter(originals, tmp_path):
    copy = save(picture(5).crop((8, 6, 160, 120)), tmp_path / "copy.png")
    (pair,) = find_near_duplicates(read_thumbnails([copy, *originals])[0])
    assert (pair.first, pair.second) == (0, 6)


def test_images_of_few_pixels_must_be_the_same(tmp_path):
    """Digits of a class are as alike as crops of a photograph."""
    digits = [Image.fromarray((image * 15.9).astype(np.uint8)) for image in load_digits().images[:200]]
    files = [save(image, tmp_path / f"{number}.png") for number, image in enumerate(digits)]
    copy = save(ImageEnhance.Brightness(digits[7]).enhance(0.9), tmp_path / "copy.png")
    thumbnails, _ = read_thumbnails([*files, copy], in_channels=1)
    assert [(pair.first, pair.second) for pair in find_near_duplicates(thumbnails)] == [(7, 200)]
    larger = thumbnails._replace(shorter_sides=torch.full((201,), 100))
    assert len(find_near_duplicates(larger)) > 10


@pytest.mark.parametrize("margin", [0, 2, 4])
def test_correlations_are_pearsons_of_every_crop(margin):
    generator, side = torch.Generator().manual_seed(0), 68 - margin
    details, images = (torch.randn(3, size, size, generator=generator) for size in (68, side))
    found = near_duplicates._correlate_crops(details, near_duplicates._unit(images), margin)
    for number in range(3):
        windows = [
            details[number, top : top + side, left : left + side].flatten()
            for top in range(margin + 1)
            for left in range(margin + 1)
        ]
        expected = max(np.corrcoef(window, images[number].flatten())[0, 1] for window in windows)
        assert found[number].item() == pytest.approx(expected, abs=1e-4)


def test_candidates_do_not_depend_on_the_blocks(originals, tmp_path, monkeypatch):
    copies = [save(picture(seed), tmp_path / f"{seed}.jpg", quality=60) for seed in range(24)]
    thumbnails, _ = read_thumbnails([*originals, *copies])
    expected = [(number, number + 24) for number in range(24)]
    for block in (1024, 7):
        monkeypatch.setattr(near_duplicates, "_BLOCK", block)
        assert [(pair.first, pair.second) for pair in find_near_duplicates(thumbnails)] == expected


def test_broken_images_and_images_of_one_color(originals, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(save(picture(0), tmp_path / "whole.jpg").read_bytes()[:2000])
    plain = [save(Image.new("RGB", (64, 64), color), tmp_path / f"{color}.png") for color in ("white", "black")]
    thumbnails, reasons = read_thumbnails([*plain, broken, *originals])
    assert list(reasons) == [2]
    assert thumbnails.pixels[0].eq(255).all()
    assert thumbnails.shorter_sides[:4].tolist() == [64, 64, 0, 120]
    assert find_near_duplicates(thumbnails) == []


def test_no_images():
    empty = Thumbnails(torch.empty(0, 68, 68, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    assert find_near_duplicates(empty) == []
