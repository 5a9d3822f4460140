"""The command line: ``python cli.py fit --config configs/digits_cosine.yaml``, or :func:`main` from Python."""

from metricloss_pl.cli.command_line import MetricLossCLI, main

__all__ = ["MetricLossCLI", "main"]
