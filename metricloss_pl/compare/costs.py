"""What a plan takes, what would shorten it, and whether there is time and room for it."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metricloss_pl.compare.plan import Comparison, Plan, Run
from metricloss_pl.compare.words import duration
from metricloss_pl.errors import UserError

__all__ = ["Cost", "Costs", "check_cost", "seconds_of", "shorter", "threads_of", "time_of"]


@dataclass(frozen=True)
class Cost:
    """What a final run of a variant takes, from a few measured steps.

    Args:
        training: Seconds of all its batches.
        around: Seconds of all else: reading the data, measuring accuracies.
        steps: Of the optimizer, in the whole run.
        epochs: Of the whole run.
        val_fraction: Share of the training images on which a trial of the variant is validated.
        gigabytes: Most memory taken so far, on the accelerator where there is one, else of the process.
        accelerator: Whether it is the accelerator's.
    """

    training: float
    around: float
    steps: int
    epochs: int
    val_fraction: float
    gigabytes: float
    accelerator: bool


Costs = Mapping[tuple[str, int | None], Cost]  # by variant and size

_WORTH = 0.95  # share of the time that a flag must get below, to be named


def threads_of(jobs: int) -> int:
    """Threads of each of so many runs side by side."""
    return max(1, (os.cpu_count() or 1) // jobs)


def seconds_of(comparison: Comparison, runs: Iterable[Run], costs: Costs, share: float = 1.0) -> float:
    """About how long these runs take, one after the other.

    Args:
        comparison: What they are of.
        runs: The runs.
        costs: Of their variants and sizes.
        share: Of their batches that they take.
    """
    tuning, total = comparison.tuning, 0.0
    for run in runs:
        cost, part = costs[run.variant, run.samples_per_class], share
        if run.kind == "trial" and comparison.steps is None:  # else it takes as many steps as a final run
            part = share if tuning.epochs is None else tuning.epochs / cost.epochs
            part *= 1 - cost.val_fraction
        total += cost.around + part * cost.training
    return total


def time_of(comparison: Comparison, runs: Iterable[Run], costs: Costs, jobs: int, share: float = 1.0) -> float:
    """About how many seconds these runs take with so many side by side; cores that are not there shorten nothing."""
    at_once = jobs if any(cost.accelerator for cost in costs.values()) else min(jobs, os.cpu_count() or 1)
    return seconds_of(comparison, runs, costs, share) / at_once


def check_cost(
    comparison: Comparison,
    missing: Sequence[Run],
    costs: Costs,
    jobs: int,
    max_hours: float | None,
    ways: Sequence[str],
) -> None:
    """Refuse what takes too long or too much memory.

    Args:
        comparison: What is compared.
        missing: Its runs that are to be done.
        costs: Of their variants and sizes.
        jobs: Runs side by side.
        max_hours: Time in which all must be done.
        ways: As :func:`shorter` gives them.

    Raises:
        UserError: It takes longer than ``max_hours``, or more memory than there is.
    """
    seconds = time_of(comparison, missing, costs, jobs)
    if max_hours is not None and seconds > 3600 * max_hours:
        raise UserError(
            f"max_hours is {max_hours:g}, and what is left of the plan takes about {duration(seconds)}"
            f"{', but ' if ways else ''}{', '.join(ways)}"
        )
    most = max(costs.values(), key=lambda cost: cost.gigabytes)
    if most.accelerator:
        sharing = math.ceil(jobs / torch.cuda.device_count())
        room, where = torch.cuda.get_device_properties(0).total_memory / 1e9, "GPU memory"
    else:
        sharing, room, where = jobs, _free_gigabytes(), "memory"
    if sharing * most.gigabytes > room:
        raise UserError(
            f"{sharing} runs side by side need about {sharing * most.gigabytes:.1f} GB of {where}, and there are "
            f"{room:.1f}: lower jobs or data.batch_size"
        )


def _free_gigabytes() -> float:
    try:
        rows = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf  # not known here
    sizes = {name: float(value.split()[0]) for name, _, value in (row.partition(":") for row in rows)}
    return sizes.get("MemAvailable", math.inf) / 1e6


def shorter(
    plan: Plan, done: Collection[str], costs: Costs, jobs: int, settings: Mapping[str, Any], data: str
) -> list[str]:
    """Times that flags bring what is left of a plan down to, the shortest first, and at last with all these flags.

    Args:
        plan: The plan.
        done: Keys of the runs that are done.
        costs: Of the variants and sizes of which any run is missing.
        jobs: Runs side by side.
        settings: As for :meth:`Plan.of`.
        data: As for :meth:`Plan.of`.
    """
    comparison = plan.comparison

    def left(changes: Mapping[str, Any]) -> float:
        """Infinite where a run would have to be done anew whose cost is not known."""
        shortened = replace(comparison, **changes)
        half = "steps" in changes or "epochs" in changes  # then every run is another one
        missing = [run for run in Plan.of(shortened, settings, data).runs if half or run.key not in done]
        if any((run.variant, run.samples_per_class) not in costs for run in missing):
            return math.inf
        return time_of(shortened, missing, costs, jobs, 0.5 if half else 1.0)

    now = time_of(comparison, [run for run in plan.runs if run.key not in done], costs, jobs)
    found = [(left(changes), flag, changes) for flag, changes in _ways(comparison, costs)]
    useful = sorted((way for way in found if way[0] < _WORTH * now), key=lambda way: way[0])
    texts = [f"about {duration(seconds)} with {flag}" for seconds, flag, _ in useful]
    if len(useful) > 1:
        together = left({name: value for _, _, changes in useful for name, value in changes.items()})
        texts.append(f"about {duration(together)} with all of these")
    return texts


def _ways(comparison: Comparison, costs: Costs) -> list[tuple[str, dict[str, Any]]]:
    """Flags, and the fields of the comparison that they change."""
    ways: list[tuple[str, dict[str, Any]]] = []
    baseline = comparison.baseline or ""
    if len(comparison.variants) > 2:
        pair = [baseline, next(name for name in comparison.variants if name != baseline)]
        variants = {name: variant for name, variant in comparison.variants.items() if name in pair}
        ways.append((f'--only "[{",".join(pair)}]"', {"variants": variants}))
    if (trials := comparison.tuning.trials // 2) > 0:
        ways.append((f"--tuning.trials {trials}", {"tuning": replace(comparison.tuning, trials=trials)}))
    if len(comparison.seeds) > 2:
        seeds = comparison.seeds[: math.ceil(len(comparison.seeds) / 2)]
        ways.append((f'--seeds "[{",".join(map(str, seeds))}]"', {"seeds": seeds}))
    if len(comparison.samples_per_class) > 1:
        steps = {at[1]: cost.steps for at, cost in costs.items()}
        longest = max(reversed(comparison.samples_per_class), key=lambda size: steps.get(size, 0))
        sizes = [size for size in comparison.samples_per_class if size != longest]
        text = ",".join("null" if size is None else str(size) for size in sizes)
        ways.append((f'--samples_per_class "[{text}]"', {"samples_per_class": sizes}))
    epochs = {cost.epochs for cost in costs.values()}
    if comparison.steps is not None and comparison.steps > 1:
        ways.append((f"--steps {comparison.steps // 2}", {"steps": comparison.steps // 2}))
    elif len(epochs) == 1 and (half := epochs.pop() // 2) > 0:
        ways.append((f"--epochs {half}", {"epochs": half}))
    return ways
