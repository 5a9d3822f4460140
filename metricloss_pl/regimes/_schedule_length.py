"""The length of a schedule over the whole training, which the Trainer knows."""

from __future__ import annotations

import math
from typing import Any, Literal

from lightning.pytorch import Trainer

from metricloss_pl.errors import UserError
from metricloss_pl.schedules import WholeTraining

__all__ = ["Interval", "check_end", "fill_in_length"]

Interval = Literal["epoch", "step"]


def check_end(scheduler: Any, trainer: Trainer) -> None:
    """Check that the training has an end where the schedule is over the whole of it.

    Raises:
        UserError: It has none.
    """
    endless = trainer.max_epochs == trainer.max_steps == -1
    if isinstance(scheduler, WholeTraining) and scheduler.length is None and endless:
        raise UserError("trainer.max_epochs is -1 without max_steps: a schedule over the whole training needs its end")


def fill_in_length(scheduler: Any, trainer: Trainer, interval: Interval) -> None:
    """Tell a schedule over the whole training, once, how often it will step; others are left alone.

    Not where the schedule is built: asked for the number of steps there, Lightning starts the loader's workers before
    the state of an interrupted run is back.
    """
    if not isinstance(scheduler, WholeTraining) or scheduler.length is not None:
        return
    length = trainer.estimated_stepping_batches
    if interval == "epoch":
        length = math.ceil(length / max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)))
    scheduler.length = int(length)
    # A run that goes on for longer than was planned leaves the rate of its old end at once.
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_lr(), strict=True):
        group["lr"] = rate
