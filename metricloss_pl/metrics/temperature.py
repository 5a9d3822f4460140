"""Temperature that turns class scores into calibrated probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from metricloss_pl.metrics.float64 import Float64Metric


class Temperature(Float64Metric):
    """Temperature T > 0 of softmax(class_scores / T) with the least negative log-likelihood (Guo et al. 2017).

    The prior of log T is normal around 0 with deviation `spread`. It keeps T finite where few images are all right or
    all wrong; with many images the likelihood decides.

    The states are the sums of -log softmax(class_scores / T)[label] at each T of a geometric grid, in float64, so
    memory does not depend on the number of images, and any split over batches and processes gives the same result. As
    a function of 1 / T this sum is convex, so the grid brackets the minimum. A parabola in log T through the grid's
    best point and its two neighbors refines it, to within about 3 % of T with 10 points per decade. A best point at an
    end of the grid is returned; of equally good points the one nearest to 1. Without images T is 1.

    Args:
        lowest: First T of the grid, above 0.
        highest: Last T of the grid, above `lowest`.
        per_decade: Points of the grid per factor of ten.
        spread: Standard deviation of the prior of log T, above 0; inf for the likelihood alone.
    """

    losses: Tensor

    def __init__(self, lowest: float = 1e-3, highest: float = 1e3, per_decade: int = 10, spread: float = 2.0) -> None:
        super().__init__()
        self.spread = spread
        steps = max(2, round(math.log10(highest / lowest) * per_decade))
        grid = torch.logspace(math.log10(lowest), math.log10(highest), steps + 1, dtype=torch.float64)
        self.temperatures: list[float] = grid.tolist()
        self.add_state("losses", torch.zeros_like(grid), dist_reduce_fx="sum")

    def update(self, class_scores: Tensor, labels: Tensor) -> None:
        """Add class scores (B, C) of any range and labels (B,) int64 in [0, C)."""
        scores = class_scores.detach().to(self.losses.device, torch.float64)
        labels = labels.to(self.losses.device)
        scores = scores - scores.amax(1, keepdim=True)  # large scores over a small T stay in range
        for index, temperature in enumerate(self.temperatures):
            self.losses[index] += F.cross_entropy(scores / temperature, labels, reduction="sum")

    def compute(self) -> Tensor:
        """Return T, a float32 scalar."""
        if not self.losses.any():
            return torch.ones_like(self.losses[0], dtype=torch.float32)
        logs = torch.tensor(self.temperatures, dtype=torch.float64, device=self.losses.device).log()
        losses = self.losses + (logs / self.spread).square() / 2
        good = losses <= losses.min() * (1 + 1e-12)
        best = int(logs.abs().masked_fill(~good, torch.inf).argmin())
        log_temperature = logs[best]
        if 0 < best < len(losses) - 1:
            before, here, after = losses[best - 1], losses[best], losses[best + 1]
            bend = before + after - 2 * here
            shift = torch.where(bend > 1e-12 * here, (before - after) / (2 * bend), 0.0).clamp(-1, 1)
            log_temperature = log_temperature + shift * (logs[best + 1] - logs[best])
        return log_temperature.exp().float()
