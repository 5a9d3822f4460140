"""Callbacks and loggers that a user might bring."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from metricloss_pl.callbacks.run_folder import run_folder


class Stopped(Exception):
    """The end of a run that is cut short."""


class StopAt(Callback):
    """Cut the run short in a step, as a crash would.

    Args:
        step: Steps done by then; -1 for never.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise Stopped


class CheckLast(Callback):
    """Check at each epoch's beginning that last.ckpt knows what the other callbacks know by now."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            return
        last = run_folder(trainer) / "checkpoints" / "last.ckpt"
        states = torch.load(last, weights_only=True)["callbacks"]
        watched = [c for c in trainer.callbacks if isinstance(c, (ModelCheckpoint, EarlyStopping))]
        assert watched
        for callback in watched:
            assert str(states[callback.state_key]) == str(callback.state_dict())


class PlainLogger(Logger):
    """A logger with a `save_dir` and no folder of its own, as those of tracking services."""

    name, version, save_dir = "plain", "0", "."

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *args, **kwargs):
        pass
