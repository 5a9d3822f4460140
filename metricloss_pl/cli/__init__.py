"""The command line: `metricloss fit --config digits_cosine.yaml`, or `main` from Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metricloss_pl.cli.program import main

if TYPE_CHECKING:
    from metricloss_pl.cli.command_line import MetricLossCLI

__all__ = ["MetricLossCLI", "main"]


def __getattr__(name: str) -> Any:
    if name == "MetricLossCLI":  # at the first use, since it imports Lightning
        from metricloss_pl.cli.command_line import MetricLossCLI

        return MetricLossCLI
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
