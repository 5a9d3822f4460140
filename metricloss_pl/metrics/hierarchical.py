"""Distance of predictions and retrieved images from the truth in a class hierarchy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

__all__ = ["HierarchicalAccuracy", "HierarchicalPrecision", "MistakeSeverity"]

_BLOCK = 2**24  # distances held at once


class HierarchicalAccuracy(Metric):
    """Mean similarity 1 - height(LCA) / height(root) of prediction and truth, in [0, 1].

    LCA is their lowest common ancestor (Barz & Denzler 2019). A right prediction counts 1. NaN without images.

    Args:
        lca_heights: (C, C) integers, 0 on the diagonal, of `Hierarchy.lca_heights`.
        height: Height of the root, at least 1.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    lca_heights: Tensor
    total: Tensor
    images: Tensor

    def __init__(self, lca_heights: Tensor, height: int) -> None:
        super().__init__()
        self.register_buffer("lca_heights", lca_heights, persistent=False)
        self.height = height
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add predictions and labels, each (B,) int64 in [0, C)."""
        self.total += self.lca_heights[predictions, labels].sum()
        self.images += len(labels)

    def compute(self) -> Tensor:
        """Return the scalar, float32."""
        most = self.images * self.height
        return _ratio(most - self.total, most)


class MistakeSeverity(Metric):
    """Mean height of the lowest common ancestor of prediction and truth over the mistakes, in levels, at least 1.

    After Bertinetto et al. 2020, "Making Better Mistakes". NaN without mistakes.

    Args:
        lca_heights: (C, C) integers, 0 only on the diagonal.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    lca_heights: Tensor
    total: Tensor
    mistakes: Tensor

    def __init__(self, lca_heights: Tensor) -> None:
        super().__init__()
        self.register_buffer("lca_heights", lca_heights, persistent=False)
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("mistakes", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add predictions and labels, each (B,) int64 in [0, C)."""
        self.total += self.lca_heights[predictions, labels].sum()
        self.mistakes += (predictions != labels).sum()

    def compute(self) -> Tensor:
        """Return the scalar, float32."""
        return _ratio(self.total, self.mistakes)


class HierarchicalPrecision(Metric):
    """Hierarchical precision of retrieval: every image is a query, and all other images are searched.

    With s = 1 - height(LCA) / height(root) and x_1, x_2, ... the other images by rising Euclidean distance,

        HP@k = sum_{i<=k} s(query, x_i) / the largest sum that any k of the others have        (Deng et al. 2011),

    averaged over the queries, and AHP@K = 1/K (the area under HP@k from k = 1 to K, by trapezoids), averaged to mAHP@K
    as in Barz & Denzler (2019) and their program: perfect order reaches (K - 1) / K, 0.996 for K = 250. Queries without
    any similar image are left out. The largest sum of a class of fewer than k images goes on to the most similar
    classes, so that small classes can reach the same HP@k and mAHP@K as large ones.

    The embeddings are kept until `compute`, which needs N^2 D steps for N images and is exact for any split over
    processes; each process must have called `update`, even if without an image. Images at equal distance come in any
    order.

    Args:
        lca_heights: (C, C) integers, 0 on the diagonal.
        height: Height of the root, at least 1.
        ks: The k of HP@k, each at least 1.
        area: K of AHP@K, at least 1; reduced to the number of other images where that is less.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    lca_heights: Tensor
    embeddings: list[Tensor]
    labels: list[Tensor]

    def __init__(self, lca_heights: Tensor, height: int, ks: Sequence[int] = (1, 10, 50, 100), area: int = 250) -> None:
        super().__init__()
        self.register_buffer("lca_heights", lca_heights, persistent=False)
        self.height = height
        self.ks = tuple(ks)
        self.area = area
        self.add_state("embeddings", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add embeddings (B, D) and labels (B,) int64 in [0, C)."""
        self.embeddings.append(embeddings.detach().float())
        self.labels.append(labels)

    def compute(self) -> dict[str, Tensor]:
        """Return `hp_<k>` and `mahp_<K>`, float32 scalars; NaN where there are fewer than k other images."""
        points, labels, heights = dim_zero_cat(self.embeddings), dim_zero_cat(self.labels), self.lca_heights
        if points.device.type == "mps":  # has no float64
            points, labels, heights = points.cpu(), labels.cpu(), heights.cpu()
        length = min(max(*self.ks, self.area), len(points) - 1)
        total, queries = torch.zeros(max(length, 0), dtype=torch.float64, device=points.device), 0
        if length > 0:
            best = self._best(labels, heights, length)
            points = points.double() - points.double().mean(0)
            squares = points.square().sum(1)
            for rows in torch.arange(len(points), device=points.device).split(max(1, _BLOCK // len(points))):
                rows = rows[best[labels[rows], 0] > 0]
                distances = squares - 2 * points[rows] @ points.T  # and the query's own square, alike for all
                distances.scatter_(1, rows[:, None], torch.inf)
                nearest = distances.topk(length, largest=False).indices
                gains = self.height - heights[labels[rows, None], labels[nearest]].double()
                total += (gains.cumsum(1) / best[labels[rows]]).sum(0)
                queries += len(rows)
        curve = total / queries if queries else torch.full_like(total, torch.nan)
        nan = curve.new_tensor(torch.nan)
        result = {f"hp_{k}": curve[k - 1] if k <= length else nan for k in self.ks}
        upto = curve[: self.area]
        ends = (upto[0] + upto[-1]) / 2 if length > 0 else nan
        result[f"mahp_{self.area}"] = upto.mean() - ends / max(len(upto), 1)
        return {name: value.float().to(self.device) for name, value in result.items()}

    def _best(self, labels: Tensor, heights: Tensor, length: int) -> Tensor:
        """Return sums (C, length) of the largest gains height(root) - height(LCA) for a query of each class."""
        counts = torch.bincount(labels, minlength=len(heights))
        rising = torch.arange(self.height + 1, device=labels.device)
        best = torch.zeros(len(heights), length, dtype=torch.float64, device=labels.device)
        for label in labels.unique().tolist():
            others = torch.zeros_like(rising).index_add_(0, heights[label].long(), counts)
            others[0] -= 1  # the query itself
            best[label] = (self.height - rising).repeat_interleave(others)[:length].cumsum(0)
        return best


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    """Return the quotient of two whole numbers, float32, rounded once; NaN for 0 / 0."""
    value = int(total) / int(count) if count else torch.nan
    return torch.tensor(value, dtype=torch.float32, device=total.device)
