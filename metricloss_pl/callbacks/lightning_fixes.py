"""Corrections of faults in Lightning 2.6."""

from __future__ import annotations

import inspect
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.utilities import rank_zero_warn

from metricloss_pl._compat import start_epoch_after_finished_one

__all__ = ["LightningFixes"]


class LightningFixes(Callback):
    """Correction of faults of Lightning that appear late or without a message.

    - A run with `max_steps` that resumes from the end of an epoch would count that epoch twice.
    - The last pass of `StochasticWeightAveraging` over the data would step with the gradients of the step before.
    - The state of `SWALR` holds a function before torch 2.10, which reading with `weights_only` refuses.
    - `EMAWeightAveraging` with a late start validates and saves the initial weights until then: a warning names the
      alternative.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for callback in trainer.callbacks if stage == "fit" else []:  # type: ignore[attr-defined]
            if isinstance(callback, EMAWeightAveraging) and (
                callback.update_starting_at_step or callback.update_starting_at_epoch
            ):
                rank_zero_warn(
                    "EMAWeightAveraging validates and saves the initial weights until its start: use "
                    "ExponentialMovingAverage with start_step or start_epoch instead"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start_epoch_after_finished_one(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for name in ("lr_schedulers", "callbacks"):
            checkpoint[name] = _without_functions(checkpoint.get(name, {}))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            pl_module.zero_grad()


def _without_functions(state: Any) -> Any:
    """Return a nested state without functions."""
    if isinstance(state, dict):
        return {key: _without_functions(value) for key, value in state.items() if not inspect.isfunction(value)}
    return [_without_functions(value) for value in state] if isinstance(state, list) else state
