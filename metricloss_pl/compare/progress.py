"""Progress of a comparison: a bar on a terminal, and elsewhere a line per finished run."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from metricloss_pl.compare.budget import duration
from metricloss_pl.compare.config import Metric
from metricloss_pl.compare.plan import Run
from metricloss_pl.compare.store import Result

__all__ = ["PlanProgress"]


class PlanProgress:
    """Progress over a whole plan, with the time left.

    Args:
        runs: All runs.
        missing: Runs that are not done yet.
        results: Results by key, to which others are added.
        seconds: Function from runs to the time that they are expected to take.
        metric: Metric that is shown.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        missing: Sequence[Run],
        results: Mapping[str, Result],
        seconds: Callable[[Sequence[Run]], float],
        metric: Metric,
    ) -> None:
        self._results, self._metric, self._count = results, metric, len(runs)
        self._begin = time.monotonic()
        self._left = {run.key: seconds([run]) for run in missing}
        self._total = sum(self._left.values())
        console = Console(stderr=True)
        shown = console.is_interactive and sys.stderr.isatty()  # FORCE_COLOR makes rich take files for terminals
        columns = TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}")
        self._bar = Progress(*columns, console=console, disable=not shown)
        self._task = self._bar.add_task("runs", total=len(runs), completed=len(results), left="")

    def __enter__(self) -> PlanProgress:
        print(end="", flush=True)  # a log file has the plan from now on
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, run: Run) -> None:
        """Show that a run has ended."""
        self._left.pop(run.key, None)
        left, elapsed = sum(self._left.values()), time.monotonic() - self._begin
        known = self._total - left
        text = f"{duration(elapsed * left / known)} left" if left and known else ""
        self._bar.update(self._task, completed=len(self._results), left=text)
        if self._bar.disable:
            where = ", ".join(filter(None, (f"{len(self._results)} of {self._count} runs", text)))
            with contextlib.suppress(OSError):  # nobody reads it; the runs continue
                print(f"{run.label}: {self._outcome(self._results[run.key])} ({where})", flush=True)

    def _outcome(self, result: Result) -> str:
        if result["status"] != "ok":
            return f"{result['status']}: {result['reason']}"
        name = f"{'val' if result['kind'] == 'trial' else 'test'}/{self._metric}"
        return f"{name} {result['metrics'][name] or 0:.4f}"
