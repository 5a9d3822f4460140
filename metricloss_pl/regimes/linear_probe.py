"""Multinomial logistic regression on the features of a frozen backbone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassAccuracy

from metricloss_pl.backbones import Backbone
from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import UserError
from metricloss_pl.losses import functional as F
from metricloss_pl.metrics import BalancedAccuracy
from metricloss_pl.regimes.base import Classifier

__all__ = ["LinearProbeClassifier", "fit_logistic_regression"]

_GRID = tuple(10 ** (exponent / 2) for exponent in range(11))  # from 1 to 100,000
_TOLERANCE = 1e-6  # at scikit-learn's 1e-4, weak regularization stops short of its better minimum
_MAX_ITERATIONS = 1000


class LinearProbeClassifier(Classifier):
    """Multinomial logistic regression on the features of a frozen backbone, divided by their norm.

    The head minimizes ||W||^2 / 2 + C * the sum of the cross-entropies of all training images. It is fitted when the
    training starts, from the features that the callback `CachedFeatures` provides. The steps after it measure the
    loss, change nothing, and stop after one epoch, whatever `max_epochs` is.

    Args:
        num_classes: Number of classes C; linked from the data on the command line.
        backbone: Network from images to features (B, F).
        args: Arguments of `Classifier`. The optimizer is not used.
        C: Inverse strength of the regularization, above 0. None: that of 11 values from 1 to 100,000 with the highest
            validation accuracy, balanced if the largest class has at least twice as many training images as the
            smallest; of equally good ones that with the least cross-entropy.
        kwargs: Arguments of `Classifier`.

    Raises:
        UserError: `C` is not above 0, or `embedding_dim` is given.
    """

    def __init__(self, num_classes: int, backbone: Backbone, *args: Any, C: float | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, backbone, *args, **kwargs)
        if C is not None and not 0 < C < math.inf:
            raise UserError(f"C is {C}; it must be above 0 and finite, or null to choose it on validation images")
        if not isinstance(self.embedding, nn.Identity):
            raise UserError(f"embedding_dim is {self.embedding_dim}; LinearProbeClassifier has none: leave it out")
        self.C = C
        self.head = nn.Linear(self.embedding_dim, num_classes)

    def losses(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy of embeddings (B, D) and labels (B,), without regularization."""
        return {
            "loss": self.reduce_loss(F.cross_entropy(self.class_scores(embeddings), labels, reduction="none"), labels)
        }

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Return logits (B, C) of embeddings (B, D)."""
        logits: Tensor = self.head(F.normalize(embeddings).to(self.head.weight.dtype))
        return logits

    def metric_embeddings(self, embeddings: Tensor) -> Tensor:
        """Return embeddings (B, D) on the unit sphere, since their norm is not used."""
        return F.normalize(embeddings)

    def on_train_start(self) -> None:
        self._fit_head()

    def on_train_epoch_end(self) -> None:
        self.trainer.should_stop = True

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Leave the head as it was fitted."""
        if optimizer_closure is not None:
            optimizer_closure()  # logs the loss, and Lightning needs it

    @torch.no_grad()
    def _fit_head(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule) or "train" not in data.features:
            raise UserError("LinearProbeClassifier needs the callback CachedFeatures (trainer.callbacks)")
        values = _GRID if self.C is None else (self.C,)
        if "val" not in data.features and len(values) > 1:
            raise UserError(
                "model.C is null, and there are no validation images to choose it on: give a number, such as the one "
                "that a run with validation images has chosen"
            )
        if data.balanced_sampling or data.samples_per_class_in_batch is not None:
            raise UserError(
                "logistic regression takes each image once: leave out data.balanced_sampling and "
                "data.samples_per_class_in_batch, and set model.class_weights to balanced"
            )
        features, labels = data.features["train"], data.samples("train").labels
        views = features.shape[1]
        weights = torch.full((len(labels) * views,), 1 / views)  # all views of an image count as one
        if self.class_weights is not None:
            weights *= self.class_weights.cpu()[labels].repeat_interleave(views)
        points, of_views = F.normalize(features.flatten(0, 1)), labels.repeat_interleave(views)
        best: tuple[float, float] | None = None
        for C in values:
            weight, bias = fit_logistic_regression(points, of_views, self.num_classes, C, weights)
            score = (0.0, 0.0)
            if "val" in data.features:
                logits = F.normalize(data.features["val"][:, 0]) @ weight.T + bias
                score = _score(logits, data.samples("val").labels, balanced=data.is_imbalanced)
            if best is None or score > best:
                best, chosen = score, C
                self.head.weight.copy_(weight)
                self.head.bias.copy_(bias)
        if len(values) > 1:
            rank_zero_info(
                f"logistic regression: C = {chosen:.3g} of {len(values)} values chosen on "
                f"{len(data.samples('val'))} validation images"
            )


def _score(logits: Tensor, labels: Tensor, balanced: bool) -> tuple[float, float]:
    """Return accuracy, or balanced accuracy, and mean log-likelihood."""
    metric = BalancedAccuracy(logits.shape[1]) if balanced else MulticlassAccuracy(logits.shape[1], average="micro")
    accuracy: float = metric(logits, labels).item()
    return accuracy, -nn.functional.cross_entropy(logits.double(), labels).item()


def fit_logistic_regression(
    features: Tensor, labels: Tensor, num_classes: int, C: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return weight (num_classes, F) and bias (num_classes,) of a multinomial logistic regression.

    They minimize ||weight||^2 / 2 + C * the weighted sum of the cross-entropies.

    Args:
        features: (N, F).
        labels: (N,) int64; each class occurs.
        num_classes: Number of classes.
        C: Inverse strength of the regularization.
        weights: (N,) weights of the cross-entropies. None: 1.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # scikit-learn fits two classes by one logit z; the weights of -z / 2 and z / 2 have half of its squared norm.
    model = LogisticRegression(C=2 * C if num_classes == 2 else C, tol=_TOLERANCE, max_iter=_MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the last iterations hardly change the predictions
        model.fit(features.double().numpy(), labels.numpy(), None if weights is None else weights.numpy())
    weight, bias = (torch.from_numpy(array).to(features.dtype) for array in (model.coef_, model.intercept_))
    if num_classes == 2:
        return torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return weight, bias
