"""PyTorch Lightning modules for classification with metric losses. Names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metricloss_pl.losses import CenterLoss, CosineCrossEntropyLoss, CosineLoss, StandaloneCenterLoss
    from metricloss_pl.regimes import (
        CenterSoftmaxClassifier,
        Classifier,
        CosineClassifier,
        LinearProbeClassifier,
        MetricLearningClassifier,
        SoftmaxClassifier,
        StandaloneCenterClassifier,
    )
    from metricloss_pl.regimes.loading import load
    from metricloss_pl.regimes.prediction import predict_files
    from metricloss_pl.regimes.similar import find_similar

__version__ = "0.1.0.dev0"

__all__ = [
    "CenterLoss",
    "CenterSoftmaxClassifier",
    "Classifier",
    "CosineClassifier",
    "CosineCrossEntropyLoss",
    "CosineLoss",
    "LinearProbeClassifier",
    "MetricLearningClassifier",
    "SoftmaxClassifier",
    "StandaloneCenterClassifier",
    "StandaloneCenterLoss",
    "find_similar",
    "load",
    "predict_files",
]
_FUNCTIONS = {"find_similar": "regimes.similar", "load": "regimes.loading", "predict_files": "regimes.prediction"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _FUNCTIONS.get(name, "losses" if name.endswith("Loss") else "regimes")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
