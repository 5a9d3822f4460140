from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metricloss_pl.data.file_checks import image_files
from metricloss_pl.data.samples import Samples
from metricloss_pl.data.store import ImageStore, measure_normalization
from tests.data.images import as_tensor, pixels, store_of

Make = Callable[..., Samples]


def test_cached_and_uncached_files_are_alike(photos: list[Path]) -> None:
    cached, fresh = store_of(photos, resize=12), store_of(photos, resize=12, cache_gb=0)
    assert cached.images is not None
    assert fresh.images is None
    for one, other, path in zip(
        cached.fetch([0, 3, 4]), fresh.fetch([0, 3, 4]), [photos[0], photos[3], photos[4]], strict=True
    ):
        assert torch.equal(one, other)
        assert min(one.shape[-2:]) == 12
        width, height = Image.open(path).size
        assert abs(one.shape[2] / one.shape[1] - width / height) < 0.1


def test_resize_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((32, 32), dtype=np.uint8)
    stripes[:, 1::4] = stripes[:, 2::4] = 255  # each sampled place falls between two white pixels
    Image.fromarray(stripes).save(tmp_path / "s.png")
    image = store_of([tmp_path / "s.png"], in_channels=1, resize=8).fetch([0])[0]
    assert (image[:, :, 1:-1].float() - 127.5).abs().max() < 20
    tensor = Samples(images=torch.from_numpy(stripes)[None, None], labels=torch.tensor([0]), names=["s"])
    assert torch.equal(ImageStore(tensor, in_channels=1, resize=8, cache_gb=0).fetch([0])[0], image)


def test_the_cache_keeps_its_budget(photos: list[Path]) -> None:
    size = sum(width * height * 3 for width, height in (Image.open(path).size for path in photos)) / 1e9
    assert store_of(photos, cache_gb=size * 1.01).images is not None
    assert store_of(photos, cache_gb=size * 0.99).images is None


def test_files_of_one_size_are_one_tensor(tmp_path: Path) -> None:
    for index in range(3):
        Image.fromarray(pixels()).save(tmp_path / f"{index}.png")
    assert store_of(image_files(tmp_path)).fetch([2, 0]).shape == (2, 3, 6, 9)  # type: ignore[union-attr]


@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_one_dtype_a_part(tmp_path: Path, cache_gb: float) -> None:
    Image.fromarray(pixels(channels=1)[..., 0]).save(tmp_path / "a.png")
    Image.fromarray(np.full((6, 9), 40000, dtype=np.uint16)).save(tmp_path / "b.png")
    store = store_of(image_files(tmp_path), in_channels=1, cache_gb=cache_gb)
    eight, sixteen = store.fetch([0, 1])
    assert store.dtype == eight.dtype == sixteen.dtype == torch.float32
    assert torch.allclose(eight, as_tensor(pixels(channels=1)) / 255)
    assert torch.allclose(sixteen, torch.tensor(40000 / 65535))


def test_tensors_are_converted(samples: Make) -> None:
    color, gray = samples([4, 3]), samples([4, 3], channels=1)
    to_color = ImageStore(gray, in_channels=3, resize=None, cache_gb=0).fetch([2])
    assert torch.equal(to_color, gray.images[[2]].expand(-1, 3, -1, -1))  # type: ignore[index, arg-type]
    to_gray = ImageStore(color, in_channels=1, resize=None, cache_gb=0).fetch([2])
    weights = torch.tensor([0.299, 0.587, 0.114])
    luma = torch.einsum("c,nchw->nhw", weights, color.images[[2]].float())  # type: ignore[index]
    assert (to_gray[:, 0].float() - luma).abs().max() <= 1  # type: ignore[call-overload]
    assert ImageStore(color, in_channels=3, resize=5, cache_gb=0).fetch([0, 1]).shape == (2, 3, 5, 5)  # type: ignore[union-attr]
    assert ImageStore(color, in_channels=3, resize=None, cache_gb=0).images is color.images


@pytest.mark.parametrize("kind", ["uint8", "float32", "files"])
def test_normalization_is_that_of_all_pixels(kind: str, samples: Make, tmp_path: Path) -> None:
    """Images are counted in chunks, which are of unequal size here."""
    drawn = samples([40, 37])
    images = drawn.images.float().div(255) if kind == "float32" else drawn.images  # type: ignore[union-attr]
    store = ImageStore(replace(drawn, images=images), in_channels=3, resize=None, cache_gb=0)
    if kind == "files":
        files = [tmp_path / f"{index}.png" for index in range(len(images))]
        for file, image in zip(files, images, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
        store = store_of(files, cache_gb=0)
    mean, std = measure_normalization(store, seed=0)
    pixels = drawn.images.double() / 255  # type: ignore[union-attr]
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())
