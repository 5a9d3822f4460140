"""Class scores of images in a run, and the history of its training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional

from metricloss_pl.callbacks.averaging import averaged_weights
from metricloss_pl.callbacks.evaluation import evaluation_mode
from metricloss_pl.compare.search import MEASUREMENTS
from metricloss_pl.errors import UserError
from metricloss_pl.metrics import BalancedAccuracy
from metricloss_pl.regimes import Classifier

__all__ = ["HistoryCallback", "Scored", "labels_of", "score", "val_loader"]


class Scored(NamedTuple):
    """Class scores (N, C), labels (N,) and, of a regime, embeddings (N, D) of a set, on the CPU."""

    scores: Tensor
    labels: Tensor
    embeddings: Tensor | None

    def metrics(self, prefix: str, temperature: float = 1.0) -> dict[str, float]:
        """Return accuracy, balanced accuracy and negative log-likelihood by name."""
        balanced = BalancedAccuracy(self.scores.shape[1])
        balanced.update(self.scores, self.labels)
        return {
            f"{prefix}/accuracy": (self.scores.argmax(1) == self.labels).double().mean().item(),
            f"{prefix}/balanced_accuracy": balanced.compute().item(),
            f"{prefix}/nll": functional.cross_entropy(self.scores.double() / temperature, self.labels).item(),
        }


def score(trainer: Trainer, module: LightningModule, loader: Iterable[Any]) -> Scored:
    """Return the class scores of all images of a loader.

    They are those of `predict_step`, or else of `forward`. Probabilities are turned into their logarithms.

    Raises:
        UserError: The batches are no (inputs, labels), or the module returns no class scores.
    """
    name, found = type(module).__name__, []
    with evaluation_mode(trainer, module):
        for index, batch in enumerate(loader):
            labels_of(batch)
            batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch), module.device)
            embeddings = None
            if isinstance(module, Classifier):
                embeddings = module.embed_views(batch[0])
                scores: Any = module.class_scores(embeddings)
                embeddings = module.metric_embeddings(embeddings).float().cpu()
            elif type(module).predict_step is not LightningModule.predict_step:
                scores = module.predict_step(batch, index)
            else:
                scores = module(batch[0])
            if not (isinstance(scores, Tensor) and scores.ndim == 2 and len(scores) == len(batch[1])):
                shape = f"of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
                raise UserError(f"{name} returns {shape}: class scores ({len(batch[1])}, C) are needed")
            found.append((scores.float().cpu(), batch[1].cpu(), embeddings))
    scores, labels = torch.cat([one[0] for one in found]), torch.cat([one[1] for one in found])
    if bool((scores >= 0).all()) and torch.allclose(scores.sum(1), torch.ones(len(scores)), atol=1e-4):
        scores = scores.clamp_min(1e-12).log()
    points = [one[2] for one in found if one[2] is not None]
    return Scored(scores, labels.long(), torch.cat(points) if points else None)


def labels_of(batch: Any) -> Tensor:
    """Return the labels (B,) of a batch.

    Raises:
        UserError: The batch is no (inputs, labels).
    """
    labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if not (isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point()):
        raise UserError(f"a batch is {type(batch).__name__}: (inputs, labels) is needed, with integer labels (B,)")
    return labels


class HistoryCallback(Callback):
    """Loss and, with validation images, accuracies at up to ten times during a training.

    Args:
        epochs: Epochs of the training.
        validates: Whether to measure on the validation set.
        is_hopeless: Function from the values after an epoch to whether to stop.
        temperature: Temperature of a regime's probabilities, for its checkpoints.
    """

    def __init__(
        self, epochs: int, validates: bool, is_hopeless: Callable[[dict[str, float]], bool], temperature: float = 1.0
    ) -> None:
        self._due = {math.ceil(epochs * number / MEASUREMENTS) for number in range(1, MEASUREMENTS + 1)}
        self._validates, self._is_hopeless, self._temperature = validates, is_hopeless, temperature
        self.history: dict[str, list[float | None]] = {}
        self.hopeless: dict[str, float] | None = None
        self._losses: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(pl_module, Classifier):
            pl_module.temperature = self._temperature

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch + 1
        if not self._validates or epoch not in self._due or epoch == trainer.max_epochs:
            if epoch in self._due:
                self.record(epoch)
            return
        with averaged_weights(trainer, pl_module):
            values = score(trainer, pl_module, val_loader(trainer)).metrics("val")
        self.record(epoch, values)
        if self._is_hopeless({"epoch": epoch, **values}):
            self.hopeless, trainer.should_stop = {"epoch": epoch, **values}, True

    def record(self, epoch: int, values: Mapping[str, float] | None = None) -> None:
        """Add the values after an epoch, or values to an epoch that is there."""
        row: dict[str, float | None] = {"epoch": epoch}
        if self._losses:
            row["train/loss"] = torch.stack(self._losses).mean().item()
        row |= {name: value for name, value in (values or {}).items() if name.endswith("accuracy")}
        is_new = self.history.get("epoch", [])[-1:] != [epoch]
        for name, value in row.items():
            column = self.history.setdefault(name, [])
            if is_new or len(column) < len(self.history["epoch"]):
                column.append(value)


def val_loader(trainer: Trainer) -> Iterable[Any]:
    """Return the loader of the validation set.

    Raises:
        UserError: There is none.
    """
    loader: Any = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
    loader = loader[0] if isinstance(loader, (list, tuple)) and loader else loader
    if not loader:
        raise UserError("trials need validation images: give tuning.val_fraction")
    return loader  # type: ignore[no-any-return]
