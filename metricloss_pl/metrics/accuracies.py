"""Accuracies of a classifier."""

from __future__ import annotations

from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from metricloss_pl.metrics.balanced import BalancedAccuracy

__all__ = ["accuracies"]


def accuracies(num_classes: int, prefix: str = "") -> MetricCollection:
    """Return `accuracy`, `balanced_accuracy` and, for more than five classes, `top5_accuracy` as one collection."""
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "balanced_accuracy": BalancedAccuracy(num_classes),
    }
    if num_classes > 5:
        metrics["top5_accuracy"] = MulticlassAccuracy(num_classes, 5, average="micro", validate_args=False)
    # The first batch would form groups, and join top-1 and top-5 for good if they agree on it.
    return MetricCollection(metrics, compute_groups=False, prefix=prefix)
