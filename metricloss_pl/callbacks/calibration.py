"""Calibrated probabilities by temperature scaling."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from metricloss_pl.metrics import Temperature

__all__ = ["TemperatureScaling"]


class TemperatureScaling(Callback):
    """Fit of the temperature that calibrates a model's probabilities, on each validation during training.

    Sets `pl_module.temperature` to the T of softmax(class_scores / T) with the least negative log-likelihood on the
    validation set (Guo et al., ICML 2017); see `metricloss_pl.metrics.Temperature`. It takes `class_scores` and
    `labels` from the results of the validation steps; without them T is 1.
    """

    def __init__(self) -> None:
        self._metric: Temperature | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is None:  # an earlier temperature belongs to other weights
            pl_module.temperature = 1.0  # type: ignore[assignment]

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        self._metric = Temperature().to(pl_module.device) if fitting else None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._metric is not None and isinstance(outputs, dict) and "class_scores" in outputs:
            self._metric.update(outputs["class_scores"], outputs["labels"])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._metric is not None:
            pl_module.temperature = self._metric.compute().item()  # type: ignore[assignment]
            self._metric = None
