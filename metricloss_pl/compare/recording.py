"""What is noted while a run trains and is tested: its history, what each image gets, the time of its steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from metricloss_pl.callbacks import GeometryMonitor
from metricloss_pl.callbacks.averaging import averaged_weights
from metricloss_pl.compare.plan import Metric
from metricloss_pl.compare.tuning import MEASUREMENTS
from metricloss_pl.regimes import Classifier

__all__ = ["Clock", "Recorder", "Scores"]


class Recorder(Callback):
    """The history of a training, epoch by epoch.

    Args:
        epochs: Of the whole training, in which so many measurements are spread evenly as there are epochs for.
        is_hopeless: Tells from what was measured after an epoch, by the history's names, whether to stop.
    """

    def __init__(self, epochs: int, is_hopeless: Callable[[Mapping[str, float]], bool] | None = None) -> None:
        self._due = {math.ceil(epochs * number / MEASUREMENTS) for number in range(1, MEASUREMENTS + 1)}
        self.history: dict[str, list[float | None]] = {"epoch": [], "train/loss": []}
        self.hopeless: dict[str, float] | None = None  # what was measured when it was found so
        self.seconds = 0.0
        self._is_hopeless = is_hopeless
        self._losses: list[Tensor] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        self._losses.append(outputs["loss"].detach())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if epochs not in self._due:
            return
        values = self._record(trainer, pl_module, epochs)
        if self._is_hopeless is not None and epochs != trainer.max_epochs and self._is_hopeless(values):
            self.hopeless, trainer.should_stop = values, True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.history["epoch"][-1:] != [trainer.current_epoch]:
            self._record(trainer, pl_module, trainer.current_epoch)

    def _record(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> dict[str, float]:
        assert isinstance(pl_module, Classifier)
        begin = time.perf_counter()
        values = {"epoch": epochs, "train/loss": torch.stack(self._losses).mean().item()}
        with averaged_weights(trainer, pl_module):  # those that are scored in the end
            parts = GeometryMonitor().measure(trainer, pl_module)
        for part, measured in parts.items():
            for name, scalar in measured.items():
                place = f"{part}/{name}" if name in get_args(Metric) else f"geometry/{part}_{name}"
                values[place] = scalar.item()
        for name, value in values.items():
            self.history.setdefault(name, []).append(value if math.isfinite(value) else None)
        self.seconds += time.perf_counter() - begin
        return values


class Scores(Callback):
    """What a validation or test finds for each image, in their order."""

    def __init__(self, model: Classifier) -> None:
        self._model = model
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def _take(self, trainer: Trainer, outputs: Any) -> None:
        embeddings = outputs["embeddings"]
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            scores, points = self._model.class_scores(embeddings), self._model.metric_embeddings(embeddings)
        self._batches.append((scores.float().cpu(), outputs["labels"].cpu(), points.float().cpu()))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        self._take(trainer, outputs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        self._take(trainer, outputs)

    @property
    def class_scores(self) -> Tensor:
        """(N, C)."""
        return torch.cat([batch[0] for batch in self._batches])

    @property
    def labels(self) -> Tensor:
        """(N,)."""
        return torch.cat([batch[1] for batch in self._batches])

    @property
    def points(self) -> Tensor:
        """(N, D), in the space in which the regime compares."""
        return torch.cat([batch[2] for batch in self._batches])


class Clock(Callback):
    """The seconds of each training batch."""

    def __init__(self) -> None:
        self.batches: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self._begin = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.batches.append(time.perf_counter() - self._begin)
