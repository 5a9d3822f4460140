"""Files, arrays and tensors are resized as Pillow resizes images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Resize

from metricloss_pl.data.preparation import prepare_batches
from metricloss_pl.data.resizing import to_gray, with_shorter_side
from metricloss_pl.data.samples import Samples
from metricloss_pl.data.store import ImageStore
from tests.data.images import as_tensor, pixels, store_of


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("side", [7, 17, 40])
@pytest.mark.parametrize(("height", "width"), [(17, 30), (31, 18), (20, 20)])
def test_all_sources_are_resized_as_by_pillow(
    height: int, width: int, side: int, in_channels: int, tmp_path: Path
) -> None:
    color = pixels(height, width)
    image = Image.fromarray(color).convert("L" if in_channels == 1 else "RGB")
    image.save(tmp_path / "a.png")
    resized = Resize(side)(image)  # torchvision hands images of Pillow to Pillow
    expected = as_tensor(np.array(resized).reshape(resized.height, resized.width, in_channels))
    kept, fresh = (store_of([tmp_path / "a.png"], in_channels=in_channels, resize=side, cache_gb=gb) for gb in (1, 0))
    samples = Samples(images=as_tensor(color)[None], labels=torch.tensor([0]), names=["a"])
    array = ImageStore(samples, in_channels=in_channels, resize=side, cache_gb=0)
    for store in (kept, fresh, array):
        assert torch.equal(store.fetch([0])[0], expected)
    for source in (tmp_path / "a.png", image, np.asarray(image), as_tensor(color)):
        [batch] = prepare_batches(source, in_channels=in_channels, resize=side)
        assert torch.equal(batch[0], expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_channels_are_resized_one_by_one(dtype: type) -> None:
    images = (np.random.default_rng(0).random((2, 5, 12, 9)) * (255 if dtype == np.uint8 else 1)).astype(dtype)
    found = with_shorter_side(torch.from_numpy(images), 6)
    assert found.shape == (2, 5, 8, 6)
    for one, channels in zip(found, images, strict=True):
        for channel, plane in zip(one, channels, strict=True):
            np.testing.assert_array_equal(channel, np.asarray(Resize(6)(Image.fromarray(plane))))


@pytest.mark.parametrize("in_channels", [1, 3])
def test_images_of_16_bits_keep_their_depth(in_channels: int, tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (17, 30), dtype=np.uint16)
    deep[:4] = 65535
    Image.fromarray(deep).save(tmp_path / "a.png")
    expected = np.asarray(Resize(9)(Image.fromarray(deep.astype(np.float32) / 65535)))
    assert expected.max() == 1
    image = store_of([tmp_path / "a.png"], in_channels=in_channels, resize=9).fetch([0])[0]
    assert torch.equal(image, torch.from_numpy(expected).expand(in_channels, -1, -1))
    [batch] = prepare_batches(deep, in_channels=in_channels, resize=9)
    assert torch.equal(batch[0], image)


def test_gray_is_that_of_pillow() -> None:
    levels = np.arange(0, 256, 3, dtype=np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(len(levels), -1, 3)
    gray = torch.from_numpy(np.array(Image.fromarray(colors).convert("L")))
    assert torch.equal(to_gray(as_tensor(colors))[0], gray)
    deep = to_gray(as_tensor(colors).float() / 255)[0]
    assert (deep * 255 - gray).abs().max() <= 0.51
    assert deep.max() == 1


def test_memory_is_that_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest image comes first."""
    files = [tmp_path / f"{index}.png" for index in range(9)]
    for index, file in enumerate(files):
        Image.fromarray(pixels(4, 4 if index else 400)).save(file)
    asked: list[int] = []
    new_empty = torch.Tensor.new_empty

    def record(self: torch.Tensor, *size: int) -> torch.Tensor:
        asked.append(math.prod(size))
        return new_empty(self, *size)

    monkeypatch.setattr(torch.Tensor, "new_empty", record)
    assert isinstance(store_of(files).images, list)
    assert isinstance(store_of(files[1:]).images, torch.Tensor)
    assert asked == [8 * 4 * 4 * 3]


def test_images_that_are_turned_do_not_fit_into_one_tensor(tmp_path: Path) -> None:
    """The heads of the files give one size."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [tmp_path / f"{index}.jpg" for index in range(4)]
    for index, file in enumerate(files):
        Image.fromarray(pixels(16, 24)).save(file, **({"exif": exif} if index == 2 else {}))
    kept, fresh = store_of(files, resize=8), store_of(files, resize=8, cache_gb=0)
    assert isinstance(kept.images, list)
    assert [tuple(image.shape) for image in kept.images] == [(3, 8, 12), (3, 8, 12), (3, 12, 8), (3, 8, 12)]
    assert all(torch.equal(*pair) for pair in zip(kept.fetch([0, 1, 2, 3]), fresh.fetch([0, 1, 2, 3]), strict=True))
