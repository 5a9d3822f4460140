from __future__ import annotations

import pytest
import torch

from metricloss_pl.augment import (
    Cutout,
    RandomErasing,
)
from metricloss_pl.augment.keys import image_keys, uniform
from tests.augment.images import batch


def test_erased_rectangles_are_in_range() -> None:
    keys = image_keys(0, [0] * 4000, range(4000))
    erasing = RandomErasing(probability=0.3, area=(0.1, 0.3), aspect=(0.5, 2.0))
    tops, lefts, heights, widths = erasing.rectangles(100, 80, keys)
    erased = heights > 0
    assert 0.27 < erased.float().mean() < 0.33
    assert torch.equal(erased, widths > 0)
    assert (tops >= 0).all()
    assert (lefts >= 0).all()
    assert (tops + heights <= 100).all()
    assert (lefts + widths <= 80).all()
    area = (heights * widths)[erased] / 8000
    assert 0.095 < area.min() < 0.11
    assert 0.28 < area.max() < 0.308
    aspect = heights[erased] / widths[erased]
    assert 0.47 < aspect.min() < 0.55
    assert 1.85 < aspect.max() < 2.1
    assert 0.45 < (aspect > 1).float().mean() < 0.55


@pytest.mark.parametrize("fill", ["noise", "mean", "zero"])
def test_erasing_fills_the_rectangle_and_nothing_else(fill: str, keys: torch.Tensor) -> None:
    images = batch(height=32, width=24)
    erasing = RandomErasing(fill=fill)  # type: ignore[arg-type]
    changed = erasing(images, keys)
    values = []
    for image, result, *place in zip(images, changed, *erasing.rectangles(32, 24, keys), strict=True):
        top, left, height, width = (int(number) for number in place)
        filled = result[:, top : top + height, left : left + width]
        expected = image.clone()
        expected[:, top : top + height, left : left + width] = filled
        assert torch.equal(result, expected)
        if height and fill == "zero":
            assert (filled == 0).all()
        if height and fill == "mean":
            assert torch.equal(filled[:, 0, 0], image.float().mean((1, 2)).round().to(torch.uint8))
            assert (filled == filled[:, :1, :1]).all()
        values.append(filled.flatten())
    if fill == "noise":
        noise = torch.cat(values).float()
        assert abs(noise.mean() - 127.5) < 3
        assert abs(noise.std() - 73.9) < 3
        assert noise.min() == 0
        assert noise.max() == 255


def test_cutout_is_a_square_cut_off_at_the_border(keys: torch.Tensor) -> None:
    changed = Cutout(4, fill="zero")(batch(), keys)
    centers = (uniform(keys, 2) * torch.tensor([12, 10])).floor().int().tolist()
    for image, result, (y, x) in zip(batch(), changed, centers, strict=True):
        image[:, max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2] = 0
        assert torch.equal(result, image)
