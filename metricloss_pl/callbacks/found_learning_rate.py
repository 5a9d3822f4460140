"""Learning rates found by Lightning's `LearningRateFinder`."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder

__all__ = ["FoundLearningRate"]


class FoundLearningRate(Callback):
    """Completion of `LearningRateFinder`, which sets the rate it finds in every parameter group and in no schedule.

    Parameter groups with a rate of their own, such as that of the centers, keep it. Schedules start from the new rate,
    at the factor that they have reached.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        found = getattr(pl_module, "learning_rate", None)
        if found is None or not any(isinstance(callback, LearningRateFinder) for callback in callbacks):
            return
        given = {id(p): group["lr"] for group in pl_module.parameter_groups() if "lr" in group for p in group["params"]}  # type: ignore[operator]
        groups = trainer.optimizers[0].param_groups
        rates = [next((given[id(p)] for p in group["params"] if id(p) in given), found) for group in groups]
        factors = [1.0] * len(groups)
        for config in trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if hasattr(schedule, "base_lrs"):  # ReduceLROnPlateau has none
                pairs = zip(schedule.get_last_lr(), schedule.base_lrs, strict=True)
                factors = [float(last / base) if base else 1.0 for last, base in pairs]
                schedule.base_lrs = list(rates)
        for group, rate, factor in zip(groups, rates, factors, strict=True):
            group["lr"] = rate * factor
            group["initial_lr"] = rate
