"""Callbacks: those that every regime brings along, and those that measure, draw and write."""

from metricloss_pl.callbacks.averaging import ExponentialMovingAverage
from metricloss_pl.callbacks.batch_norm import BatchNormStatistics
from metricloss_pl.callbacks.best import BestCheckpoint
from metricloss_pl.callbacks.cached_features import CachedFeatures
from metricloss_pl.callbacks.calibration import TemperatureScaling
from metricloss_pl.callbacks.checks import TrainingChecks
from metricloss_pl.callbacks.confusion import ConfusionMatrixPlot
from metricloss_pl.callbacks.dataset_facts import DatasetFacts
from metricloss_pl.callbacks.embedding_plot import EmbeddingPlot
from metricloss_pl.callbacks.found_learning_rate import FoundLearningRate
from metricloss_pl.callbacks.freeze import FreezeBackbone
from metricloss_pl.callbacks.geometry import GeometryMonitor
from metricloss_pl.callbacks.hierarchy import HierarchyMetrics
from metricloss_pl.callbacks.lightning_fixes import LightningFixes
from metricloss_pl.callbacks.predictions import PredictionWriter
from metricloss_pl.callbacks.rejection import RejectionThreshold
from metricloss_pl.callbacks.schedule_length import ScheduleLength
from metricloss_pl.callbacks.seeding import PerStepSeeding

__all__ = [
    "BatchNormStatistics",
    "BestCheckpoint",
    "CachedFeatures",
    "ConfusionMatrixPlot",
    "DatasetFacts",
    "EmbeddingPlot",
    "ExponentialMovingAverage",
    "FoundLearningRate",
    "FreezeBackbone",
    "GeometryMonitor",
    "HierarchyMetrics",
    "LightningFixes",
    "PerStepSeeding",
    "PredictionWriter",
    "RejectionThreshold",
    "ScheduleLength",
    "TemperatureScaling",
    "TrainingChecks",
]
