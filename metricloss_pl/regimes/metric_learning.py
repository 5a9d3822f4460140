"""ArcFace, CosFace and their kin: the classification losses of pytorch-metric-learning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metricloss_pl.backbones import Backbone
from metricloss_pl.errors import UserError, check_choice
from metricloss_pl.losses import functional as F
from metricloss_pl.losses._full_precision import FullPrecisionModule
from metricloss_pl.regimes.base import Classifier

__all__ = ["MetricLearningClassifier"]

MetricLearningLoss = Literal[
    "ArcFaceLoss",
    "CosFaceLoss",
    "LargeMarginSoftmaxLoss",
    "NormalizedSoftmaxLoss",
    "SoftTripleLoss",
    "SphereFaceLoss",
    "SubCenterArcFaceLoss",
]
# Descriptions of valid values, and their checks.
_INTEGER, _POSITIVE = "an integer of at least 1", "above 0 and finite"
_DEGREES, _COSINE = "degrees in [0, 180)", "a cosine in [0, 1]"
_VALID: dict[str, Callable[[float], bool]] = {
    _INTEGER: lambda value: isinstance(value, int) and value >= 1,
    _POSITIVE: lambda value: 0 < value < math.inf,
    _DEGREES: lambda value: 0 <= value < 180,
    _COSINE: lambda value: 0 <= value <= 1,
}
_SETTINGS = {
    "ArcFaceLoss": {"margin": _DEGREES, "scale": _POSITIVE},
    "CosFaceLoss": {"margin": _COSINE, "scale": _POSITIVE},
    "LargeMarginSoftmaxLoss": {"margin": _INTEGER, "scale": _POSITIVE},
    "NormalizedSoftmaxLoss": {"temperature": _POSITIVE},
    "SoftTripleLoss": {"centers_per_class": _INTEGER, "la": _POSITIVE, "gamma": _POSITIVE, "margin": _COSINE},
    "SphereFaceLoss": {"margin": _INTEGER, "scale": _POSITIVE},
    "SubCenterArcFaceLoss": {"margin": _DEGREES, "scale": _POSITIVE, "sub_centers": _INTEGER},
}
_NORM_SENSITIVE = ("LargeMarginSoftmaxLoss", "SphereFaceLoss")


class ProxyCriterion(FullPrecisionModule):
    """Loss of pytorch-metric-learning with its class weights, in float32 or better.

    Args:
        loss: Name of the class there.
        num_classes: Number of classes C.
        embedding_dim: Width D of the embeddings.
        settings: Other arguments of that class.

    Raises:
        UserError: pytorch-metric-learning is not installed.
    """

    def __init__(self, loss: str, num_classes: int, embedding_dim: int, settings: Mapping[str, float]) -> None:
        super().__init__()
        try:
            from pytorch_metric_learning import losses, reducers

            from metricloss_pl.regimes._safe_cosine import SafeCosine
        except ImportError as error:
            raise UserError(
                f"loss {loss} needs the extra pytorch-metric-learning, which is not installed: "
                'pip install "metricloss_pl[pytorch-metric-learning]"'
            ) from error
        self.loss: nn.Module = getattr(losses, loss)(
            num_classes=num_classes,
            embedding_size=embedding_dim,
            distance=SafeCosine(),
            reducer=reducers.DoNothingReducer(),
            **settings,
        )

    @property
    def weight(self) -> Tensor:
        """Class weights (D, C), or (D, C * K) with K per class."""
        [weight] = self.loss.parameters()
        return weight

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each image (B,) of embeddings (B, D) and labels (B,)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            values: Tensor = self.loss(self._lift(embeddings), labels)["loss"]["losses"]
        return values

    def scores(self, embeddings: Tensor) -> Tensor:
        """Return logits (B, C) of embeddings (B, D), without margin."""
        with torch.autocast(embeddings.device.type, enabled=False):
            logits: Tensor = self.loss.get_logits(self._lift(embeddings))  # type: ignore[operator]
        return logits

    def _lift(self, embeddings: Tensor) -> Tensor:
        # Given half precision, the losses would cast their own weights to it, for good.
        return embeddings.to(self.weight.dtype)


class MetricLearningClassifier(Classifier):
    """Classifier with a loss of pytorch-metric-learning, such as ArcFace: cross-entropy of cosines with a margin.

    The logits are scale * cos(theta_j), with theta_j the angle between the embedding and class weight j. The logit of
    the true class is scale * cos(theta_y + margin) for ArcFace (Deng et al. 2019) and scale * (cos(theta_y) - margin)
    for CosFace (Wang et al. 2018). LargeMarginSoftmax and SphereFace multiply theta_y by their margin instead, and
    their logits grow with the norm of the embedding. SoftTriple and SubCenterArcFace have several weights per class.
    The prediction is the largest logit without margin. The class weights are learned by the network's optimizer and
    stay float32 in half precision. Needs the extra `pytorch-metric-learning`.

    These losses are means over the images, so that processes average exactly. `ProxyAnchorLoss`, which couples the
    images of a batch, and `ProxyNCALoss`, which leaves some out, are not supported.

    Args:
        num_classes: Number of classes C; linked from the data on the command line.
        backbone: Network from images to features (B, F).
        args: Arguments of `Classifier`.
        loss: Name of the class in `pytorch_metric_learning.losses`.
        loss_args: Settings of the loss, such as `{margin: 28.6, scale: 64}`. `margin` is in degrees for ArcFace and
            SubCenterArcFace, a cosine for CosFace and SoftTriple, and a factor of the angle for LargeMarginSoftmax and
            SphereFace. All but SoftTriple have a `scale`. SubCenterArcFace has `sub_centers`, NormalizedSoftmax
            `temperature`, SoftTriple `centers_per_class`, `la` and `gamma`. None: the defaults of the class.
        kwargs: Arguments of `Classifier`.

    Raises:
        UserError: pytorch-metric-learning is not installed, or the loss, a setting or its value is unknown.
    """

    anchor_name = "class weight"

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        *args: Any,
        loss: MetricLearningLoss = "ArcFaceLoss",
        loss_args: dict[str, int | float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, backbone, *args, **kwargs)
        check_choice("loss", loss, MetricLearningLoss)
        settings = loss_args or {}
        _check_settings(loss, settings)
        self.loss = loss
        self.criterion = ProxyCriterion(loss, num_classes, self.embedding_dim, settings)

    def losses(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss of embeddings (B, D) and labels (B,)."""
        return {"loss": self.reduce_loss(self.criterion(embeddings, labels), labels)}

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Return logits (B, C) of embeddings (B, D), without margin."""
        return self.criterion.scores(embeddings)

    def metric_embeddings(self, embeddings: Tensor) -> Tensor:
        """Return embeddings (B, D), on the unit sphere for the losses that ignore their norm."""
        return embeddings if self.loss in _NORM_SENSITIVE else F.normalize(embeddings)

    @property
    def class_anchors(self) -> Tensor | None:
        """Class weights (C, D) among the `metric_embeddings`; None if a class has several."""
        weight = self.criterion.weight.detach()
        return self.metric_embeddings(weight.t()) if weight.shape[1] == self.num_classes else None


def _check_settings(loss: str, settings: Mapping[str, float]) -> None:
    known = _SETTINGS[loss]
    for name, value in settings.items():
        if name not in known:
            raise UserError(f"loss_args: {loss} has no setting {name!r}; it has {', '.join(known)}")
        if not (isinstance(value, int | float) and _VALID[known[name]](value)):
            raise UserError(f"loss_args: {name} of {loss} is {value}; it must be {known[name]}")
