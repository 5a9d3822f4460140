"""Chance within the training steps, which comes back alike in a resumed run."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["Chance"]


class Chance:
    """Seeds each training step from (torch's seed, epoch, batch, process) alone.

    Checkpoints hold no random state: so drawn, dropout in a resumed run is that of a run never interrupted.
    """

    def __init__(self) -> None:
        self._seed, self._state_before = torch.initial_seed() % 2**32, torch.get_rng_state()

    def seed_step(self, device: torch.device, epoch: int, batch_idx: int, process: int) -> None:
        """Seed torch's generators, those of the CPU and of the device, for one step."""
        key = [self._seed, epoch, batch_idx, process]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        torch.default_generator.manual_seed(seed)  # torch.manual_seed looks at all kinds of devices, each time
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(seed)

    def end(self) -> None:
        """Put torch's random state back as it was before the training."""
        torch.set_rng_state(self._state_before)
