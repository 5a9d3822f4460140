"""Random numbers that depend on the seed, the epoch and the image alone.

An image is therefore augmented alike in an epoch in any batch, worker process or rank, and after a resume. The numbers
come from splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), used as a hash of a
counter: a bijective mix of 64-bit integers that needs no state and works on a whole array at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Keys = npt.NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: Keys) -> Keys:
    """Apply the output function of splitmix64, a bijection of 64-bit integers."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _counters(keys: Keys, count: int) -> Keys:
    """Return the next `count` outputs of splitmix64 with each key as its state: (B,) -> (B, count)."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return _mix(keys[:, None] + steps)


def image_keys(seed: int, draws: Sequence[int] | np.ndarray, indices: Sequence[int] | np.ndarray) -> Keys:
    """Return one 64-bit key per image, different for each (seed, draw, index).

    Args:
        seed: Seed of the run, at least 0.
        draws: (B,) number of the draw of each image, at least 0: the epoch, for an image that is used once per epoch.
        indices: (B,) positions of the images in the training set, at least 0.
    """
    key = _mix(np.array([seed], dtype=np.uint64) + _GOLDEN)
    key = _mix((key ^ np.asarray(draws, dtype=np.uint64)) + _GOLDEN)
    return _mix((key ^ np.asarray(indices, dtype=np.uint64)) + _GOLDEN)


def stream(keys: Keys, number: int) -> Keys:
    """Return the keys of an independent stream, so that two augmentations of one image do not share their draws."""
    return _mix(keys ^ _mix(np.array([number + 1], dtype=np.uint64) * _GOLDEN))


def uniform(keys: Keys, count: int) -> Tensor:
    """Return (B, count) float64 numbers, uniform in [0, 1), that depend on each image's key alone."""
    return torch.from_numpy((_counters(keys, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def random_bytes(keys: Keys, count: int) -> Tensor:
    """Return (B, count) uint8 numbers, uniform in 0..255, that depend on each image's key alone."""
    words = _counters(keys, -(-count // 8)).astype("<u8", copy=False)
    return torch.from_numpy(words.view(np.uint8)[:, :count])
