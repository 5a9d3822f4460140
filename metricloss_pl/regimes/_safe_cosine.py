"""The cosine in the losses of pytorch-metric-learning. Importing this needs the extra."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor

from metricloss_pl.losses import functional as F

__all__ = ["SafeCosine"]

_LARGEST = 1 - 1e-6


class SafeCosine(CosineSimilarity):
    """Cosine whose gradients, and those of its angle, stay finite.

    A zero embedding has no direction and passes no gradient. At cosines of 1 and -1 the angle's derivative is infinite,
    so they end 1e-6 before.
    """

    def normalize(self, embeddings: Tensor, dim: int = 1, **kwargs: Any) -> Tensor:
        """Embeddings (B, D), or with ``dim=0`` class weights (D, C), scaled to norm 1 along ``dim``."""
        return F.normalize(embeddings) if dim == 1 else F.normalize(embeddings.t()).t()

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        cosines: Tensor = super().compute_mat(query_emb, ref_emb)
        return cosines.clamp(-_LARGEST, _LARGEST)
