from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from metricloss_pl.data.augment import (
    Augmentation,
    Cutout,
    HorizontalFlip,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    Rotation,
    ShiftCrop,
    TrivialAugment,
    VerticalFlip,
    crop,
)
from metricloss_pl.data.keys import image_keys, stream, uniform
from metricloss_pl.errors import UserError

ALL: list[Augmentation] = [
    HorizontalFlip(),
    VerticalFlip(),
    ShiftCrop(3),
    ShiftCrop(3, fill="zero"),
    ShiftCrop(3, fill="nearest"),
    Rotation(20),
    Rotation(20, fill="reflect"),
    Rotation(20, fill="nearest"),
    RandomResizedCrop(),
    RandomResizedCrop(area=(0.1, 0.5), aspect=(0.3, 2.0)),
    RandomErasing(),
    RandomErasing(fill="mean"),
    RandomErasing(fill="zero"),
    Cutout(5),
    Cutout(5, fill="noise"),
    RandAugment(),
    TrivialAugment(),
]
MASK = 2**64 - 1
PADDING = {"reflect": "reflect", "nearest": "replicate", "zero": "constant"}  # torch's names


def batch(size: int = 64, channels: int = 3, height: int = 12, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 256, (size, channels, height, width), dtype=torch.uint8, generator=generator)


def splitmix64(state: int, count: int) -> list[int]:
    """The generator as published, one number at a time."""
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        numbers.append(z ^ (z >> 31))
    return numbers


def test_uniform_is_splitmix64() -> None:
    # The first outputs from state 0 are published test values of splitmix64.
    assert splitmix64(0, 2) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    states = [0, 1, 123456789, MASK]
    got = uniform(np.array(states, dtype=np.uint64), 5)
    want = [[(number >> 11) / 2**53 for number in splitmix64(state, 5)] for state in states]
    assert got.dtype == torch.float64
    assert got.tolist() == want


def test_uniform_numbers_look_uniform_and_independent() -> None:
    keys = image_keys(0, np.zeros(20000), np.arange(20000))
    draws = uniform(keys, 3)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert torch.allclose(draws.mean(0), torch.full((3,), 0.5, dtype=torch.float64), atol=0.01)
    histogram = torch.histc(draws[:, 0].float(), bins=20, min=0, max=1)
    assert (histogram - 1000).abs().max() < 150
    together = torch.corrcoef(torch.cat([draws.T, uniform(stream(keys, 0), 1).T, uniform(stream(keys, 1), 1).T]))
    assert (together - torch.eye(5)).abs().max() < 0.03


def test_keys_differ_for_every_seed_draw_and_index() -> None:
    keys = [image_keys(seed, np.full(50, epoch), np.arange(50)) for seed in (0, 1) for epoch in (0, 1, 2**32)]
    assert len(np.unique(np.concatenate(keys))) == 300


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
def test_flips(augmentation: Augmentation, dimension: int, keys: np.ndarray) -> None:
    images = batch()
    drawn = uniform(keys, 1)[:, 0] < 0.5
    assert 20 < drawn.sum() < 44
    for image, changed, flip in zip(images, augmentation(images, keys), drawn, strict=True):
        assert torch.equal(changed, torch.flip(image, [dimension]) if flip else image)


@pytest.mark.parametrize("augmentation", [HorizontalFlip(0.0), VerticalFlip(0.0), RandomErasing(0.0), ShiftCrop(0)])
def test_nothing_drawn_changes_nothing(augmentation: Augmentation, keys: np.ndarray) -> None:
    assert torch.equal(augmentation(batch(), keys), batch())


@pytest.mark.parametrize("fill", PADDING)
def test_shift_crop_shifts_within_its_range(fill: str, keys: np.ndarray) -> None:
    images = batch()
    changed = ShiftCrop(2, fill=fill)(images, keys)  # type: ignore[arg-type]
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode=PADDING[fill]).to(torch.uint8)
    shifts = set()
    for image, result in zip(padded, changed, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(image[:, y : y + 12, x : x + 10], result)]
        assert len(found) == 1
        shifts.add(found[0])
    assert {y for y, _ in shifts} == {x for _, x in shifts} == set(range(5))


