"""The length of learning-rate schedules that span the whole training."""

from __future__ import annotations

import math

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from metricloss_pl.errors import UserError
from metricloss_pl.schedules import WholeTraining

__all__ = ["ScheduleLength", "check_end", "count_steps"]


def check_end(schedule: object, module: LightningModule) -> None:
    """Check that a training with a schedule over the whole of it has an end.

    Raises:
        UserError: It has none.
    """
    if not isinstance(schedule, WholeTraining) or schedule.length is not None:
        return
    if module.trainer.max_epochs == module.trainer.max_steps == -1:
        raise UserError("trainer.max_epochs is -1 without max_steps: a schedule over the whole training needs its end")


def count_steps(trainer: Trainer) -> float:
    """Return the optimizer steps of a whole training, also with a `GradientAccumulationScheduler`.

    Lightning's own estimate takes the number of accumulated batches to be that of the first epoch throughout.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    schedule = next((callback for callback in callbacks if isinstance(callback, GradientAccumulationScheduler)), None)
    if schedule is None or trainer.max_epochs in (None, -1):
        return trainer.estimated_stepping_batches
    factors = map(schedule.get_accumulate_grad_batches, range(int(trainer.max_epochs or 0)))
    steps = sum(math.ceil(trainer.num_training_batches / factor) for factor in factors)
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


class ScheduleLength(Callback):
    """Set the length of each `WholeTraining` schedule that has none, from the Trainer's epochs or steps."""

    # Not where the schedule is built: counting the steps there would start the loader's workers before the state of an
    # interrupted run is restored.
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for config in trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if not isinstance(schedule, WholeTraining) or schedule.length is not None:
                continue
            if config.interval == "step":
                schedule.length = math.ceil(count_steps(trainer))
            else:
                per_epoch = max(1, math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches))
                schedule.length = math.ceil(trainer.estimated_stepping_batches / per_epoch)
            # A resumed run with more epochs continues at the rate of its new, longer schedule.
            for group, rate in zip(schedule.optimizer.param_groups, schedule.get_lr(), strict=True):
                group["lr"] = rate
