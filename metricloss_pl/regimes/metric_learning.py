"""ArcFace, CosFace and their kin: the classification losses of pytorch-metric-learning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metricloss_pl.backbones import Backbone
from metricloss_pl.errors import UserError, check_choice
from metricloss_pl.losses import functional as F
from metricloss_pl.losses._full_precision import FullPrecisionModule
from metricloss_pl.mixing import Mixing
from metricloss_pl.regimes.base import Classifier, ClassWeights, Decayed, Interval, sgd

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
# What a setting must be, in words, and whether it is.
_INTEGER, _POSITIVE = "an integer of at least 1", "above 0 and finite"
_DEGREES, _COSINE = "degrees in [0, 180)", "a cosine in [0, 1]"
_SOUND: dict[str, Callable[[float], bool]] = {
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
_SEEING_NORMS = ("LargeMarginSoftmaxLoss", "SphereFaceLoss")


class ProxyCriterion(FullPrecisionModule):
    """A classification loss of pytorch-metric-learning with its class weights, in float32 or better.

    Args:
        loss: Its class there.
        num_classes: C.
        embedding_dim: D.
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
        """The class weights (D, C), or (D, C * K) with K for each class."""
        [weight] = self.loss.parameters()
        return weight

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings (B, D) and labels (B,) to the loss of each image (B,)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            values: Tensor = self.loss(self._lift(embeddings), labels)["loss"]["losses"]
        return values

    def scores(self, embeddings: Tensor) -> Tensor:
        """Logits (B, C) of embeddings (B, D), without margin."""
        with torch.autocast(embeddings.device.type, enabled=False):
            logits: Tensor = self.loss.get_logits(self._lift(embeddings))  # type: ignore[operator]
        return logits

    def _lift(self, embeddings: Tensor) -> Tensor:
        # Given half precision, the losses would cast their own weights to it, for good.
        return embeddings.to(self.weight.dtype)


class MetricLearningClassifier(Classifier):
    """A classification loss of pytorch-metric-learning, such as ArcFace: cross-entropy of cosines with a margin.

    The logits are scale * cos(theta_j), theta_j the angle between the embedding and class weight j. That of the own
    class is scale * cos(theta_y + margin) for ArcFace (Deng et al. 2019) and scale * (cos(theta_y) - margin) for
    CosFace (Wang et al. 2018). LargeMarginSoftmax and SphereFace multiply theta_y by their margin instead, and their
    logits grow with the embedding's norm; SoftTriple and SubCenterArcFace have several weights a class. The prediction
    is the largest logit without margin. The class weights are learned by the network's optimizer and stay float32 in
    half precision. Needs the extra ``pytorch-metric-learning``.

    These losses are means over the images, so that processes average exactly. ``ProxyAnchorLoss``, which couples the
    images of a batch, and ``ProxyNCALoss``, which leaves some out, are not among them.

    Args:
        num_classes: C; linked from the data on the command line.
        backbone: Network from images to features, with an attribute ``num_features``.
        class_names: Names in the labels' order; linked from the data on the command line.
        embedding_dim: D of a linear layer on the features; None: the features as they are.
        loss: Name of its class in ``pytorch_metric_learning.losses``.
        loss_args: Settings of the loss, as ``{margin: 28.6, scale: 64}``; None: its own defaults. ``margin`` is in
            degrees for ArcFace and SubCenterArcFace, a cosine for CosFace and SoftTriple, and a factor of the angle for
            LargeMarginSoftmax and SphereFace. ``scale`` is of all these but SoftTriple. Further ``sub_centers`` of
            SubCenterArcFace, ``temperature`` of NormalizedSoftmax, ``centers_per_class``, ``la``, ``gamma`` of
            SoftTriple.
        optimizer: From parameters to an optimizer.
        lr_scheduler: From an optimizer to a learning-rate schedule.
        lr_scheduler_interval: Whether the schedule steps each ``epoch`` or each ``step``.
        class_weights: ``balanced``: an image's loss weighs N / (C * N_class), counts of the training part. None: 1.
        batch_mixing: ``CutMix`` or ``MixUp`` of the training images, each process within its own batch. None: no
            mixing.
        weight_decay_on: What the optimizer's weight decay acts on: ``all`` parameters, or ``weights`` of convolutions
            and dense layers alone, not biases, the parameters of norms and the class weights of the loss.

    Raises:
        UserError: pytorch-metric-learning is missing, the loss is none of these, or it has no such setting or value.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        class_names: Sequence[str] | None = None,
        embedding_dim: int | None = None,
        loss: MetricLearningLoss = "ArcFaceLoss",
        loss_args: dict[str, int | float] | None = None,
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
        check_choice("loss", loss, MetricLearningLoss)
        settings = loss_args or {}
        _check_settings(loss, settings)
        self.loss = loss
        self.criterion = ProxyCriterion(loss, num_classes, self.embedding_dim, settings)

    def losses(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss of a batch: embeddings (B, D), labels (B,)."""
        return {"loss": self.reduce_loss(self.criterion(embeddings, labels), labels)}

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Logits (B, C) of embeddings (B, D), without margin."""
        return self.criterion.scores(embeddings)

    def metric_embeddings(self, embeddings: Tensor) -> Tensor:
        """Directions (B, D): embeddings on the unit sphere; as they are for the losses that see their norm."""
        return embeddings if self.loss in _SEEING_NORMS else F.normalize(embeddings)

    anchor_name = "class weight"

    @property
    def class_anchors(self) -> Tensor | None:
        """The class weights (C, D), as :meth:`metric_embeddings`; None where a class has several."""
        weight = self.criterion.weight.detach()
        return self.metric_embeddings(weight.t()) if weight.shape[1] == self.num_classes else None


def _check_settings(loss: str, settings: Mapping[str, float]) -> None:
    known = _SETTINGS[loss]
    for name, value in settings.items():
        if name not in known:
            raise UserError(f"loss_args: {loss} has no setting {name!r}; it has {', '.join(known)}")
        if not (isinstance(value, int | float) and _SOUND[known[name]](value)):
            raise UserError(f"loss_args: {name} of {loss} is {value}; it must be {known[name]}")
