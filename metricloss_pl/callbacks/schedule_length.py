"""The length of learning-rate schedules that span the whole training."""

from __future__ import annotations

import math

from lightning.pytorch import Callback, LightningModule, Trainer

from metricloss_pl.errors import UserError
from metricloss_pl.schedules import WholeTraining

__all__ = ["ScheduleLength", "check_end"]


def check_end(schedule: object, module: LightningModule) -> None:
    """Check that a training with a schedule over the whole of it has an end.

    Raises:
        UserError: It has none.
    """
    if not isinstance(schedule, WholeTraining) or schedule.length is not None:
        return
    if module.trainer.max_epochs == module.trainer.max_steps == -1:
        raise UserError("trainer.max_epochs is -1 without max_steps: a schedule over the whole training needs its end")


class ScheduleLength(Callback):
    """Set the length of each `WholeTraining` schedule that has none, from the Trainer's epochs or steps."""

    # Not where the schedule is built: counting the steps there would start the loader's workers before the state of an
    # interrupted run is restored.
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for config in trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if not isinstance(schedule, WholeTraining) or schedule.length is not None:
                continue
            steps = trainer.estimated_stepping_batches
            if config.interval == "epoch":
                steps /= max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
            schedule.length = math.ceil(steps)
            # A resumed run with more epochs continues at the rate of its new, longer schedule.
            for group, rate in zip(schedule.optimizer.param_groups, schedule.get_lr(), strict=True):
                group["lr"] = rate
