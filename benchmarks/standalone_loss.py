"""Forward and backward of the standalone center loss against its source's form, and nearest-center prediction.

Both times include autograd's dense (C, D) gradient of the centers, which dominates with many classes.
"""

from __future__ import annotations

from typing import Any

import torch
from _measure import Step, compare, interleaved, peak_growth, quick_asked, report, report_ratio, too_large
from torch import Tensor, nn

from metricloss_pl.losses import StandaloneCenterLoss
from metricloss_pl.losses import functional as F

FLOAT_BYTES = 4
SUBJECT = "standalone center loss, forward and backward"
SEARCH = "nearest center"


def draw(num_classes: int, batch_size: int, dim: int) -> tuple[Tensor, Tensor]:
    """Draw embeddings (B, D) that require a gradient, and labels (B,)."""
    torch.manual_seed(0)
    return torch.randn(batch_size, dim, requires_grad=True), torch.randint(num_classes, (batch_size,))


def ours(num_classes: int, batch_size: int, dim: int) -> Step:
    embeddings, labels = draw(num_classes, batch_size, dim)
    criterion = StandaloneCenterLoss(num_classes, dim)

    def step() -> Tensor:
        embeddings.grad = criterion.centers.grad = None
        loss = criterion(embeddings, labels)
        loss.backward()
        return loss

    return step


def expanded_distances(x: Tensor, y: Tensor) -> Tensor:
    """Compute x^2 + y^2 - 2xy, (N, M)."""
    squares = x.square().sum(1, keepdim=True) + y.square().sum(1)
    return torch.addmm(squares, x, y.T, alpha=-2)


def source_form(num_classes: int, batch_size: int, dim: int) -> Step:
    """Compute the (B, C) distances to all centers and the (B, B) distances of pairs, masked and clamped."""
    embeddings, labels = draw(num_classes, batch_size, dim)
    centers = nn.Parameter(torch.randn(num_classes, dim))

    def step() -> Tensor:
        embeddings.grad = centers.grad = None
        own = labels[:, None] == torch.arange(num_classes)
        intra = (expanded_distances(embeddings, centers) * own).clamp(1e-12, 1e12).sum() / batch_size
        other = labels[:, None] != labels
        inter = torch.log(1 + (expanded_distances(embeddings, embeddings) * other).clamp(1e-12, 1e12)).sum()
        loss = intra - 0.1 * inter / batch_size
        loss.backward()
        return loss

    return step


def source_bytes(num_classes: int, batch_size: int, dim: int) -> int:
    """Return the peak: four (C, D) tables and four (B, C + B) matrices."""
    return FLOAT_BYTES * 4 * (num_classes * dim + batch_size * (num_classes + batch_size))


def nearest(num_centers: int, batch_size: int, dim: int) -> Step:
    torch.manual_seed(0)
    embeddings, centers = torch.randn(batch_size, dim), torch.randn(num_centers, dim)
    return lambda: F.nearest_center(embeddings, centers)


def whole_matrix(num_centers: int, batch_size: int, dim: int) -> Step:
    """Compute all (B, C) distances from differences at once, and the class of the smallest."""
    torch.manual_seed(0)
    embeddings, centers = torch.randn(batch_size, dim), torch.randn(num_centers, dim)
    exact = "donot_use_mm_for_euclid_dist"
    return lambda: torch.cdist(embeddings, centers, compute_mode=exact).argmin(1)


def against_the_source(num_classes: int, batch_size: int, dim: int, quick: bool, **facts: Any) -> None:
    """Print a line for the loss, with our time alone if the source's form does not fit into memory."""
    sizes = {"num_classes": num_classes, "batch_size": batch_size, "dim": dim}
    if reason := too_large(source_bytes(**sizes)):
        (ours_s,), turns = interleaved(ours(**sizes), quick=quick)
        alone = {"ours_median": ours_s, "unit": "s", "repetitions": turns}
        report(SUBJECT, "skipped", against="source_form", **reason, **alone, **sizes)
    else:
        compare(SUBJECT, ("ours", ours(**sizes)), ("source_form", source_form(**sizes)), quick=quick, **facts, **sizes)


def search(num_centers: int, batch_size: int, dim: int, quick: bool) -> None:
    """Print lines of time and peak memory against computing the scores of all centers at once."""
    sizes = {"num_centers": num_centers, "batch_size": batch_size, "dim": dim}
    names = "nearest_center", "whole_matrix"
    peaks = [peak_growth(prepare, *sizes.values(), small=(10, 2, 4)) for prepare in (nearest, whole_matrix)]
    if peaks[0] is not None and peaks[1] is not None:
        subject = f"{SEARCH}, peak memory beyond centers and embeddings"
        report_ratio(subject, (names[0], peaks[0]), (names[1], peaks[1]), unit="bytes", **sizes)
    compare(SEARCH, (names[0], nearest(**sizes)), (names[1], whole_matrix(**sizes)), quick=quick, **sizes)


def main() -> None:
    quick = quick_asked(__doc__)
    if quick:
        against_the_source(100, 32, 16, quick)
        search(1000, 8, 16, quick)
        return
    against_the_source(10_000, 256, 128, quick, goal=3)
    against_the_source(10_000, 256, 512, quick)
    against_the_source(100_000, 256, 128, quick)
    against_the_source(10_000, 1024, 128, quick)
    against_the_source(1000, 4096, 128, quick)
    against_the_source(100_000, 4096, 128, quick)
    search(1_000_000, 64, 128, quick)


if __name__ == "__main__":
    main()
