"""The training regimes, one LightningModule each."""

from metricloss_pl.regimes.base import Classifier
from metricloss_pl.regimes.center import CenterSoftmaxClassifier
from metricloss_pl.regimes.cosine import CosineClassifier
from metricloss_pl.regimes.distillation import Distillation
from metricloss_pl.regimes.linear_probe import LinearProbeClassifier
from metricloss_pl.regimes.metric_learning import MetricLearningClassifier
from metricloss_pl.regimes.softmax import SoftmaxClassifier
from metricloss_pl.regimes.standalone import StandaloneCenterClassifier

__all__ = [
    "CenterSoftmaxClassifier",
    "Classifier",
    "CosineClassifier",
    "Distillation",
    "LinearProbeClassifier",
    "MetricLearningClassifier",
    "SoftmaxClassifier",
    "StandaloneCenterClassifier",
]
