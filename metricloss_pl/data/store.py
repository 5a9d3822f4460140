"""The images of one set, decoded, converted and resized: in memory if they fit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metricloss_pl.data.reading import DECODING_THREADS, one_thread, read_head, read_image
from metricloss_pl.data.resizing import resized_size, to_gray, with_shorter_side
from metricloss_pl.data.samples import Samples
from metricloss_pl.errors import UserError

_MEASURED_FILES = 2000  # images from which mean and deviation of files on disk are measured


def with_channels(images: Tensor, in_channels: int) -> Tensor:
    """Convert (..., C, H, W) to gray or color.

    Raises:
        UserError: The images have other channels, which cannot be converted.
    """
    channels = images.shape[-3]
    if channels == in_channels:
        return images
    if {channels, in_channels} != {1, 3}:
        raise UserError(f"images have {channels} channels, and in_channels is {in_channels}: set it to {channels}")
    if in_channels == 3:
        return images.expand(*images.shape[:-3], 3, *images.shape[-2:]).contiguous()
    return to_gray(images)


def prepare(images: Tensor, in_channels: int, resize: int | None) -> Tensor:
    """Convert and resize (..., C, H, W).

    Args:
        images: uint8, or float32 in [0, 1].
        in_channels: Channels of the result.
        resize: Shorter side in px. None: unchanged.
    """
    return with_shorter_side(with_channels(images, in_channels), resize).contiguous()


class ImageStore:
    """The images of one set, converted and resized but not cropped, in memory if they fit.

    Args:
        samples: A tensor, which stays in memory, or files.
        in_channels: Channels of the images.
        resize: Shorter side in px. None: unchanged.
        cache_gb: Memory in GB (1e9 bytes): files are decoded at once and kept if they fit, else at each use.

    Raises:
        UnreadableImages: A file cannot be read; the first such file is named.
    """

    def __init__(self, samples: Samples, *, in_channels: int, resize: int | None, cache_gb: float) -> None:
        self.samples = samples
        self.in_channels = in_channels
        self.resize = resize
        self.files = samples.files
        self.images: Tensor | list[Tensor] | None = None  # None: decoded at each use
        self.dtype = torch.uint8
        if isinstance(samples.images, Tensor):
            self.dtype = samples.images.dtype
            self.images = self._prepare_tensor(samples.images)
        else:
            self._load_files(cache_gb)

    def __len__(self) -> int:
        return len(self.files) if self.images is None else len(self.images)

    def fetch(self, indices: list[int]) -> Tensor | list[Tensor]:
        """Return the images at `indices`: (B, C, H, W) if all of the set have one size in memory, else a list."""
        if isinstance(self.images, Tensor):
            return self.images.index_select(0, torch.tensor(indices, dtype=torch.int64))
        if self.images is not None:
            return [self.images[index] for index in indices]
        return [self._decode(self.files[index]) for index in indices]

    def _prepare_tensor(self, images: Tensor) -> Tensor:
        if images.shape[-3] == self.in_channels and self.resize in (None, min(images.shape[-2:])):
            return images
        chunks = images.split(1024)  # so that the intermediate copies stay small
        return torch.cat([prepare(chunk, self.in_channels, self.resize) for chunk in chunks])

    def _decode(self, path: Path) -> Tensor:
        image = read_image(path, self.in_channels, self.resize)
        if image.dtype == torch.uint8 and self.dtype == torch.float32:
            return image.float() / 255
        return image

    def _load_files(self, cache_gb: float) -> None:
        with one_thread(), ThreadPoolExecutor(DECODING_THREADS) as pool:
            heads = list(pool.map(lambda path: read_head(path, self.in_channels), self.files))
            if any(deep for *_, deep in heads):  # one dtype per set
                self.dtype = torch.float32
            sizes = [resized_size(width, height, self.resize) for width, height, _ in heads]
            pixels = sum(width * height for width, height in sizes)
            if pixels * self.in_channels * self.dtype.itemsize > cache_gb * 1e9:
                return
            decoded = pool.map(self._decode, self.files)
            self.images = list(decoded) if len(set(sizes)) > 1 else _stack(decoded, len(sizes))


def _stack(images: Iterator[Tensor], number: int) -> Tensor | list[Tensor]:
    """Return images as they arrive as one tensor, so that none is in memory twice, or as a list if they differ."""
    first = next(images)
    stacked = first.new_empty(number, *first.shape)
    stacked[0] = first
    for index, image in enumerate(images, 1):
        if image.shape != first.shape:  # turned upright
            return [*stacked[:index].clone(), image, *images]
        stacked[index] = image
    return stacked


def _sums(images: Tensor | list[Tensor]) -> tuple[Tensor, Tensor, int]:
    """Return sum and sum of squares of each channel in [0, 1] units, (C,) float64, and the pixels per channel."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    total, squares, pixels = torch.zeros(1), torch.zeros(1), 0
    for image in [images] if isinstance(images, Tensor) else [image[None] for image in images]:
        channels = image.transpose(0, 1).flatten(1)
        if image.dtype == torch.uint8:  # by histograms, many times faster
            counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
            total, squares = total + counts @ levels, squares + counts @ levels.square()
        else:
            total = total + channels.double().sum(1)
            squares = squares + channels.double().square().sum(1)
        pixels += channels.shape[1]
    return total, squares, pixels


def measure_normalization(store: ImageStore, seed: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel in [0, 1] units; of many files, from a sample by `seed`."""
    indices = np.arange(len(store))
    if not isinstance(store.images, Tensor) and len(store) > _MEASURED_FILES:
        generator = np.random.Generator(np.random.PCG64(seed))
        indices = np.sort(generator.choice(len(store), _MEASURED_FILES, replace=False))
    with one_thread(), ThreadPoolExecutor(DECODING_THREADS) as pool:
        chunks = np.array_split(indices, max(1, len(indices) // 32))
        sums = list(pool.map(lambda chunk: _sums(store.fetch(chunk.tolist())), chunks))
    total, squares, pixels = (sum(values) for values in zip(*sums, strict=True))
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
    std[std < 1e-6] = 1.0  # a constant channel
    return mean.tolist(), std.tolist()
