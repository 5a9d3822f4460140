"""Cosine loss as a module that holds its class embeddings."""

from __future__ import annotations

from torch import Tensor

from metricloss_pl.losses import functional as F
from metricloss_pl.losses._full_precision import FullPrecisionModule

__all__ = ["CosineLoss"]


class CosineLoss(FullPrecisionModule):
    """Cosine loss 1 - <phi(y), psi(x)> (Barz & Denzler, WACV 2020), in [0, 2].

    Args:
        class_embeddings: phi, (C, D), rows of norm 1, kept as a buffer that never becomes half precision; None means
            one-hot, then D is C.
        reduction: Over the batch: ``mean``, ``sum`` or ``none``.
    """

    class_embeddings: Tensor | None

    def __init__(self, class_embeddings: Tensor | None = None, reduction: F.Reduction = "mean") -> None:
        super().__init__()
        F.check_options(reduction=(reduction, F.Reduction))
        self.reduction: F.Reduction = reduction
        self.register_buffer("class_embeddings", class_embeddings)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Embeddings (B, D) and labels (B,) to a scalar, or (B,) for ``reduction="none"``."""
        return F.cosine_loss(embeddings, labels, self.class_embeddings, self.reduction)

    def similarities(self, embeddings: Tensor) -> Tensor:
        """Cosines (B, C) of embeddings (B, D) to the class embeddings; the largest is the prediction."""
        return F.cosine_similarities(embeddings, self.class_embeddings)
