from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from metricloss_pl.augment import (
    Augmentation,
    HorizontalFlip,
    RandomErasing,
    RandomResizedCrop,
    Rotation,
    Rotation90,
    ShiftCrop,
    VerticalFlip,
)
from metricloss_pl.augment.geometric import crop
from metricloss_pl.augment.keys import image_keys, stream, uniform
from tests.augment.images import batch

PADDING = {"reflect": "reflect", "nearest": "replicate", "zero": "constant"}  # torch's names


def test_crop_is_pad_and_slice() -> None:
    images = batch(8, height=7, width=9)
    tops, lefts = torch.tensor([-3, 0, 2, 4, -1, 1, 3, -2]), torch.tensor([2, -3, 0, 4, 3, -1, 1, 0])
    for fill, mode in PADDING.items():
        padded = torch.nn.functional.pad(images.float(), (6, 6, 6, 6), mode=mode).to(torch.uint8)
        want = [
            image[:, top + 6 : top + 11, left + 6 : left + 12]
            for image, top, left in zip(padded, tops.tolist(), lefts.tolist(), strict=True)
        ]
        assert torch.equal(crop(images, tops, lefts, 5, 6, fill), torch.stack(want))  # type: ignore[arg-type]


def test_crop_reflects_as_often_as_needed() -> None:
    image = torch.arange(3, dtype=torch.uint8).view(1, 1, 1, 3)
    got = crop(image, torch.tensor([-1]), torch.tensor([-5]), 3, 13)
    row = np.pad([0, 1, 2], 5, mode="reflect").tolist()
    assert got[0, 0].tolist() == [row] * 3


@pytest.mark.parametrize(("augmentation", "dimension"), [(HorizontalFlip(), -1), (VerticalFlip(), -2)])
def test_flips(augmentation: Augmentation, dimension: int, keys: torch.Tensor) -> None:
    images = batch()
    drawn = uniform(keys, 1)[:, 0] < 0.5
    assert 20 < drawn.sum() < 44
    for image, changed, flip in zip(images, augmentation(images, keys), drawn, strict=True):
        assert torch.equal(changed, torch.flip(image, [dimension]) if flip else image)


def test_rotation_by_90_degrees_and_a_flip_draw_the_eight_symmetries() -> None:
    images = batch(1, height=5, width=5).expand(4000, -1, -1, -1)
    keys = image_keys(0, [0] * 4000, range(4000))
    changed = HorizontalFlip()(Rotation90()(images, keys), stream(keys, 1))
    symmetries = [images[0].rot90(turns, (1, 2)) for turns in range(4)]
    symmetries += [image.flip(2) for image in symmetries]
    counts = [int((changed == symmetry).flatten(1).all(1).sum()) for symmetry in symmetries]
    assert sum(counts) == 4000
    assert min(counts) > 420
    assert max(counts) < 580


@pytest.mark.parametrize("augmentation", [HorizontalFlip(0.0), VerticalFlip(0.0), RandomErasing(0.0), ShiftCrop(0)])
def test_nothing_drawn_changes_nothing(augmentation: Augmentation, keys: torch.Tensor) -> None:
    assert torch.equal(augmentation(batch(), keys), batch())


@pytest.mark.parametrize("fill", PADDING)
def test_shift_crop_shifts_within_its_range(fill: str, keys: torch.Tensor) -> None:
    images = batch()
    changed = ShiftCrop(2, fill=fill)(images, keys)  # type: ignore[arg-type]
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode=PADDING[fill]).to(torch.uint8)
    shifts = set()
    for image, result in zip(padded, changed, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(image[:, y : y + 12, x : x + 10], result)]
        assert len(found) == 1
        shifts.add(found[0])
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(5))


def test_rotation_is_torchvisions(keys: torch.Tensor) -> None:
    images = torch.rand(64, 3, 14, 9, generator=torch.Generator().manual_seed(0))
    changed = Rotation(30)(images, keys)
    angles = (2 * uniform(keys, 1)[:, 0] - 1) * 30
    assert angles.min() < -20
    assert angles.max() > 20
    for image, result, angle in zip(images, changed, angles.tolist(), strict=True):
        assert torch.allclose(result, transforms.rotate(image, angle, InterpolationMode.BILINEAR), atol=1e-5)
    assert (Rotation(45)(torch.ones(64, 1, 14, 9), keys)[:, :, 0, 0] < 1).any()
    for fill in ("reflect", "nearest"):
        turned = Rotation(45, fill=fill)(torch.ones(64, 1, 14, 9), keys)  # type: ignore[arg-type]
        assert torch.allclose(turned, torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [8, 30, None])
def test_random_resized_crop_is_torchvisions(dtype: torch.dtype, size: int | None, keys: torch.Tensor) -> None:
    """The same rectangle, cut out and resized by torchvision; and by Pillow, to within a gray level."""
    images = batch(height=21, width=17)
    if dtype == torch.float32:
        images = images.float() / 255
    cropping = RandomResizedCrop(area=(0.1, 1.0), size=size)
    crops = cropping(images, keys)
    sides = (21, 17) if size is None else (size, size)
    assert crops.dtype == dtype
    assert crops.shape == (64, 3, *sides)
    for image, got, *place in zip(images, crops, *cropping.rectangles(21, 17, keys), strict=True):
        top, left, height, width = (int(number) for number in place)
        assert torch.equal(got, transforms.resized_crop(image, top, left, height, width, list(sides)))
        if dtype == torch.uint8:
            cut = Image.fromarray(image[:, top : top + height, left : left + width].permute(1, 2, 0).numpy())
            want = np.asarray(cut.resize(sides[::-1], Image.Resampling.BILINEAR)).astype(int)
            assert np.abs(want - got.permute(1, 2, 0).numpy()).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(60, 80), (50, 20)])
def test_random_resized_crops_are_drawn_as_torchvisions(height: int, width: int) -> None:
    area, aspect = (0.2, 0.9), (0.5, 1.5)
    keys = image_keys(0, [0] * 4000, range(4000))
    drawn = torch.stack(RandomResizedCrop(area, aspect).rectangles(height, width, keys), 1).double()
    torch.manual_seed(0)
    reference = v2.RandomResizedCrop(8, scale=area, ratio=(1 / aspect[1], 1 / aspect[0]))
    boxes = [reference.make_params([torch.empty(1, height, width)]) for _ in range(4000)]
    want = torch.tensor([[box[name] for name in ("top", "left", "height", "width")] for box in boxes]).double()
    for level in (0.1, 0.5, 0.9):
        torch.testing.assert_close(drawn.quantile(level, 0), want.quantile(level, 0), atol=1.5, rtol=0.02)
    assert ((drawn[:, :2] >= 0) & (drawn[:, 2:] >= 1)).all()
    assert (drawn[:, :2] + drawn[:, 2:] <= torch.tensor([height, width])).all()


@pytest.mark.parametrize(("height", "width"), [(10, 100), (100, 10)])
def test_a_crop_that_never_fits_is_the_largest_in_the_center(height: int, width: int, keys: torch.Tensor) -> None:
    got = torch.stack(RandomResizedCrop(area=(0.9, 1.0)).rectangles(height, width, keys), 1)
    box = v2.RandomResizedCrop(8, scale=(0.9, 1.0)).make_params([torch.empty(1, height, width)])
    assert got.tolist() == [[box[name] for name in ("top", "left", "height", "width")]] * 64
