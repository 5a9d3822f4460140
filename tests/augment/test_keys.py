from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from metricloss_pl.augment import devices
from metricloss_pl.augment.keys import image_keys, random_bytes, stream, streams, uniform

MASK = 2**64 - 1


def splitmix64(state: int, count: int) -> list[int]:
    """The generator as published, one number at a time."""
    numbers = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        numbers.append(z ^ (z >> 31))
    return numbers


def test_uniform_is_splitmix64() -> None:
    # The first outputs from state 0 are published test values of splitmix64.
    assert splitmix64(0, 2) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    states = [0, 1, 123456789, MASK]
    got = uniform(torch.from_numpy(np.array(states, dtype=np.uint64).view(np.int64)), 5)
    want = [[(number >> 11) / 2**53 for number in splitmix64(state, 5)] for state in states]
    assert got.dtype == torch.float64
    assert got.tolist() == want


def test_uniform_numbers_look_uniform_and_independent() -> None:
    keys = image_keys(0, [0] * 20000, range(20000))
    draws = uniform(keys, 3)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert torch.allclose(draws.mean(0), torch.full((3,), 0.5, dtype=torch.float64), atol=0.01)
    histogram = torch.histc(draws[:, 0].float(), bins=20, min=0, max=1)
    assert (histogram - 1000).abs().max() < 150
    together = torch.corrcoef(torch.cat([draws.T, uniform(stream(keys, 0), 1).T, uniform(stream(keys, 1), 1).T]))
    assert (together - torch.eye(5)).abs().max() < 0.03


def test_keys_differ_for_every_seed_draw_and_index() -> None:
    keys = [image_keys(seed, [epoch] * 50, range(50)) for seed in (0, 1) for epoch in (0, 1, 2**32)]
    assert len(torch.cat(keys).unique()) == 300


class Reference:
    """The same functions on numpy's unsigned integers."""

    golden = np.uint64(0x9E3779B97F4A7C15)

    @staticmethod
    def mix(values: np.ndarray) -> np.ndarray:
        mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))

    def image_keys(self, seed: int, draws: Sequence[int], indices: Sequence[int]) -> np.ndarray:
        key = np.zeros(1, dtype=np.uint64)
        for part in ([seed], draws, indices):
            key = self.mix((key ^ np.array(part, dtype=np.uint64)) + self.golden)
        return key

    def stream(self, keys: np.ndarray, number: int) -> np.ndarray:
        return self.mix(keys ^ self.mix(np.array([number + 1], dtype=np.uint64) * self.golden))

    def counters(self, keys: np.ndarray, count: int) -> np.ndarray:
        return self.mix(keys[:, None] + np.arange(1, count + 1, dtype=np.uint64) * self.golden)


def unsigned(keys: torch.Tensor) -> np.ndarray:
    return keys.numpy().view(np.uint64)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_keys_equal_those_of_unsigned_arithmetic(on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal results of numpy's and of torch's operations on signed integers."""
    monkeypatch.setattr(devices, "on_cpu", lambda tensor: on_cpu)
    reference = Reference()
    epochs, indices = [0, 1, 7, 2**32 + 3, 5], [0, 1, 10**6, 2**40, 2**62]
    for seed in (0, 1, 42, 2**31, 2**63 + 5):
        keys = image_keys(seed, epochs, indices)
        want = reference.image_keys(seed, epochs, indices)
        assert np.array_equal(unsigned(keys), want)
        numbers = (0, 1, 5, 2**32)
        together = streams(keys, numbers)
        for number, own in zip(numbers, together, strict=True):
            wanted = reference.stream(want, number)
            assert torch.equal(stream(keys, number), own)
            assert np.array_equal(unsigned(own), wanted)
            draws = (reference.counters(wanted, 23) >> np.uint64(11)).astype(np.float64) * 2.0**-53
            assert np.array_equal(uniform(own, 23).numpy(), draws)
            octets = reference.counters(wanted, 13).astype("<u8").view(np.uint8)[:, :101]
            assert np.array_equal(random_bytes(own, 101).numpy(), octets)
