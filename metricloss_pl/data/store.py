"""The images of one part, decoded, converted and resized: in memory where they fit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from metricloss_pl.data.reading import DECODING_THREADS, one_thread, read_head, read_image
from metricloss_pl.data.samples import Samples


def _with_channels(images: Tensor, in_channels: int) -> Tensor:
    """Converts (..., C, H, W) to grey or colour."""
    if images.shape[-3] == in_channels:
        return images
    if in_channels == 3:
        return images.expand(*images.shape[:-3], 3, *images.shape[-2:]).contiguous()
    grey: Tensor = transforms.rgb_to_grayscale(images)
    return grey


def with_shorter_side(images: Tensor, side: int | None) -> Tensor:
    """Resizes (..., C, H, W) so that the shorter side has `side` px (antialiased bilinear); None: as it is."""
    if side is None or min(images.shape[-2:]) == side:
        return images
    resized: Tensor = transforms.resize(images, [side], antialias=True)
    return resized


def prepare(images: Tensor, in_channels: int, resize: int | None) -> Tensor:
    """Convert and resize (..., C, H, W).

    Args:
        images: uint8, or float32 in [0, 1].
        in_channels: 3 for color, 1 for gray.
        resize: Shorter side in px. None: as it is.
    """
    images = with_shorter_side(_with_channels(images, in_channels), resize).contiguous()
    return images.clamp(0, 1) if images.is_floating_point() else images


class ImageStore:
    """The images of one part, converted and resized but not cropped, in memory where they fit.

    Args:
        samples: A tensor, which stays in memory, or files.
        in_channels: 3 for colour, 1 for grey.
        resize: Shorter side in px. None: as it is.
        cache_gb: Files are decoded at once and kept if they fit into so many GB (1e9 bytes), else at each use.

    Raises:
        UnreadableImages: A file cannot be read; the first such one is named.
    """

    def __init__(self, samples: Samples, *, in_channels: int, resize: int | None, cache_gb: float) -> None:
        self.in_channels = in_channels
        self.resize = resize
        self.files: list[Path] = []
        self.images: Tensor | list[Tensor] | None = None  # None: decoded at each use
        self.dtype = torch.uint8
        if isinstance(samples.images, Tensor):
            self.dtype = samples.images.dtype
            self.images = self._prepare_tensor(samples.images)
        else:
            self.files = list(samples.images)
            self._look_at_files(cache_gb)

    def __len__(self) -> int:
        return len(self.files) if self.images is None else len(self.images)

    def fetch(self, indices: list[int]) -> Tensor | list[Tensor]:
        """Returns the images at `indices`: (B, C, H, W) where all of the part have one size in memory, else a list."""
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

    def _look_at_files(self, cache_gb: float) -> None:
        with one_thread(), ThreadPoolExecutor(DECODING_THREADS) as pool:
            heads = list(pool.map(self._head, self.files))
            if any(deep for _, deep in heads):  # one dtype a part
                self.dtype = torch.float32
            size = sum(pixels for pixels, _ in heads) * self.in_channels * self.dtype.itemsize
            if size > cache_gb * 1e9:
                return
            images = list(pool.map(self._decode, self.files))
        same_size = all(image.shape == images[0].shape for image in images)
        self.images = torch.stack(images) if same_size else images

    def _head(self, path: Path) -> tuple[int, bool]:
        """The number of pixels after the resize, and whether the image has more than 8 bits."""
        width, height, deep = read_head(path)
        scale = 1.0 if self.resize is None else self.resize / min(width, height)
        return int(width * scale) * int(height * scale), deep
