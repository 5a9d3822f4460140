"""Standalone center loss: no softmax at all, the nearest center is the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from metricloss_pl.backbones import Backbone
from metricloss_pl.errors import UserError, refusing
from metricloss_pl.losses import StandaloneCenterLoss
from metricloss_pl.losses import functional as F
from metricloss_pl.losses.center import CenterInit
from metricloss_pl.mixing import Mixing
from metricloss_pl.regimes._mixing import refuse_mixing
from metricloss_pl.regimes.base import Classifier, ClassWeights, Decayed, Interval, sgd

__all__ = ["StandaloneCenterClassifier"]


class StandaloneCenterClassifier(Classifier):
    """Pull to the own center, push between classes: intra_weight * intra - inter_weight * inter.

    There is no head: the class of the nearest center, by squared Euclidean distance, is the prediction. The centers are
    learned by autograd as a group of their own in the optimizer, without momentum and weight decay. In training under
    several processes the pairs of the inter term are those of all processes' embeddings.

    Args:
        num_classes: C; linked from the data on the command line.
        backbone: Network from images to features, with an attribute ``num_features``.
        class_names: Names in the labels' order; linked from the data on the command line.
        embedding_dim: D of a linear layer on the features; None: the features as they are.
        intra_weight: Weight of the pull, at least 0.
        inter_weight: Weight of the push, at least 0. With ``pairs="sum"`` its effect grows with the batch.
        intra: ``squared``: ||x - c_y||^2; ``exp``: exp(intra_scale * ||x - c_y||^2).
        intra_scale: For ``intra="exp"``.
        inter: Between embeddings: ``log1p`` (the source's code), ``log``, ``margin``, ``negative``; between centers:
            ``centers`` (log distances), ``softmax`` (a linear layer over the centers).
        margin: Squared distance from which a pair no longer pushes, for ``inter="margin"``.
        pairs: ``sum`` over different-class pairs divided by B, as in the source; or their ``mean``.
        center_init: ``normal`` or ``zeros``.
        center_lr: Learning rate of the centers.
        optimizer: From parameters to an optimizer.
        lr_scheduler: From an optimizer to a learning-rate schedule; it scales center_lr too.
        lr_scheduler_interval: Whether the schedule steps each ``epoch`` or each ``step``.
        class_weights: ``balanced``: an image's loss weighs N / (C * N_class), counts of the training part. None: 1.
        batch_mixing: Not for this regime, since an image mixed of two classes has no one center.
        weight_decay_on: What the optimizer's weight decay acts on: ``all`` parameters, or ``weights`` of convolutions
            and dense layers alone, not biases and the parameters of norms.

    Raises:
        UserError: A weight, margin or learning rate outside its range, a mixing, or options that contradict each other.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        class_names: Sequence[str] | None = None,
        embedding_dim: int | None = None,
        intra_weight: float = 1.0,
        inter_weight: float = 0.1,
        intra: F.IntraTerm = "squared",
        intra_scale: float = 1.0,
        inter: F.InterTerm = "log1p",
        margin: float = 1.0,
        pairs: F.PairReduction = "sum",
        center_init: CenterInit = "normal",
        center_lr: float = 0.1,
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Interval = "epoch",
        class_weights: ClassWeights | None = None,
        batch_mixing: Mixing | None = None,
        weight_decay_on: Decayed = "all",
    ) -> None:
        refuse_mixing(batch_mixing, type(self).__name__)
        super().__init__(
            num_classes=num_classes,
            backbone=backbone,
            class_names=class_names,
            embedding_dim=embedding_dim,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_scheduler_interval=lr_scheduler_interval,
            class_weights=class_weights,
            weight_decay_on=weight_decay_on,
        )
        weights = {"intra_weight": intra_weight, "inter_weight": inter_weight, "margin": margin, "center_lr": center_lr}
        for name, value in weights.items():
            if value < 0:
                raise UserError(f"{name} is {value}; it must be at least 0")
        self.center_lr = center_lr
        with refusing("metricloss_pl.losses", ValueError):
            self.criterion = StandaloneCenterLoss(
                num_classes,
                self.embedding_dim,
                intra_weight,
                inter_weight,
                intra,
                intra_scale,
                inter,
                margin,
                pairs,
                center_init,
                reduction="none",
            )

    def losses(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Pull and push of a batch: embeddings (B, D), labels (B,)."""
        if self.training:
            # Each process computes the whole loss; the gradients it sends back through the gathering make DDP's mean
            # over processes the gradient of that one loss.
            embeddings, labels = self.gather_rows(embeddings), self.gather_rows(labels)
        intra, inter = self.criterion.parts(embeddings, labels)
        intra = self.reduce_loss(intra, labels)
        inter = self.reduce_loss(inter, labels) if inter.ndim else inter
        loss = self.criterion.intra_weight * intra - self.criterion.inter_weight * inter
        return {"loss": loss, "intra_loss": intra, "inter_loss": inter}

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Minus squared distance (B, C) of embeddings (B, D) to each center."""
        return self.criterion.scores(embeddings)

    anchor_name = "center"

    @property
    def class_anchors(self) -> Tensor:
        """The centers (C, D)."""
        return self.criterion.centers.detach()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network, and the centers with their own learning rate, without momentum and weight decay."""
        centers = self.criterion.centers
        others = [p for p in self.parameters() if p.requires_grad and p is not centers]
        return [{"params": others}, {"params": [centers], "lr": self.center_lr, "momentum": 0, "weight_decay": 0}]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        plan = super().configure_optimizers()
        optimizer = plan["optimizer"] if isinstance(plan, dict) else plan
        assert isinstance(optimizer, Optimizer)
        centers = optimizer.param_groups[-1]
        if "betas" in centers:  # what Adam and its kin call momentum
            centers["betas"] = (0.0, *centers["betas"][1:])
        return plan
