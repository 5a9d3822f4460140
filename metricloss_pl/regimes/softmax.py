"""Softmax classifier, the baseline of the metric losses."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from metricloss_pl.backbones import Backbone
from metricloss_pl.errors import UserError, check_choice
from metricloss_pl.losses import functional as F
from metricloss_pl.regimes.base import Classifier

__all__ = ["SoftmaxClassifier"]

SoftmaxLoss = Literal["cross_entropy", "squared_error"]


class SoftmaxClassifier(Classifier):
    """Linear head on the embedding, trained by cross-entropy or by squared error to the one-hot target.

    Args:
        num_classes: Number of classes C; linked from the data on the command line.
        backbone: Network from images to features (B, F).
        args: Arguments of `Classifier`.
        loss: `cross_entropy`, or `squared_error` of the logits to the one-hot target, summed over the classes.
        label_smoothing: epsilon in [0, 1), for cross-entropy.
        smoothing_target: Classes that share epsilon: `all` C (as in torch), or the C - 1 of `non_target` (Barz &
            Denzler 2020).
        kwargs: Arguments of `Classifier`.

    Raises:
        UserError: `label_smoothing` is outside [0, 1), or given with squared error.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        *args: Any,
        loss: SoftmaxLoss = "cross_entropy",
        label_smoothing: float = 0.0,
        smoothing_target: F.SmoothingTarget = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, backbone, *args, **kwargs)
        check_choice("loss", loss, SoftmaxLoss)
        check_choice("smoothing_target", smoothing_target, F.SmoothingTarget)
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing is {label_smoothing}; it must be in [0, 1)")
        if loss == "squared_error" and label_smoothing:
            raise UserError(f"label_smoothing is {label_smoothing}; with loss 'squared_error' it must be 0")
        self.loss = loss
        self.label_smoothing = label_smoothing
        self.smoothing_target: F.SmoothingTarget = smoothing_target
        self.head = nn.Linear(self.embedding_dim, num_classes)

    def losses(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy or squared error of embeddings (B, D) and labels (B,)."""
        logits = self.head(embeddings)
        if self.loss == "squared_error":
            values = F.squared_error(logits, labels, reduction="none")
        else:
            values = F.cross_entropy(logits, labels, self.label_smoothing, self.smoothing_target, "none")
        return {"loss": self.reduce_loss(values, labels)}

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Return logits (B, C) of embeddings (B, D)."""
        logits: Tensor = self.head(embeddings)
        return logits
