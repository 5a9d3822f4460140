"""Near duplicates among images: copies that were encoded again, resized, brightened or slightly cropped."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from metricloss_pl.data.reading import DECODING_THREADS, UnreadableImages, one_thread, read_head, read_image

__all__ = ["NearDuplicate", "Thumbnails", "find_near_duplicates", "read_thumbnails"]

_SIDE = 68  # px
_MARGINS = (0, 2, 4)  # px: the squares of 68, 66 and 64 px within a thumbnail are crops by up to 6 % of its sides
_DECODED = 2 * _SIDE  # px to which images are decoded, before they become square
_COARSE = 8  # px per side of the images that candidates are found with
_NEIGHBORS = 20  # candidates per image
_CANDIDATE = 0.9  # correlation of the coarse images from which a pair is compared in detail
_DETAIL = 0.91  # correlation of the details of near duplicates, chosen by results/check_duplicates.py
_SMALL = 32  # px: smaller images have too few details for crops
_DETAIL_OF_SMALL = 0.99
_BLOCK = 1024  # images, or pairs, at a time


class NearDuplicate(NamedTuple):
    """Pair of positions, the smaller first."""

    first: int
    second: int
    correlation: float  # of the details


class Thumbnails(NamedTuple):
    """Small square gray versions of images."""

    pixels: Tensor  # (N, 68, 68) uint8
    shorter_sides: Tensor  # (N,) int64, px of the files


def read_thumbnails(files: Sequence[Path], in_channels: int = 3) -> tuple[Thumbnails, dict[int, str]]:
    """Decode image files, JPEGs at a fraction of their size.

    Args:
        files: N files.
        in_channels: Channels of the files; color becomes gray, and of other channels the mean is taken.

    Returns:
        The thumbnails, black for images that cannot be decoded; and the reason for each of these by its position.
    """

    def read(path: Path) -> tuple[Tensor, int] | str:
        channels = 1 if in_channels == 3 else in_channels
        try:
            side = min(read_head(path, channels)[:2])
            image = read_image(path, channels, resize=_DECODED, small=_DECODED)
        except UnreadableImages as error:
            return error.broken[path]
        scale = 255 if image.is_floating_point() else 1
        gray = _resize(image.float().mean(0)[None], _SIDE)[0]
        return (gray * scale).round().to(torch.uint8), side

    pixels = torch.zeros(len(files), _SIDE, _SIDE, dtype=torch.uint8)
    sides = torch.zeros(len(files), dtype=torch.int64)
    broken = {}
    with one_thread(), ThreadPoolExecutor(DECODING_THREADS) as pool:
        for position, found in enumerate(pool.map(read, files)):
            if isinstance(found, str):
                broken[position] = found
            else:
                pixels[position], sides[position] = found
    return Thumbnails(pixels, sides), broken


def find_near_duplicates(thumbnails: Thumbnails, least: float = _DETAIL) -> list[NearDuplicate]:
    """Find pairs of images that show the same picture up to encoding, size, color, brightness and a crop of 6 %.

    Two normalized cross-correlations decide, both the largest over the crops of either image and the whole image. For
    each image the 20 images most alike at 8 x 8 px are candidates; a pair is kept if its details at 64 to 68 px per
    side, without low frequencies, correlate as well. Rotated and mirrored images are not found. Images of less than
    32 px, which have hardly any details, are compared whole, and must correlate by 0.99.

    Args:
        thumbnails: N images.
        least: Least correlation of the details; `results/check_duplicates.py` measures what it finds.

    Returns:
        Sorted pairs.
    """
    pixels, sides = thumbnails
    if len(pixels) < 2:
        return []
    found: list[NearDuplicate] = []
    candidates = _find_candidates(pixels)
    for start in range(0, len(candidates), _BLOCK):
        pairs = candidates[start : start + _BLOCK]
        used, places = pairs.unique(return_inverse=True)
        first, second = places.T
        details = _details(pixels[used].float())
        by_margin = []
        for margin in _MARGINS:
            whole = _unit(_resize(details, _SIDE - margin))
            of_first = _correlate_crops(details[first], whole[second], margin)
            by_margin.append(torch.maximum(of_first, _correlate_crops(details[second], whole[first], margin)))
        small = sides[pairs].amin(1) < _SMALL
        correlation = torch.where(small, by_margin[0], torch.stack(by_margin).amax(0))
        alike = correlation >= torch.where(small, max(least, _DETAIL_OF_SMALL), least)
        found += map(NearDuplicate, *(values[alike].tolist() for values in (*pairs.T, correlation)))
    return sorted(found)


def _find_candidates(pixels: Tensor) -> Tensor:
    """Return pairs (M, 2) of positions, the smaller first, that are alike at a few pixels."""
    views = [torch.cat(blocks) for blocks in zip(*map(_coarse_views, pixels.split(_BLOCK)), strict=True)]
    pairs = []
    for start in range(0, len(pixels), _BLOCK):
        block = range(start, min(start + _BLOCK, len(pixels)))
        alike = functools.reduce(torch.maximum, (view[block.start : block.stop] @ views[0].T for view in views))
        alike[torch.arange(len(block)), torch.arange(block.start, block.stop)] = -1
        values, others = alike.topk(min(_NEIGHBORS, len(pixels)), dim=1)
        rows, columns = (values > _CANDIDATE).nonzero(as_tuple=True)
        pairs.append(torch.stack([start + rows, others[rows, columns]], dim=1))
    found: Tensor = torch.cat(pairs).sort(dim=1).values.unique(dim=0)
    return found


def _coarse_views(pixels: Tensor) -> list[Tensor]:
    """Return the whole images and five crops of each, normalized vectors (N, D)."""
    images, margin = pixels.float(), _MARGINS[-1]
    side = _SIDE - margin
    corners = [(top, left) for top in (0, margin) for left in (0, margin)]
    crops = [
        functional.avg_pool2d(images[..., top : top + side, left : left + side], side // _COARSE)
        for top, left in [*corners, (margin // 2, margin // 2)]
    ]
    return [_unit(view) for view in [_resize(images, _COARSE), *crops]]


def _details(gray: Tensor) -> Tensor:
    """Return gray images (N, H, W) without noise and without low frequencies."""

    def blur(width: int) -> Tensor:
        return functional.avg_pool2d(gray, width, 1, width // 2, count_include_pad=False)

    return blur(3) - blur(9)


def _correlate_crops(details: Tensor, whole: Tensor, margin: int) -> Tensor:
    """Return the largest correlation (M,) of the crops of details (M, 68, 68) with normalized vectors (M, D)."""
    side = _SIDE - margin
    kernels = whole.reshape(-1, 1, side, side)
    products = functional.conv2d(details[None], kernels, groups=len(details))[0]  # `whole` has the mean 0
    sums, squares = (functional.avg_pool2d(x, side, 1) for x in (details, details**2))
    norms = (squares - sums**2).clamp_min(0).sqrt() * side
    return (products / norms.clamp_min(1e-3)).flatten(1).amax(1)


def _resize(images: Tensor, side: int) -> Tensor:
    """Return images (N, side, side) of images (N, H, W)."""
    resized: Tensor = functional.interpolate(images[:, None], (side, side), mode="bilinear", antialias=True)
    return resized[:, 0]


def _unit(images: Tensor) -> Tensor:
    """Return images as vectors (N, D) of mean 0 and norm 1; 0 where an image has a single color."""
    vectors = images.flatten(1)
    vectors = vectors - vectors.mean(1, keepdim=True)
    return functional.normalize(vectors, eps=1e-3)
