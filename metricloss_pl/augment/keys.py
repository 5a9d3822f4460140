"""Random numbers that depend on the seed, the epoch and the image alone.

An image is therefore augmented alike in an epoch in any batch, worker process or rank, on any device, and after a
resume. The numbers come from splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"),
used as a hash of a counter: a bijective mix of 64-bit integers that needs no state and works on a whole tensor at once.
torch lacks most operations on uint64, so keys are int64: sums and products wrap around alike, and a right shift has its
sign bits masked. On the CPU numpy computes, whose calls cost half as much as torch's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metricloss_pl.augment import devices


def _signed(value: int) -> int:
    """Return the int64 of the same lowest 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FACTORS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shift(values: Any, bits: int) -> Any:
    """Return values >> bits, as of unsigned integers."""
    return (values >> bits) & (2 ** (64 - bits) - 1)


def _mix(values: Any) -> Any:
    """Apply the output function of splitmix64, a bijection of 64-bit integers, to a tensor or an array of int64."""
    values = (values ^ _shift(values, 30)) * _FACTORS[0]
    values = (values ^ _shift(values, 27)) * _FACTORS[1]
    return values ^ _shift(values, 31)


def _counters(keys: Tensor, count: int) -> Any:
    """Return the next `count` outputs of splitmix64 with each key as its state: (B,) -> (B, count)."""
    if devices.on_cpu(keys):
        return _mix(keys.numpy()[:, None] + np.arange(1, count + 1) * _GOLDEN)
    return _mix(keys[:, None] + torch.arange(1, count + 1, device=keys.device) * _GOLDEN)


def image_keys(seed: int, draws: Sequence[int], indices: Sequence[int]) -> Tensor:
    """Return one 64-bit key per image (B,) int64, different for each (seed, draw, index).

    Args:
        seed: Seed of the run, at least 0.
        draws: (B,) number of the draw of each image, at least 0: the epoch, for an image that is used once per epoch.
        indices: (B,) positions of the images in the training set, at least 0.
    """
    key = np.zeros(1, dtype=np.int64)
    for part in ([_signed(seed)], draws, indices):
        key = _mix((key ^ np.asarray(part, dtype=np.int64)) + _GOLDEN)
    return torch.from_numpy(key)


def streams(keys: Tensor, numbers: Sequence[int]) -> Tensor:
    """Return the keys (N, B) of independent streams, so that augmentations of one image do not share their draws."""
    constants = [_stream_constant(number) for number in numbers]
    if devices.on_cpu(keys):
        return torch.from_numpy(_mix(keys.numpy() ^ np.array(constants)[:, None]))
    return torch.stack([_mix(keys ^ constant) for constant in constants])


def stream(keys: Tensor, number: int) -> Tensor:
    """Return the keys (B,) of one of the `streams`."""
    return streams(keys, [number])[0]


@functools.cache
def _stream_constant(number: int) -> int:
    return int(_mix(np.array([_signed((number + 1) * _GOLDEN)]))[0])


def uniform(keys: Tensor, count: int) -> Tensor:
    """Return (B, count) float64 numbers, uniform in [0, 1), that depend on each image's key alone.

    Draw all numbers of an augmentation in one call: most of its time does not depend on their number.
    """
    bits = _shift(_counters(keys, count), 11)
    return bits.double() * 2.0**-53 if isinstance(bits, Tensor) else torch.from_numpy(bits * 2.0**-53)


def random_bytes(keys: Tensor, count: int) -> Tensor:
    """Return (B, count) uint8 numbers, uniform in 0..255, that depend on each image's key alone."""
    return torch.as_tensor(_counters(keys, -(-count // 8))).view(torch.uint8)[:, :count]
