"""Standalone center loss: no softmax, the nearest center is the prediction."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from metricloss_pl.backbones import Backbone
from metricloss_pl.errors import UserError, refusing
from metricloss_pl.losses import StandaloneCenterLoss
from metricloss_pl.losses import functional as F
from metricloss_pl.losses.center import CenterInit
from metricloss_pl.regimes.base import Classifier

__all__ = ["StandaloneCenterClassifier"]


class StandaloneCenterClassifier(Classifier):
    """Nearest-center classifier: intra_weight * intra - inter_weight * inter (mo-vic/standalone-center-loss, 2019).

    The intra term pulls embeddings to the center of their class, the inter term pushes classes apart. There is no head:
    the class of the nearest center, by squared Euclidean distance, is the prediction. The centers are learned by
    autograd, in a parameter group without momentum and weight decay. In training under several processes, the pairs of
    the inter term are those of the embeddings of all processes.

    Args:
        num_classes: Number of classes C; linked from the data on the command line.
        backbone: Network from images to features (B, F).
        args: Arguments of `Classifier`.
        intra_weight: Weight of the intra term, at least 0.
        inter_weight: Weight of the inter term, at least 0. With `pairs="sum"` its effect grows with the batch.
        intra: `squared`, ||x - c_y||^2, or `exp`, exp(intra_scale * ||x - c_y||^2).
        intra_scale: Scale in the exponent of `intra="exp"`.
        inter: Between embeddings: `log1p` (the source's code), `log`, `margin` or `negative`. Between centers:
            `centers` (log distances) or `softmax` (a linear layer over the centers).
        margin: Squared distance beyond which a pair is not pushed, for `inter="margin"`.
        pairs: Reduction over pairs of different classes: `sum` divided by B, as in the source, or `mean`.
        center_init: `normal` or `zeros`.
        center_lr: Learning rate of the centers, at least 0. The schedule scales it, too.
        kwargs: Arguments of `Classifier`.

    Raises:
        UserError: A weight, margin or learning rate is out of its range, or options contradict each other.
    """

    mixes_classes = False
    anchor_name = "center"

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        *args: Any,
        intra_weight: float = 1.0,
        inter_weight: float = 0.1,
        intra: F.IntraTerm = "squared",
        intra_scale: float = 1.0,
        inter: F.InterTerm = "log1p",
        margin: float = 1.0,
        pairs: F.PairReduction = "sum",
        center_init: CenterInit = "normal",
        center_lr: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, backbone, *args, **kwargs)
        weights = {"intra_weight": intra_weight, "inter_weight": inter_weight, "margin": margin, "center_lr": center_lr}
        for name, value in weights.items():
            if not 0 <= value < math.inf:
                raise UserError(f"{name} is {value}; it must be at least 0 and finite")
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
        """Return the total, intra and inter loss of embeddings (B, D) and labels (B,)."""
        if self.training:
            # Each process computes the whole loss. The gradients that flow back through the gathering make DDP's mean
            # over processes the gradient of that one loss.
            embeddings, labels = self.gather_rows(embeddings), self.gather_rows(labels)
        intra, inter = self.criterion.parts(embeddings, labels)
        intra = self.reduce_loss(intra, labels)
        inter = self.reduce_loss(inter, labels) if inter.ndim else inter
        loss = self.criterion.intra_weight * intra - self.criterion.inter_weight * inter
        return {"loss": loss, "intra_loss": intra, "inter_loss": inter}

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Return minus the squared distance (B, C) of embeddings (B, D) to each center."""
        return self.criterion.scores(embeddings)

    @property
    def class_anchors(self) -> Tensor:
        """Centers (C, D)."""
        return self.criterion.centers.detach()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the network, and the centers with their own learning rate, without momentum and weight decay."""
        centers = self.criterion.centers
        others = [p for p in self.parameters() if p.requires_grad and p is not centers]
        return [{"params": others}, {"params": [centers], "lr": self.center_lr, "momentum": 0, "weight_decay": 0}]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = super().configure_optimizers()
        optimizer = config["optimizer"] if isinstance(config, dict) else config
        assert isinstance(optimizer, Optimizer)
        for group in optimizer.param_groups:
            if "betas" in group and any(p is self.criterion.centers for p in group["params"]):  # Adam's momentum
                group["betas"] = (0.0, *group["betas"][1:])
        return config
