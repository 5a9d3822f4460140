"""Learning-rate schedules that torch lacks: those that know how long the training is."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["CosineDecay"]

_FIRST_WARMUP_FACTOR = 0.01


class CosineDecay(LRScheduler):
    """Linear warm-up, then half a cosine down to the end of the training, whatever its length.

    factor(t) = final + (1 - final) (1 + cos(pi t)) / 2 with t in [0, 1] over the training after the warm-up. The regime
    fills in ``length`` from the Trainer (epochs or steps, as the schedule is stepped), so `--trainer.max_epochs` alone
    changes it.

    Args:
        optimizer: Its groups' learning rates are the peak.
        warmup: Share of the training in [0, 1) in which the factor rises from 0.01 to 1.
        final: Factor at the end, in [0, 1].
        length: Number of calls of ``step()`` in the whole training; None: the regime fills it in.
        last_epoch: As in torch.

    Raises:
        ValueError: A share outside its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup: float = 0.0,
        final: float = 0.0,
        length: int | None = None,
        last_epoch: int = -1,
    ) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is {warmup}; it must be a share of the training in [0, 1)")
        if not 0 <= final <= 1:
            raise ValueError(f"final is {final}; it must be a factor in [0, 1]")
        if length is not None and length < 1:
            raise ValueError(f"length is {length}; it must be at least 1")
        self.warmup = warmup
        self.final = final
        self.length = length
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Factor on the peak learning rate after ``step`` calls of ``step()``."""
        length = self.length or math.inf
        progress = min(1.0, step / length)
        if progress < self.warmup or (self.warmup > 0 and step == 0):
            return _FIRST_WARMUP_FACTOR + (1 - _FIRST_WARMUP_FACTOR) * progress / self.warmup
        decay = (progress - self.warmup) / (1 - self.warmup)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * decay)) / 2

    def state_dict(self) -> dict[str, Any]:
        """As in torch, without the length, which belongs to the Trainer: a resumed run may be longer."""
        return {name: value for name, value in super().state_dict().items() if name != "length"}

    def get_lr(self) -> list[float | Tensor]:
        """Learning rate of each group."""
        return [peak * self.factor(self.last_epoch) for peak in self.base_lrs]
