"""Softmax cross-entropy: the baseline that every metric loss is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metricloss_pl.backbones import Backbone
from metricloss_pl.errors import UserError, check_choice
from metricloss_pl.losses import functional as F
from metricloss_pl.mixing import Mixing
from metricloss_pl.regimes.base import Classifier, ClassWeights, Decayed, Interval, sgd

__all__ = ["SoftmaxClassifier"]

SoftmaxLoss = Literal["cross_entropy", "squared_error"]


class SoftmaxClassifier(Classifier):
    """A linear head on the embedding, trained by cross-entropy or by squared error to the one-hot.

    Args:
        num_classes: C; linked from the data on the command line.
        backbone: Network from images to features, with an attribute ``num_features``.
        class_names: Names in the labels' order; linked from the data on the command line.
        embedding_dim: D of a linear layer on the features; None: the features as they are.
        loss: ``cross_entropy``, or ``squared_error`` of the logits to the one-hot, summed over classes.
        label_smoothing: epsilon in [0, 1), for cross-entropy.
        smoothing_target: ``all``: epsilon spread over all C classes (torch); ``non_target``: over the C - 1 wrong ones
            (Barz).
        optimizer: From parameters to an optimizer.
        lr_scheduler: From an optimizer to a learning-rate schedule.
        lr_scheduler_interval: Whether the schedule steps each ``epoch`` or each ``step``.
        class_weights: ``balanced``: an image's loss weighs N / (C * N_class), counts of the training part. None: 1.
        batch_mixing: ``CutMix`` or ``MixUp`` of the training images, each process within its own batch. None: no
            mixing.
        weight_decay_on: What the optimizer's weight decay acts on: ``all`` parameters, or ``weights`` of convolutions
            and dense layers alone, not biases and the parameters of norms.

    Raises:
        UserError: label_smoothing outside [0, 1), or with squared error.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        class_names: Sequence[str] | None = None,
        embedding_dim: int | None = None,
        loss: SoftmaxLoss = "cross_entropy",
        label_smoothing: float = 0.0,
        smoothing_target: F.SmoothingTarget = "all",
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Interval = "epoch",
        class_weights: ClassWeights | None = None,
        batch_mixing: Mixing | None = None,
        weight_decay_on: Decayed = "all",
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            backbone=backbone,
            class_names=class_names,
            embedding_dim=embedding_dim,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_scheduler_interval=lr_scheduler_interval,
            class_weights=class_weights,
            batch_mixing=batch_mixing,
            weight_decay_on=weight_decay_on,
        )
        check_choice("loss", loss, SoftmaxLoss)
        check_choice("smoothing_target", smoothing_target, F.SmoothingTarget)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing is {label_smoothing}; it must be in [0, 1)")
        if loss == "squared_error" and label_smoothing:
            raise UserError(f"label_smoothing is {label_smoothing}, of no use to loss 'squared_error'; set it to 0")
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.smoothing_target: F.SmoothingTarget = smoothing_target
        self.head = nn.Linear(self.embedding_dim, num_classes)

    def losses(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy or squared error of a batch: embeddings (B, D), labels (B,)."""
        logits = self.head(embeddings)
        if self.loss == "squared_error":
            values = F.squared_error(logits, labels, reduction="none")
        else:
            values = F.cross_entropy(logits, labels, self.label_smoothing, self.smoothing_target, "none")
        return {"loss": self.reduce_loss(values, labels)}

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Logits (B, C) of embeddings (B, D)."""
        logits: Tensor = self.head(embeddings)
        return logits
