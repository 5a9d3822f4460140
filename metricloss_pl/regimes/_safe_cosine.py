"""Cosine similarity for the losses of pytorch-metric-learning, whose extra it needs."""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning.distances import CosineSimilarity
from torch import Tensor

from metricloss_pl.losses import functional as F

__all__ = ["SafeCosine"]

_LARGEST = 1 - 1e-6


class SafeCosine(CosineSimilarity):
    """Cosine similarity whose gradient, and that of its angle, is finite.

    A zero embedding has no direction and gets no gradient. The derivative of the angle is infinite at cosines of 1 and
    -1, so that the cosines are clamped 1e-6 before.
    """

    def normalize(self, embeddings: Tensor, dim: int = 1, **kwargs: Any) -> Tensor:
        """Return embeddings (B, D), or with `dim=0` class weights (D, C), scaled to norm 1 along `dim`."""
        return F.normalize(embeddings) if dim == 1 else F.normalize(embeddings.t()).t()

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        cosines: Tensor = super().compute_mat(query_emb, ref_emb)
        return cosines.clamp(-_LARGEST, _LARGEST)
