"""What Lightning's averaging of weights leaves to a regime to put right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn

__all__ = [
    "averaged_weights",
    "copy_module_again",
    "evaluate_averaged_weights",
    "save_fitted_temperature",
    "warn_of_late_start",
]


def warn_of_late_start(trainer: Trainer) -> None:
    """Warn of Lightning's moving average with a late start, until which it validates and saves untrained weights."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EMAWeightAveraging) and (
            callback.update_starting_at_step or callback.update_starting_at_epoch
        ):
            rank_zero_warn(
                "until its start, EMAWeightAveraging validates and saves the initial weights, and keeps them if "
                "training ends before: take ExponentialMovingAverage with start_step or start_epoch instead"
            )


def copy_module_again(trainer: Trainer, module: LightningModule, stage: str) -> None:
    """At set-up the averaging callbacks have copied the module that did not know its images yet."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback.setup(trainer, module, stage)


@contextmanager
def averaged_weights(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Within a training, the weights that a validation would see: averaged ones, where a callback averages them."""
    averaging = [
        callback
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging)
    ]
    for callback in averaging:
        callback.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        for callback in reversed(averaging):
            callback.on_validation_epoch_end(trainer, module)


def save_fitted_temperature(checkpoint: dict[str, Any]) -> None:
    """Save the temperature that was fitted, which is for the averaged weights, in place of its own average."""
    if "current_model_state" in checkpoint:
        checkpoint["state_dict"]["temperature"] = checkpoint["current_model_state"]["temperature"]


def evaluate_averaged_weights(checkpoint: dict[str, Any]) -> None:
    """Where no training goes on, have the averaged weights loaded, not those behind them."""
    if "current_model_state" in checkpoint:
        checkpoint["current_model_state"] = checkpoint["state_dict"]
