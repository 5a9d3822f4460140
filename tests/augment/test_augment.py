from __future__ import annotations

import pytest
import torch

from metricloss_pl.augment import (
    Augmentation,
    AutoAugment,
    Cutout,
    HorizontalFlip,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    Rotation,
    Rotation90,
    ShiftCrop,
    TrivialAugment,
    VerticalFlip,
    devices,
)
from metricloss_pl.errors import UserError
from tests.augment.images import batch

ALL: list[Augmentation] = [
    HorizontalFlip(),
    VerticalFlip(),
    ShiftCrop(3),
    ShiftCrop(3, fill="zero"),
    ShiftCrop(3, fill="nearest"),
    Rotation(20),
    Rotation(20, fill="reflect"),
    Rotation(20, fill="nearest"),
    Rotation90(),
    RandomResizedCrop(),
    RandomResizedCrop(area=(0.1, 0.5), aspect=(0.3, 2.0)),
    RandomErasing(),
    RandomErasing(fill="mean"),
    RandomErasing(fill="zero"),
    Cutout(5),
    Cutout(5, fill="noise"),
    RandAugment(),
    TrivialAugment(),
    AutoAugment(),
]
PLAIN = [augmentation for augmentation in ALL if not augmentation.changes_color]


def suited(augmentation: Augmentation, size: int = 64, channels: int = 3) -> torch.Tensor:
    """Return images that the augmentation takes."""
    return batch(size, channels, width=12 if isinstance(augmentation, Rotation90) else 10)


@pytest.mark.parametrize("augmentation", ALL, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_dtype_shape_and_range_stay(augmentation: Augmentation, channels: int, keys: torch.Tensor) -> None:
    images = suited(augmentation, channels=channels)
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
    if augmentation in PLAIN:
        coarse = isinstance(augmentation, RandomResizedCrop)  # torch resizes bytes by whole numbers
        assert (floats * 255 - changed).abs().max() <= (1.01 if coarse else 0.51)


@pytest.mark.parametrize("augmentation", ALL, ids=repr)
def test_an_image_is_augmented_alike_in_every_batch(augmentation: Augmentation, keys: torch.Tensor) -> None:
    images = suited(augmentation)
    whole = augmentation(images, keys)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:17]
    assert torch.equal(augmentation(images[order], keys[order]), whole[order])


@pytest.mark.parametrize("augmentation", ALL, ids=repr)
def test_images_of_a_batch_are_augmented_differently(augmentation: Augmentation, keys: torch.Tensor) -> None:
    same = suited(augmentation, 1).expand(64, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in augmentation(same, keys)}) > 1


@pytest.mark.parametrize("augmentation", ALL, ids=repr)
def test_the_global_random_state_is_neither_used_nor_changed(augmentation: Augmentation, keys: torch.Tensor) -> None:
    images = suited(augmentation)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augmentation(images, keys)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(augmentation(images, keys), first)


@pytest.mark.parametrize("augmentation", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_other_devices_change_images_alike(
    augmentation: Augmentation, dtype: torch.dtype, keys: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operations for a GPU, on the CPU: equal results, but for the rounding of resized pixels."""
    images = suited(augmentation) if dtype == torch.uint8 else suited(augmentation).float() / 255
    want = augmentation(images, keys)
    monkeypatch.setattr(devices, "on_cpu", lambda images: False)
    got = augmentation(images, keys)
    assert got.dtype == dtype
    if isinstance(augmentation, RandomResizedCrop):
        torch.testing.assert_close(got.float(), want.float(), rtol=0, atol=1 if dtype == torch.uint8 else 1e-5)
    else:
        assert torch.equal(got, want)


@pytest.mark.parametrize("augmentation", ALL, ids=repr)
def test_no_values_are_fetched_from_other_devices(augmentation: Augmentation, keys: torch.Tensor) -> None:
    """The meta device has no values, and no operation takes tensors of two devices."""
    images = suited(augmentation)
    changed = augmentation(images.to("meta"), keys.to("meta"))
    assert changed.device.type == "meta"
    assert (changed.shape, changed.dtype) == (images.shape, images.dtype)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: HorizontalFlip(1.5), "1.5"),
        (lambda: VerticalFlip(-0.1), "-0.1"),
        (lambda: ShiftCrop(-1), "-1"),
        (lambda: ShiftCrop(1, fill="edge"), "edge"),  # type: ignore[arg-type]
        (lambda: Rotation(-5), "-5"),
        (lambda: Rotation90()(batch(), torch.zeros(64, dtype=torch.int64)), "10 x 12 px: set image_size"),
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
