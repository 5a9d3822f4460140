"""Random draws within training steps that a resumed run repeats."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

__all__ = ["PerStepSeeding"]


class PerStepSeeding(Callback):
    """Seed torch's generators for each training step from (seed, epoch, batch, process).

    Checkpoints hold no random state. With draws that depend on the step alone, dropout and batch mixing in a resumed
    run are those of a run that was never interrupted. After each step, and after an exception, the generators continue
    where they were before it, so that draws outside the steps are the user's own.

    The seed is torch's own (`torch.initial_seed`) when training is set up.
    """

    def __init__(self) -> None:
        self._seed = 0
        self._states: dict[str, Tensor] = {}  # of the generators before the step

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._seed = torch.initial_seed() % 2**32

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._restore()  # a skipped batch has no end
        key = [self._seed, trainer.current_epoch, batch_idx, trainer.global_rank]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        self._states["cpu"] = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)  # torch.manual_seed visits all kinds of devices, 50 times slower
        if (device := pl_module.device).type != "cpu":
            module = torch.get_device_module(device)
            self._states[device.type] = module.get_rng_state()
            module.manual_seed(seed)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._restore()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for kind, state in self._states.items():
            (torch if kind == "cpu" else torch.get_device_module(kind)).set_rng_state(state)
        self._states.clear()
