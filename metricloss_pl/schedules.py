"""Learning-rate schedules: two over the whole training, and the warm restarts of Barz & Denzler."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LRScheduler

from metricloss_pl.errors import UserError

__all__ = ["CosineDecay", "StepDecay", "WarmRestarts", "WholeTraining"]

_FIRST_WARMUP_FACTOR = 0.01


class WholeTraining(LRScheduler, ABC):
    """Schedule over the whole training, whatever its length.

    The callback `ScheduleLength` sets `length` from the Trainer, in epochs or steps, so that `--trainer.max_epochs`
    alone changes it. A subclass implements `factor`.

    Args:
        optimizer: Optimizer, whose learning rates are the peak rates.
        length: Number of calls of `step()` in the whole training. None: set by `ScheduleLength`.
        last_epoch: Index of the last epoch, as in torch.

    Raises:
        UserError: `length` is below 1.
    """

    def __init__(self, optimizer: Optimizer, length: int | None, last_epoch: int) -> None:
        if length is not None and length < 1:
            raise UserError(f"length is {length}; it must be at least 1")
        self.length = length
        super().__init__(optimizer, last_epoch)

    @abstractmethod
    def factor(self, step: int) -> float:
        """Return the factor on the peak learning rate after `step` calls of `step()`."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the length, since a resumed run may be longer."""
        return {name: value for name, value in super().state_dict().items() if name != "length"}

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each group."""
        return [peak * self.factor(self.last_epoch) for peak in self.base_lrs]


class CosineDecay(WholeTraining):
    """Linear warm-up, then half a cosine until the end of the training.

    factor(t) = final + (1 - final) (1 + cos(pi t)) / 2 with t in [0, 1] over the training after the warm-up.

    Args:
        optimizer: Optimizer, whose learning rates are the peak rates.
        warmup: Share of the training in [0, 1) in which the factor rises from 0.01 to 1.
        final: Factor at the end, in [0, 1].
        length: Number of calls of `step()` in the whole training. None: set by `ScheduleLength`.
        last_epoch: Index of the last epoch, as in torch.

    Raises:
        UserError: A share is out of its range.
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
            raise UserError(f"warmup is {warmup}; it must be a share of the training in [0, 1)")
        if not 0 <= final <= 1:
            raise UserError(f"final is {final}; it must be a factor in [0, 1]")
        self.warmup = warmup
        self.final = final
        super().__init__(optimizer, length, last_epoch)

    def factor(self, step: int) -> float:
        """Return the factor on the peak learning rate after `step` calls of `step()`."""
        length = self.length or math.inf
        progress = min(1.0, step / length)
        if progress < self.warmup or (self.warmup > 0 and step == 0):
            return _FIRST_WARMUP_FACTOR + (1 - _FIRST_WARMUP_FACTOR) * progress / self.warmup
        decay = (progress - self.warmup) / (1 - self.warmup)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * decay)) / 2


class StepDecay(WholeTraining):
    """Multiplication of the learning rate by `gamma` at given shares of the training.

    With the defaults, a training of 90 epochs steps down at epochs 30 and 60, like
    `torch.optim.lr_scheduler.MultiStepLR` with these milestones, and one of 180 epochs at 60 and 120.

    Args:
        optimizer: Optimizer, whose learning rates are the peak rates.
        gamma: Factor of each step down, above 0.
        milestones: Shares of the training in (0, 1).
        length: Number of calls of `step()` in the whole training. None: set by `ScheduleLength`.
        last_epoch: Index of the last epoch, as in torch.

    Raises:
        UserError: A share or a factor is out of its range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        gamma: float = 0.1,
        milestones: tuple[float, ...] = (1 / 3, 2 / 3),
        length: int | None = None,
        last_epoch: int = -1,
    ) -> None:
        if not gamma > 0:
            raise UserError(f"gamma is {gamma}; it must be above 0")
        if not all(0 < share < 1 for share in milestones):
            raise UserError(f"milestones are {list(milestones)}; they must be shares of the training in (0, 1)")
        self.gamma = gamma
        self.milestones = tuple(milestones)
        super().__init__(optimizer, length, last_epoch)

    def factor(self, step: int) -> float:
        """Return the factor on the peak learning rate after `step` calls of `step()`."""
        if self.length is None:
            return 1.0
        return self.gamma ** sum(step >= max(1, round(share * self.length)) for share in self.milestones)


class WarmRestarts(CosineAnnealingWarmRestarts):
    """Cosine annealing with warm restarts (Loshchilov & Hutter 2017), as Barz & Denzler (WACV 2020) ran it.

    lr(t) = eta_min + (peak - eta_min) (1 + cos(pi s / T)) / 2 in epoch t = 0, ..., T - 1 of a cycle of T. In the
    authors' code s is 0 in the first epoch and t + 1 in the others, so that a cycle's last epoch runs at eta_min; in
    torch's class s is t. With the defaults, the restarts are at 12, 36, 84, 180 and 372.

    Args:
        optimizer: Optimizer, whose learning rates are the peak rates.
        T_0: Length of the first cycle, in epochs or steps.
        T_mult: Factor from the length of one cycle to that of the next, at least 1.
        eta_min: Minimum learning rate.
        reach_minimum: Whether the last epoch of a cycle runs at `eta_min`. False: the schedule of torch.
        last_epoch: Index of the last epoch, as in torch.

    Raises:
        ValueError: A length is below 1.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int = 12,
        T_mult: int = 2,
        eta_min: float = 1e-6,
        reach_minimum: bool = True,
        last_epoch: int = -1,
    ) -> None:
        self.reach_minimum = reach_minimum
        super().__init__(optimizer, T_0, T_mult, eta_min, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each group."""
        ahead = 1 if self.reach_minimum and self.T_cur > 0 else 0
        factor = (1 + math.cos(math.pi * (self.T_cur + ahead) / self.T_i)) / 2
        return [self.eta_min + (peak - self.eta_min) * factor for peak in self.base_lrs]
