"""The checkpoint of the best epoch."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

__all__ = ["BestCheckpoint"]


class BestCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, which of equally good epochs keeps the latest in place of the first.

    On few validation images many epochs are level, and the first of them has hardly trained.
    """

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        worst_kept = self.best_k_models.get(self.kth_best_model_path)
        level = current is not None and worst_kept is not None and bool(current == worst_kept)
        # Both are decided by all processes together, since to save takes them all.
        return super().check_monitor_top_k(trainer, current) or trainer.strategy.reduce_boolean_decision(level)
