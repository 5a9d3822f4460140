"""Random numbers that depend on the seed, the epoch and the image alone.

An image is therefore augmented alike in an epoch in any batch, worker process or rank, on any device, and after a
resume. The numbers come from splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"),
used as a hash of a counter: a bijective mix of 64-bit integers that needs no state and works on a whole tensor at once.
torch lacks most operations on uint64, so keys are int64: sums and products wrap around alike, and a right shift has its
sign bits masked.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """Return the int64 of the same lowest 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FACTORS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shift(values: Tensor, bits: int) -> Tensor:
    """Return values >> bits, as of unsigned integers."""
    return (values >> bits).bitwise_and_(2 ** (64 - bits) - 1)


def _mix(values: Tensor) -> Tensor:
    """Apply the output function of splitmix64, a bijection of 64-bit integers."""
    mixed = _shift(values, 30).bitwise_xor_(values).mul_(_FACTORS[0])
    mixed.bitwise_xor_(_shift(mixed, 27)).mul_(_FACTORS[1])
    return mixed.bitwise_xor_(_shift(mixed, 31))


def _counters(keys: Tensor, count: int) -> Tensor:
    """Return the next `count` outputs of splitmix64 with each key as its state: (B,) -> (B, count)."""
    return _mix(keys[:, None] + torch.arange(1, count + 1, device=keys.device) * _GOLDEN)


def image_keys(seed: int, draws: Sequence[int], indices: Sequence[int]) -> Tensor:
    """Return one 64-bit key per image (B,) int64, different for each (seed, draw, index).

    Args:
        seed: Seed of the run, at least 0.
        draws: (B,) number of the draw of each image, at least 0: the epoch, for an image that is used once per epoch.
        indices: (B,) positions of the images in the training set, at least 0.
    """
    key = _mix(torch.tensor([_signed(seed)]) + _GOLDEN)
    key = _mix((key ^ torch.tensor(draws, dtype=torch.int64)) + _GOLDEN)
    return _mix((key ^ torch.tensor(indices, dtype=torch.int64)) + _GOLDEN)


def stream(keys: Tensor, number: int) -> Tensor:
    """Return the keys of an independent stream, so that two augmentations of one image do not share their draws."""
    return _mix(keys ^ _stream_constant(number))


@functools.cache
def _stream_constant(number: int) -> int:
    return int(_mix(torch.tensor([_signed((number + 1) * _GOLDEN)])))


def uniform(keys: Tensor, count: int) -> Tensor:
    """Return (B, count) float64 numbers, uniform in [0, 1), that depend on each image's key alone.

    Draw all numbers of an augmentation in one call: a call costs about 40 microseconds, however few they are.
    """
    return _shift(_counters(keys, count), 11).double().mul_(2.0**-53)


def random_bytes(keys: Tensor, count: int) -> Tensor:
    """Return (B, count) uint8 numbers, uniform in 0..255, that depend on each image's key alone."""
    return _counters(keys, -(-count // 8)).view(torch.uint8)[:, :count]
