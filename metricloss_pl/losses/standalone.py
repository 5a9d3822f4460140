"""Standalone center loss: centers that autograd moves, and a push between classes in place of a softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metricloss_pl.losses import functional as F
from metricloss_pl.losses._full_precision import FullPrecisionModule
from metricloss_pl.losses.center import CenterInit, initial_centers

__all__ = ["StandaloneCenterLoss"]


class StandaloneCenterLoss(FullPrecisionModule):
    """Standalone center loss: intra_weight * intra - inter_weight * inter (mo-vic/standalone-center-loss, 2019).

    The centers are an ordinary parameter. Give them to the network's optimizer as a group of their own, without
    momentum and weight decay, which would move the centers of classes that are absent from a batch:

        centers = {"params": criterion.parameters(), "momentum": 0, "weight_decay": 0}
        SGD([{"params": network.parameters()}, centers], lr=0.01, momentum=0.9)

    Args:
        num_classes: C.
        embedding_dim: D.
        intra_weight: Weight of the pull to the own center.
        inter_weight: Weight of the push between classes; inter grows with their distances and is subtracted.
        intra: `squared`: ||x - c_y||^2; `exp`: exp(intra_scale * ||x - c_y||^2).
        intra_scale: Scale of the exponent, for `intra="exp"`.
        inter: Term between the embeddings of a batch, `log1p` (the source's code), `log` (its README), `margin` or
            `negative`: see `standalone_center_loss`. Or between the centers: `centers`, their log distances; `softmax`,
            the mean log-probability of the own class by a linear classifier of the centers.
        margin: Squared distance from which a pair no longer pushes, for `inter="margin"`.
        pairs: `sum` over different-class pairs divided by B, as in the source; or their `mean`.
        center_init: `normal` (standard normal) or `zeros` (only where inter does not act on the centers).
        reduction: Reduction over the batch: `mean`, `sum` or `none`.

    Raises:
        ValueError: An unknown option, or no class or dimension.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        intra_weight: float = 1.0,
        inter_weight: float = 0.1,
        intra: F.IntraTerm = "squared",
        intra_scale: float = 1.0,
        inter: F.InterTerm = "log1p",
        margin: float = 1.0,
        pairs: F.PairReduction = "sum",
        center_init: CenterInit = "normal",
        reduction: F.Reduction = "mean",
    ) -> None:
        super().__init__()
        F.check_options(
            intra=(intra, F.IntraTerm),
            inter=(inter, F.InterTerm),
            pairs=(pairs, F.PairReduction),
            reduction=(reduction, F.Reduction),
        )
        if inter in ("centers", "softmax") and center_init == "zeros":
            raise ValueError(f"center_init 'zeros' with inter {inter!r}: coincident centers can't be pushed apart")
        self.intra_weight = intra_weight
        self.inter_weight = inter_weight
        self.intra: F.IntraTerm = intra
        self.intra_scale = intra_scale
        self.inter: F.InterTerm = inter
        self.margin = margin
        self.pairs: F.PairReduction = pairs
        self.reduction: F.Reduction = reduction
        self.centers = nn.Parameter(initial_centers(num_classes, embedding_dim, center_init))
        self.center_classifier = nn.Linear(embedding_dim, num_classes) if inter == "softmax" else None

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of embeddings (B, D) and labels (B,): a scalar, or (B,) for `reduction="none"`."""
        intra, inter = self.parts(embeddings, labels)
        return self.intra_weight * intra - self.inter_weight * inter

    def parts(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return unweighted intra and inter of embeddings (B, D) and labels (B,).

        Both are scalars, or (B,) for `reduction="none"`; an inter term over the centers is always a scalar.
        """
        if self.inter == "centers" or self.inter == "softmax":
            offsets = F.center_offsets(embeddings, labels, self.centers)
            intra = F.reduced(offsets.square().sum(1), self.reduction)
            inter = F.center_inter(self.centers) if self.inter == "centers" else self._center_log_probability()
        else:
            intra, inter = F.standalone_center_loss(
                embeddings,
                labels,
                self.centers,
                inter=self.inter,
                margin=self.margin,
                pairs=self.pairs,
                reduction=self.reduction,
            )
        if self.intra == "exp":
            intra = F.exponential_intra(embeddings, labels, self.centers, self.intra_scale, self.reduction)
        return intra, inter

    def _center_log_probability(self) -> Tensor:
        assert self.center_classifier is not None
        with torch.autocast(device_type=self.centers.device.type, enabled=False):
            logits = self.center_classifier(self.centers)
            return -F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))

    def scores(self, embeddings: Tensor) -> Tensor:
        """Return minus squared distances (B, C) of embeddings (B, D) to the centers; the largest is the prediction."""
        return -F.squared_distances(embeddings, self.centers)