def test_rotation_is_torchvisions(keys: np.ndarray) -> None:
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
def test_random_resized_crop_is_torchvisions(dtype: torch.dtype, size: int | None, keys: np.ndarray) -> None:
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
    keys = image_keys(0, np.zeros(4000), np.arange(4000))
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
def test_a_crop_that_never_fits_is_the_largest_in_the_center(height: int, width: int, keys: np.ndarray) -> None:
    got = torch.stack(RandomResizedCrop(area=(0.9, 1.0)).rectangles(height, width, keys), 1)
    box = v2.RandomResizedCrop(8, scale=(0.9, 1.0)).make_params([torch.empty(1, height, width)])
    assert got.tolist() == [[box[name] for name in ("top", "left", "height", "width")]] * 64


def test_erased_rectangles_are_in_range() -> None:
    keys = image_keys(0, np.zeros(4000), np.arange(4000))
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
def test_erasing_fills_the_rectangle_and_nothing_else(fill: str, keys: np.ndarray) -> None:
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


def test_cutout_is_a_square_cut_off_at_the_border(keys: np.ndarray) -> None:
    changed = Cutout(4, fill="zero")(batch(), keys)
    centers = (uniform(keys, 2) * torch.tensor([12, 10])).floor().int().tolist()
    for image, result, (y, x) in zip(batch(), changed, centers, strict=True):
        image[:, max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2] = 0
        assert torch.equal(result, image)


@pytest.mark.parametrize("augmentation", ALL, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_dtype_shape_and_range_stay(augmentation: Augmentation, channels: int, keys: np.ndarray) -> None:
    images = batch(channels=channels)
    before = images.clone()
    changed = augmentation(images, keys)
    assert changed.dtype == torch.uint8
    assert changed.shape == images.shape
    assert torch.equal(images, before)
    assert not torch.equal(changed, images)
    floats = augmentation(images.float() / 255, keys)
    assert floats.dtype == torch.float32
    assert floats.shape == images.shape
    assert floats.min() >= 0
    assert floats.max() <= 1
    if not isinstance(augmentation, RandAugment | TrivialAugment):
        coarse = isinstance(augmentation, RandomResizedCrop)  # torch resizes bytes by whole numbers
        assert (floats * 255 - changed).abs().max() <= (1.01 if coarse else 0.51)


@pytest.mark.parametrize("augmentation", ALL, ids=repr)
def test_an_image_is_augmented_alike_in_every_batch(augmentation: Augmentation, keys: np.ndarray) -> None:
    whole = augmentation(batch(), keys)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:17]
    assert torch.equal(augmentation(batch()[order], keys[order.numpy()]), whole[order])


@pytest.mark.parametrize("augmentation", ALL, ids=repr)
def test_images_of_a_batch_are_augmented_differently(augmentation: Augmentation, keys: np.ndarray) -> None:
    same = batch(1).expand(64, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in augmentation(same, keys)}) > 1


@pytest.mark.parametrize("augmentation", ALL, ids=repr)
def test_the_global_random_state_is_neither_used_nor_changed(augmentation: Augmentation, keys: np.ndarray) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augmentation(batch(), keys)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(augmentation(batch(), keys), first)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HorizontalFlip(1.5), "1.5"),
        (lambda: VerticalFlip(-0.1), "-0.1"),
        (lambda: ShiftCrop(-1), "-1"),
        (lambda: ShiftCrop(1, fill="edge"), "edge"),  # type: ignore[arg-type]
        (lambda: Rotation(-5), "-5"),
        (lambda: RandomErasing(area=(0.5, 0.2)), "0.5, 0.2"),
        (lambda: RandomErasing(area=(0.5, 1.2)), "1.2"),
        (lambda: RandomErasing(aspect=(0, 1)), "aspect"),
        (lambda: RandomErasing(fill="blue"), "blue"),  # type: ignore[arg-type]
        (lambda: RandomResizedCrop(area=(0, 1)), "area"),
        (lambda: RandomResizedCrop(aspect=(2, 1)), "aspect"),
        (lambda: RandomResizedCrop(size=0), "size is 0"),
        (lambda: Cutout(0), "0"),
        (lambda: RandAugment(magnitude=31), "31"),
        (lambda: RandAugment(num_ops=-1), "-1"),
    ],
)
def test_wrong_arguments_are_named(build: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
