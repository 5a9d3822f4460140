"""Comparison of scikit-learn's digits that takes a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metricloss_pl.compare.config import ComparisonConfig, Range, Tuning, Variant

CONFIGS = Path(__file__).parents[2] / "configs"
RATES = {"model.optimizer.lr": Range(0.005, 0.5, log=True)}


def small(names: tuple[str, ...] = ("softmax", "cosine"), trials: int = 2, **settings: Any) -> ComparisonConfig:
    """Return a comparison of regimes on 50 training images for one epoch."""
    usual = {
        "variants": {name: Variant(str(CONFIGS / f"digits_{name}.yaml")) for name in names},
        "name": "small",
        "sizes": [5],
        "seeds": [0],
        "epochs": 1,
        "overrides": {"data.batch_size": 25},
        "tuning": Tuning(trials=trials, val_fraction=0.4, space=RATES),
        "trivial": False,
    }
    return ComparisonConfig(**{**usual, **settings})
