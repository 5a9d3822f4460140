"""Fair comparison of classifiers on one data set: equal budgets, paired tests, one report."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metricloss_pl.compare.api import Comparison, compare
    from metricloss_pl.compare.config import ComparisonConfig, Range, Tuning, Variant
    from metricloss_pl.compare.store import Store

__all__ = ["Comparison", "ComparisonConfig", "Range", "Store", "Tuning", "Variant", "compare"]

_MODULES = {"Comparison": "api", "Store": "store", "compare": "api"}


def __getattr__(name: str) -> Any:
    # At the first use: a report needs no training, and the command line should answer soon.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'config')}"), name)
