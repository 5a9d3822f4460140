"""When to measure, draw and write; what is drawn stands in `metricloss_pl.plots`."""

from metricloss_pl.callbacks.averaging import ExponentialMovingAverage
from metricloss_pl.callbacks.best import BestCheckpoint
from metricloss_pl.callbacks.confusion import ConfusionMatrixPlot
from metricloss_pl.callbacks.embedding_plot import EmbeddingPlot
from metricloss_pl.callbacks.freeze import FreezeBackbone
from metricloss_pl.callbacks.geometry import GeometryMonitor
from metricloss_pl.callbacks.hierarchy import HierarchyMetrics
from metricloss_pl.callbacks.predictions import PredictionWriter

__all__ = [
    "BestCheckpoint",
    "ConfusionMatrixPlot",
    "EmbeddingPlot",
    "ExponentialMovingAverage",
    "FreezeBackbone",
    "GeometryMonitor",
    "HierarchyMetrics",
    "PredictionWriter",
]
