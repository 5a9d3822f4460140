"""Progress of a training as lines of text."""

from __future__ import annotations

import math
from datetime import timedelta
from time import monotonic
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch import nn

from metricloss_pl.callbacks.schedule_length import count_steps
from metricloss_pl.environment import multiplies_bfloat16

__all__ = ["ExpectedTime", "ProgressLines"]


class ExpectedTime(Callback):
    """One line with the expected time of a training, also beside Lightning's bar, which shows that of an epoch.

    It comes at the end of the first epoch that ends after 5 seconds, or within an epoch after 30 seconds, which then
    leaves out validation. The first step, which is slower, is not counted. A training of a minute or more in 32-bit
    precision on a CPU is told if mixed precision may be faster.
    """

    def __init__(self) -> None:
        self._first_step = 0  # of this process
        self._begin: tuple[float, int] | None = None  # time and optimizer step after the first batch
        self._is_due = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._begin is None:
            self._begin = monotonic(), trainer.global_step
        self._print(trainer, pl_module, after=30)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, pl_module, after=5)

    def _print(self, trainer: Trainer, module: LightningModule, after: float) -> None:
        if not self._is_due or self._begin is None:
            return
        seconds, steps = monotonic() - self._begin[0], trainer.global_step - self._begin[1]
        if seconds >= after and steps > 0:
            self._is_due = False
            total = count_steps(trainer) - self._first_step
            if math.isfinite(total):
                expected = seconds * total / steps
                hint = "; --trainer.precision bf16-mixed may be faster" if _gains_by_bfloat16(trainer, module) else ""
                module.print(
                    f"expected time  {_clock(expected)} for {round(total)} steps{hint if expected >= 60 else ''}"
                )


def _gains_by_bfloat16(trainer: Trainer, module: LightningModule) -> bool:
    """Return whether a training in 32-bit precision usually becomes faster on this CPU by bfloat16.

    Grouped convolutions, as those of EfficientNet, become slower by it.
    """
    is_plain = trainer.strategy.root_device.type == "cpu" and trainer.precision == "32-true"
    if not is_plain or getattr(getattr(trainer, "datamodule", None), "features", None):  # the network does not run
        return False
    is_grouped = any(isinstance(layer, nn.Conv2d) and layer.groups > 1 for layer in module.modules())
    return not is_grouped and multiplies_bfloat16()


class ProgressLines(ProgressBar):
    """Lines of text in place of Lightning's progress bar, for output that is no terminal, such as a log file.

    The first and the last epoch have a line, and any other one that ends 10 seconds after the last line. Within a long
    epoch there is a line every 5 minutes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_enabled = True  # also read by LightningModule.print
        self._begin = (0.0, 0)  # time and optimizer step at which this process began
        self._printed_at = -math.inf
        self._line: str | None = None  # of the last epoch, if it was not printed

    def disable(self) -> None:
        self.is_enabled = False

    def enable(self) -> None:
        self.is_enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin = monotonic(), trainer.global_step
        self._printed_at = -math.inf

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if monotonic() - max(self._printed_at, self._begin[0]) >= 300 and not trainer.is_last_batch:
            self._print(self._describe(trainer, f", batch {batch_idx + 1}/{trainer.num_training_batches}"))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._line = self._describe(trainer)
        if monotonic() - self._printed_at >= 10:
            self._print(self._line)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._line is not None:
            self._print(self._line)

    def _print(self, line: str) -> None:
        self._printed_at, self._line = monotonic(), None
        if self.is_enabled:
            print(line, flush=True)

    def _describe(self, trainer: Trainer, batch: str = "") -> str:
        last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        values = [f"{name.removeprefix('train/')} {value:.4f}" for name, value in trainer.progress_bar_metrics.items()]
        elapsed, steps = monotonic() - self._begin[0], trainer.global_step - self._begin[1]
        values.append(f"{_clock(elapsed)} elapsed")
        left = count_steps(trainer) - trainer.global_step
        if steps > 0 and math.isfinite(left):
            values.append(f"{_clock(elapsed * left / steps)} left")
        return f"epoch {trainer.current_epoch + 1}{last}{batch}: {', '.join(values)}"


def _clock(seconds: float) -> str:
    """Return hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
