"""What Lightning's averaging of weights leaves to a regime to put right."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

__all__ = ["copy_module_again", "evaluate_averaged_weights", "save_fitted_temperature"]


def copy_module_again(trainer: Trainer, module: LightningModule, stage: str) -> None:
    """At set-up the averaging callbacks have copied the module that did not know its images yet."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback.setup(trainer, module, stage)


def save_fitted_temperature(checkpoint: dict[str, Any]) -> None:
    """Save the temperature that was fitted, which is for the averaged weights, in place of its own average."""
    if "current_model_state" in checkpoint:
        checkpoint["state_dict"]["temperature"] = checkpoint["current_model_state"]["temperature"]


def evaluate_averaged_weights(checkpoint: dict[str, Any]) -> None:
    """Where no training goes on, have the averaged weights loaded, not those behind them."""
    if "current_model_state" in checkpoint:
        checkpoint["current_model_state"] = checkpoint["state_dict"]
