"""Many runs, and one honest report on them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metricloss_pl.compare.plan import Comparison, Range, Tuning, Variant
    from metricloss_pl.compare.run import run_comparison

__all__ = ["Comparison", "Range", "Tuning", "Variant", "run_comparison"]


def __getattr__(name: str) -> Any:
    # At the first use: the report needs no training, and the command line, which writes it, none of what runs one.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "run" if name == "run_comparison" else "plan"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
