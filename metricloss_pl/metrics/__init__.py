"""Metrics that torchmetrics lacks, exact for any split over batches and processes."""

from metricloss_pl.metrics.accuracies import accuracies
from metricloss_pl.metrics.balanced import BalancedAccuracy
from metricloss_pl.metrics.chance import chance_accuracy
from metricloss_pl.metrics.geometry import EmbeddingGeometry, nearest_mean
from metricloss_pl.metrics.hierarchical import HierarchicalAccuracy, HierarchicalPrecision, MistakeSeverity
from metricloss_pl.metrics.temperature import Temperature

__all__ = [
    "BalancedAccuracy",
    "EmbeddingGeometry",
    "HierarchicalAccuracy",
    "HierarchicalPrecision",
    "MistakeSeverity",
    "Temperature",
    "accuracies",
    "chance_accuracy",
    "nearest_mean",
]
