"""Metrics that torchmetrics lacks; exact under data-parallel training, for all their states are sums."""

from metricloss_pl.metrics.balanced import BalancedAccuracy
from metricloss_pl.metrics.geometry import EmbeddingGeometry, nearest_mean
from metricloss_pl.metrics.temperature import Temperature

__all__ = ["BalancedAccuracy", "EmbeddingGeometry", "Temperature", "nearest_mean"]
