"""The images of one set, decoded, converted and resized: in memory if they fit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from metricloss_pl.data.reading import DECODING_THREADS, one_thread, read_head, read_image
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
    gray: Tensor = transforms.rgb_to_grayscale(images)
    return gray


def with_shorter_side(images: Tensor, side: int | None) -> Tensor:
    """Resize (..., C, H, W) so that the shorter side has `side` px (antialiased bilinear); None: unchanged."""
    if side is None or min(images.shape[-2:]) == side:
        return images
    resized: Tensor = transforms.resize(images, [side], antialias=True)
    return resized


def prepare(images: Tensor, in_channels: int, resize: int | None) -> Tensor:
    """Convert and resize (..., C, H, W).

    Args:
        images: uint8, or float32 in [0, 1].
        in_channels: Channels of the result.
        resize: Shorter side in px. None: unchanged.
    """
    images = with_shorter_side(with_channels(images, in_channels), resize).contiguous()
    return images.clamp(0, 1) if images.is_floating_point() else images


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
        image = prepare(read_image(path, self.in_channels), self.in_channels, self.resize)
        if image.dtype == torch.uint8 and self.dtype == torch.float32:
            return image.float() / 255
        return image

    def _load_files(self, cache_gb: float) -> None:
        with one_thread(), ThreadPoolExecutor(DECODING_THREADS) as pool:
            heads = list(pool.map(lambda path: read_head(path, self.in_channels), self.files))
            if any(deep for *_, deep in heads):  # one dtype per set
                self.dtype = torch.float32
            scales = [1.0 if self.resize is None else self.resize / min(head[:2]) for head in heads]
            pixels = sum(int(w * scale) * int(h * scale) for (w, h, _), scale in zip(heads, scales, strict=True))
            if pixels * self.in_channels * self.dtype.itemsize > cache_gb * 1e9:
                return
            images = list(pool.map(self._decode, self.files))
        same_size = all(image.shape == images[0].shape for image in images)
        self.images = torch.stack(images) if same_size else images


def measure_normalization(store: ImageStore, seed: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel in [0, 1] units; of many files, from a sample by `seed`."""
    indices = np.arange(len(store))
    if not isinstance(store.images, Tensor) and len(store) > _MEASURED_FILES:
        generator = np.random.Generator(np.random.PCG64(seed))
        indices = np.sort(generator.choice(len(store), _MEASURED_FILES, replace=False))
    total = torch.zeros(store.in_channels, dtype=torch.float64)
    squares, pixels = total.clone(), 0
    levels = torch.arange(256, dtype=torch.float64) / 255
    for chunk in np.array_split(indices, max(1, len(indices) // 256)):
        images = store.fetch(chunk.tolist())
        for image in [images] if isinstance(images, Tensor) else [image[None] for image in images]:
            channels = image.transpose(0, 1).flatten(1)
            if image.dtype == torch.uint8:  # by histograms, many times faster
                counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
                total += counts @ levels
                squares += counts @ levels.square()
            else:
                total += channels.double().sum(1)
                squares += channels.double().square().sum(1)
            pixels += channels.shape[1]
    mean = total / pixels
    std = (squares / pixels - mean.square()).clamp(min=0).sqrt()
    std[std < 1e-6] = 1.0  # a constant channel
    return mean.tolist(), std.tolist()
