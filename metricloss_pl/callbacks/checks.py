"""Checks during training that end it with a clear message."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from metricloss_pl.errors import UserError

__all__ = ["TrainingChecks", "is_log_step"]


def is_log_step(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether this training step logs its losses, for automatic optimization.

    Losses are logged every `log_every_n_steps` and in the first and last batch of an epoch: each call costs 0.3 ms.
    """
    return _is_check_step(trainer, batch_idx) or trainer.is_last_batch


def _is_check_step(trainer: Trainer, batch_idx: int) -> bool:
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return batch_idx == 0 or (every > 0 and (trainer.global_step + 1) % every == 0)


class TrainingChecks(Callback):
    """Check of the loss before backward passes, and of the batch size where batch normalization needs two images.

    The loss is checked every `log_every_n_steps` and in the first batch of an epoch: a check synchronizes devices.

    Raises:
        UserError: The loss is not finite, or a process trains on one image and the model has a `BatchNorm1d`.
    """

    def __init__(self) -> None:
        self._batch_idx = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch_idx = batch_idx
        labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        if not isinstance(labels, Tensor) or len(labels) != 1:
            return
        if any(isinstance(layer, nn.BatchNorm1d) and layer.training for layer in pl_module.modules()):
            raise UserError(
                "a process has 1 image in a training batch, and batch normalization needs 2: raise data.batch_size, "
                "or give more images or fewer processes"
            )

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if not _is_check_step(trainer, self._batch_idx) or torch.isfinite(loss):
            return
        logged = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        name, value = "train/loss", loss
        for name in sorted(logged, key=lambda name: name == "train/loss"):  # the total last: a part tells more
            value = logged[name]
            if not torch.isfinite(value):
                break
        rates = ", ".join(f"{group['lr']:g}" for group in trainer.optimizers[0].param_groups)
        raise UserError(
            f"{name} is {value.item()} at step {trainer.global_step} of epoch {trainer.current_epoch} (learning rate "
            f"{rates}): lower the learning rate or the loss weight, or set trainer.gradient_clip_val; the last "
            "checkpoint is unchanged"
        )
