"""Progress of a training: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from datetime import timedelta
from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar as ProgressDisplay
from lightning.pytorch.callbacks import RichProgressBar, Timer
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task
from rich.text import Text

__all__ = ["ProgressBar", "ProgressLines", "progress_display"]

_SHORTEST, _LONGEST = 5, 150  # seconds from one line to the next, between epochs; twice as much within one


def progress_display() -> ProgressDisplay:
    """Return a bar if standard output is a terminal that can show one, else lines."""
    on_terminal = sys.stdout is not None and sys.stdout.isatty() and Console().is_interactive
    return ProgressBar() if on_terminal else ProgressLines()


class _Pace:
    """Progress of a training, with its elapsed and remaining time."""

    def __init__(self) -> None:
        self.epoch = ""  # counted from 1, such as "epoch 3/40"
        self.batches = 0  # done of this epoch
        self._begin: tuple[float, float] | None = None  # time and share of the first batch that this process trains
        self._told = False

    def start_epoch(self, trainer: Trainer) -> None:
        last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        self.epoch, self.batches = f"epoch {trainer.current_epoch + 1}{last}", 0

    def start_batch(self, trainer: Trainer, batch_idx: int) -> None:
        self.start_epoch(trainer)  # a run that is resumed within an epoch has not started it
        self.batches = batch_idx
        if self._begin is None:
            self._begin = monotonic(), self._share(trainer)

    @property
    def elapsed(self) -> float:
        return 0.0 if self._begin is None else monotonic() - self._begin[0]

    def remaining(self, trainer: Trainer) -> float | None:
        """Return the seconds that are left; None if they can't be told."""
        share = self._share(trainer)
        if self._begin is None or share <= self._begin[1]:
            return None
        seconds = self.elapsed * max(0.0, 1 - share) / (share - self._begin[1])
        limits = [c.time_remaining() for c in trainer.callbacks if isinstance(c, Timer)]  # type: ignore[attr-defined]
        return min([seconds, *(limit for limit in limits if limit is not None)])

    def tell_expected(self, trainer: Trainer) -> None:
        """Print, once, how long the training will take."""
        remaining = self.remaining(trainer)
        if remaining is not None and not self._told:
            self._told = True
            print(f"expected  about {_clock(self.elapsed + remaining)}", flush=True)

    def _share(self, trainer: Trainer) -> float:
        """Return the share of the training that is done: of its epochs or of its steps, whichever end first."""
        shares = [0.0]
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            shares.append((trainer.current_epoch + self.batches / trainer.num_training_batches) / trainer.max_epochs)
        if trainer.max_steps > 0:
            shares.append(trainer.global_step / trainer.max_steps)
        return max(shares)


def _clock(seconds: float) -> str:
    """Return hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


class ProgressBar(RichProgressBar):
    """Bar of the current epoch, on one line of 80 columns, with the time that is left for the whole training."""

    def __init__(self) -> None:
        super().__init__()
        self._pace = _Pace()

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        return [
            _TextColumn(lambda task: self._place(trainer, task)),
            BarColumn(bar_width=10),
            _TextColumn(lambda task: self._left(trainer, task)),
        ]

    def _is_training(self, trainer: Trainer, task: Task) -> bool:
        """Return whether a task is that of an epoch, which is drawn for the first time before its number is noted."""
        number = self.train_progress_bar_id
        return task.id == number or (number is None and trainer.training)

    def _place(self, trainer: Trainer, task: Task) -> str:
        name = self._pace.epoch if self._is_training(trainer, task) else task.description.strip().lower()
        total = "" if task.total is None or math.isinf(task.total) else f"/{task.total:.0f}"
        return f"{name}  {task.completed:.0f}{total}"

    def _left(self, trainer: Trainer, task: Task) -> str:
        seconds = self._pace.remaining(trainer) if self._is_training(trainer, task) else task.time_remaining
        return "" if seconds is None else f"{_clock(seconds)} left"

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pace.start_epoch(trainer)
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._pace.start_batch(trainer, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._pace.batches = batch_idx + 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.is_enabled and self._pace.elapsed >= 2 * _SHORTEST:
            self._pace.tell_expected(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self.is_enabled:
            self._pace.tell_expected(trainer)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return _shown(super().get_metrics(trainer, pl_module))


class _TextColumn(ProgressColumn):
    """Column whose text comes from a function of the task."""

    def __init__(self, text: Callable[[Task], str]) -> None:
        super().__init__()
        self._text = text

    def render(self, task: Task) -> Text:
        return Text(self._text(task), no_wrap=True)


class ProgressLines(ProgressDisplay):
    """Lines for a log file: after the first epoch, then about every tenth of the time so far, and at the end.

    Where it can be, a line is for a whole epoch. Within a long one, at most 5 minutes pass from one line to the next.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pace = _Pace()
        self._enabled = True
        self._told_at = 0.0
        self._untold: str | None = None  # the line of the last epoch, if there was none since

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return _shown(super().get_metrics(trainer, pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._pace.start_batch(trainer, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._pace.batches = batch_idx + 1
        if not self._enabled or self._pace.batches == trainer.num_training_batches:
            return
        if self._since_told() >= 2 * self._interval():
            last = "" if math.isinf(trainer.num_training_batches) else f"/{trainer.num_training_batches}"
            self._tell(trainer, self._line(trainer, pl_module, f", batch {batch_idx + 1}{last}"))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled:
            return
        self._untold = self._line(trainer, pl_module)
        if not self._told_at or self._since_told() >= self._interval():
            self._tell(trainer, self._untold)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._enabled and self._untold is not None:
            self._tell(trainer, self._untold)

    def _since_told(self) -> float:
        return self._pace.elapsed - self._told_at

    def _interval(self) -> float:
        return min(max(_SHORTEST, self._pace.elapsed / 10), _LONGEST)

    def _tell(self, trainer: Trainer, line: str) -> None:
        self._told_at, self._untold = self._pace.elapsed, None
        self._pace.tell_expected(trainer)
        print(line, flush=True)

    def _line(self, trainer: Trainer, module: LightningModule, batch: str = "") -> str:
        parts = [f"{n} {float(v):.4f}" for n, v in self.get_metrics(trainer, module).items() if not isinstance(v, str)]
        parts.append(f"{_clock(self._pace.elapsed)} elapsed")
        if (remaining := self._pace.remaining(trainer)) is not None:
            parts.append(f"{_clock(remaining)} left")
        return f"{self._pace.epoch}{batch}: {', '.join(parts)}"


def _shown(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics for a display under short names, without the run's version number."""
    return {name.removeprefix("train/"): value for name, value in metrics.items() if name != "v_num"}
