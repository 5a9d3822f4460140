"""Check of a labeled image set: broken and unused files, duplicates, small classes, likely wrong labels."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metricloss_pl.check.findings import Findings, check_images
    from metricloss_pl.check.report import write_report

__all__ = ["Findings", "check_images", "write_report"]


def __getattr__(name: str) -> Any:
    # At the first use, since the command line should answer soon.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{'report' if name == 'write_report' else 'findings'}"), name)
