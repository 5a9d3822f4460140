"""Facts that a run records for its closing lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torchmetrics.classification import MulticlassStatScores

from metricloss_pl.callbacks.run_folder import run_folder
from metricloss_pl.checkpoints import read_checkpoint
from metricloss_pl.cli.run_folder import LastCheckpoint
from metricloss_pl.data import ImageDataModule
from metricloss_pl.data.samples import Split

__all__ = ["ClassScores", "RunRecord"]


class ClassScores(NamedTuple):
    """Images of a class, the share of them that was recognized, and F1; None where undefined, without images."""

    images: int
    recall: float | None
    f1: float | None


class RunRecord(Callback):
    """Facts about a run, also for a process that has started others to do it, as with `ddp_spawn`.

    They are the time of the training over all stretches, its length, its best checkpoint and epoch; images, recall and
    F1 of each class in an evaluation, exact under several processes; and images of a prediction that can't be read.

    Args:
        best: Callback of the best checkpoint. None: checkpoints are disabled.
    """

    def __init__(self, best: ModelCheckpoint | None) -> None:
        self.best = best
        self.earlier_seconds = 0.0  # of training, before the run was resumed
        self._start = monotonic()
        self._process = os.getpid()
        self._stats: MulticlassStatScores | None = None
        self.training: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        self.checkpoint = ""
        self.counts: dict[str, list[int]] = {}  # images per class of "val" and "test", where these are evaluated
        self.classes: list[ClassScores] = []
        self.unreadable = ""

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.earlier_seconds = state_dict["seconds"]

    def _seconds(self) -> float:
        return self.earlier_seconds + monotonic() - self._start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = round(self._seconds(), 1)
        self.training = {"epochs": trainer.current_epoch, "steps": trainer.global_step, "seconds": seconds}
        last = next((c.path for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), None)
        self.checkpoint = str(last) if last and last.is_file() else ""
        if self.best is not None and self.best.monitor and self.best.best_model_score is not None:
            self.checkpoint = self.best.best_model_path
            self.metrics = {f"best {self.best.monitor}": self.best.best_model_score.item()}
            if trainer.is_global_zero and Path(self.checkpoint).is_file():
                epoch = read_checkpoint(self.checkpoint)["epoch"] + 1
                self.training |= {"best_epoch": epoch, "monitor": self.best.monitor}
        if trainer.datamodule.has_validation:  # type: ignore[attr-defined]
            self._count(trainer, "val")
        self._hand_over(trainer)

    def _count(self, trainer: Trainer, subset: Split) -> None:
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self.counts[subset] = data.samples(subset).counts(data.num_classes).tolist()

    # Evaluation

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_test_epoch_start(trainer, pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        number = trainer.datamodule.num_classes  # type: ignore[attr-defined]
        self._stats = MulticlassStatScores(number, average=None, validate_args=False).to(pl_module.device)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        if self._stats is not None and isinstance(outputs, dict) and "predictions" in outputs:
            self._stats.update(outputs["predictions"], outputs["labels"])

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        self.on_validation_batch_end(trainer, pl_module, outputs, *args)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._stats is None:
            return
        subset: Split = "test" if trainer.state.fn == TrainerFn.TESTING else "val"
        self._count(trainer, subset)
        self.classes = []
        for right, wrong, _, missed, images in self._stats.compute().tolist() if self._stats.update_called else ():
            recall, f1 = (right / images, 2 * right / (2 * right + wrong + missed)) if images else (None, None)
            self.classes.append(ClassScores(images, recall, f1))
        self._stats = None
        self._hand_over(trainer)

    on_test_epoch_end = on_validation_epoch_end

    # Prediction

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.unreadable = str(trainer.datamodule.unreadable or "")  # type: ignore[attr-defined]
        self._hand_over(trainer)

    # Processes

    def _hand_over(self, trainer: Trainer) -> None:
        if os.getpid() != self._process and trainer.is_global_zero:
            names = ("training", "metrics", "checkpoint", "counts", "classes", "unreadable")
            self._file(trainer).write_text(json.dumps({name: getattr(self, name) for name in names}), encoding="utf-8")

    def take_over(self, trainer: Trainer) -> None:
        """Take the facts from a process that this one has started, if there is one."""
        if (file := self._file(trainer)).is_file():
            vars(self).update(json.loads(file.read_text(encoding="utf-8")))
            self.classes = [ClassScores(*scores) for scores in self.classes]
            file.unlink()

    def _file(self, trainer: Trainer) -> Path:
        return run_folder(trainer) / f".record-{self._process}.json"
