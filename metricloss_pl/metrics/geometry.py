"""Geometry of the embeddings: spread within the classes, distances between them."""

from __future__ import annotations

import torch
from torch import Tensor

from metricloss_pl.metrics.float64 import Float64Metric

_BLOCK = 256  # classes whose distances to all the others are held at once


class EmbeddingGeometry(Float64Metric):
    """Spread of the embeddings around their class means and distances between these means.

    With mu_c the mean embedding of class c over the N images seen, `compute` returns float32 scalars:

    - `intra_variance`: 1/N sum_i ||x_i - mu_{y_i}||^2, at least 0; 0 is full collapse of each class;
    - `mean_distance`, `min_distance`: mean and least ||mu_a - mu_b|| over the pairs of different classes seen;
    - `intra_inter_ratio`: sqrt(intra_variance) / mean_distance, without unit; lower is better separated;
    - `norm`: 1/N sum_i ||x_i||.

    Undefined values are NaN: all of them without images, distances and ratio with fewer than two classes. The states
    are sums of C x D numbers in float64, so memory does not depend on N, and any split over batches and processes
    gives the same result.

    Args:
        num_classes: C.
        embedding_dim: D.
    """

    counts: Tensor
    sums: Tensor
    squared_norm: Tensor
    norm: Tensor

    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(num_classes, embedding_dim, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squared_norm", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("norm", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self._class_means: Tensor | None = None

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add embeddings (B, D) and labels (B,) int64 in [0, C)."""
        embeddings = embeddings.detach().to(self.sums.device, torch.float64)
        labels = labels.to(self.sums.device)
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        self.sums.index_add_(0, labels, embeddings)
        squared = embeddings.square().sum(1)
        self.squared_norm += squared.sum()
        self.norm += squared.sqrt().sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the five scalars by name, float32."""
        seen = self.counts > 0
        counts = self.counts[seen]
        means = self.sums[seen] / counts[:, None]
        self._class_means = torch.full_like(self.sums, torch.nan).masked_scatter_(seen[:, None], means).float()
        # sum ||x - mu||^2 = sum ||x||^2 - sum n_c ||mu_c||^2, which float64 allows for embeddings that came as float32
        images = self.counts.sum()
        scatter = (self.squared_norm - (counts * means.square().sum(1)).sum()).clamp(min=0)
        intra_variance = scatter / images
        mean_distance, min_distance = _distances(means)
        result = {
            "intra_variance": intra_variance,
            "mean_distance": mean_distance,
            "min_distance": min_distance,
            "intra_inter_ratio": intra_variance.sqrt() / mean_distance,
            "norm": self.norm / images,
        }
        return {name: value.float() for name, value in result.items()}

    @property
    def class_means(self) -> Tensor:
        """Mean embedding per class (C, D), float32, over all processes; NaN rows for classes without images.

        It calls `compute`, so under DDP every process has to ask for it.
        """
        self.compute()
        assert self._class_means is not None
        return self._class_means


def nearest_mean(embeddings: Tensor, class_means: Tensor) -> Tensor:
    """Return the class (B,) int64 whose mean is nearest in Euclidean distance.

    Args:
        embeddings: (B, D).
        class_means: (C, D), such as `EmbeddingGeometry.class_means`; classes with a NaN in their row are never chosen.
    """
    common = torch.promote_types(torch.promote_types(embeddings.dtype, class_means.dtype), torch.float32)
    exact = "donot_use_mm_for_euclid_dist"  # the form by x^2 + c^2 - 2xc is wrong near a mean
    with torch.autocast(embeddings.device.type, enabled=False):
        distances = torch.cdist(embeddings.detach().to(common), class_means.to(common), compute_mode=exact)
    return distances.masked_fill(class_means.isnan().any(1), torch.inf).argmin(1)


def _distances(means: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and least distance between any two of K means (K, D), blockwise, without a (K, K) matrix."""
    number = len(means)
    if number < 2:
        undefined = means.new_tensor(torch.nan)
        return undefined, undefined
    means = means - means.mean(0)  # distances by products lose least near the origin
    squares = means.square().sum(1)
    total = means.new_zeros(())
    least: list[Tensor] = []
    for start in range(0, number - 1, _BLOCK):
        rows, columns = means[start : start + _BLOCK], means[start:]
        squared = squares[start : start + _BLOCK, None] + squares[None, start:] - 2 * rows @ columns.T
        pairs = torch.ones_like(squared, dtype=torch.bool).triu_(1)  # each pair once, none with itself
        total += squared.clamp(min=0).sqrt().masked_fill(~pairs, 0).sum()
        nearest = squared.masked_fill(~pairs, torch.inf).argmin()
        first, second = nearest // len(columns), nearest % len(columns)
        least.append((rows[first] - columns[second]).norm())
    return total / (number * (number - 1) / 2), torch.stack(least).min()
