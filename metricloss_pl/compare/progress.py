"""What is shown while a plan is done: a bar on a terminal, and in a file a line for each run that has ended."""

from __future__ import annotations

import contextlib
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from metricloss_pl.compare.costs import Costs, seconds_of
from metricloss_pl.compare.plan import Plan
from metricloss_pl.compare.results import Line, Results
from metricloss_pl.compare.words import duration

__all__ = ["PlanProgress"]


class PlanProgress:
    """The progress over a whole plan, whoever does its runs, with the time left.

    Args:
        plan: The plan.
        results: Where those runs that have ended are found.
        costs: Of the variants and sizes of which any run is missing at first.
    """

    def __init__(self, plan: Plan, results: Results, costs: Costs) -> None:
        self._plan, self._results, self._costs = plan, results, costs
        self._titles = {run.key: run.title for run in plan.runs}
        self._begin = time.monotonic()
        self._before = set(results.read(plan.places))
        self._shown = set(self._before)
        console = Console(stderr=True)
        text = "{task.description}", "{task.fields[left]}"
        columns = TextColumn(text[0]), BarColumn(), MofNCompleteColumn(), TextColumn(text[1])
        on_terminal = sys.stdout is not None and sys.stdout.isatty()
        shown = console.is_interactive and sys.stderr.isatty()  # FORCE_COLOR makes rich take files for terminals
        self._bar = Progress(*columns, console=console, disable=not shown, redirect_stdout=on_terminal)
        self._tells = self._bar.disable or not on_terminal
        self._task = self._bar.add_task("runs", total=len(plan.runs), completed=len(self._before), left="")

    def __enter__(self) -> PlanProgress:
        print(end="", flush=True)  # a log file has the plan from now on
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def look(self) -> None:
        """Show what is done by now."""
        done = self._results.read(self._plan.places)
        left = self._left(done)
        self._bar.update(self._task, completed=len(done), left=left)
        new = [line for key, line in done.items() if key not in self._shown]
        self._shown.update(done)
        if not self._tells:
            return
        for number, line in enumerate(new, start=len(done) - len(new) + 1):
            where = ", ".join(filter(None, (f"{number} of {len(self._titles)} runs", left)))
            with contextlib.suppress(OSError):  # nobody reads it any more; the runs go on
                print(f"{self._titles[line['key']]}: {self._outcome(line)} ({where})", flush=True)

    def _left(self, done: dict[str, Line]) -> str:
        comparison = self._plan.comparison
        # A result of another variant or size may be taken out by whoever does it again, or lose its predictions.
        runs = [run for run in self._plan.runs if (run.variant, run.samples_per_class) in self._costs]
        new = [run for run in runs if run.key in done.keys() - self._before]
        now = seconds_of(comparison, new, self._costs)
        left = seconds_of(comparison, (run for run in runs if run.key not in done), self._costs)
        return f"{duration(left * (time.monotonic() - self._begin) / now)} left" if now and left else ""

    def _outcome(self, line: Line) -> str:
        """How a run has ended, in a few words."""
        if line["status"] != "ok":
            return f"{'ended early' if line['status'] == 'pruned' else line['status']}: {line['reason']}"
        name = f"{'val' if line['kind'] == 'trial' else 'test'}/{self._plan.comparison.metric}"
        value = line["metrics"].get(name)
        return f"{name} {'is not known' if value is None else f'{value:.4f}'}"
