"""Time and memory of a plan, from a few measured steps, and what would shorten it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from metricloss_pl.cli.errors import lightning_refusals
from metricloss_pl.compare.config import FIXED_LENGTH, ComparisonConfig
from metricloss_pl.compare.plan import Run
from metricloss_pl.compare.runner import Task, build, count_epochs, make_trainer, steps_per_epoch
from metricloss_pl.compare.scoring import score
from metricloss_pl.compare.search import MEASUREMENTS
from metricloss_pl.data import ImageDataModule
from metricloss_pl.environment import peak_memory
from metricloss_pl.errors import UserError
from metricloss_pl.formatting import duration

__all__ = ["Cost", "Costs", "check_memory", "measure", "shorter", "total_seconds"]

_STEPS = 6  # measured
_WORTH = 0.95  # share of the time that a change must get below to be named


class BatchTimer(Callback):
    """Seconds of each training batch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self._begin = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.seconds.append(time.perf_counter() - self._begin)


@dataclass(frozen=True)
class Cost:
    """Cost of a final run, from a few measured steps.

    Args:
        training: Seconds of all batches.
        scoring: Seconds per scored image.
        around: Seconds of everything else, such as reading the data.
        steps: Optimizer steps.
        epochs: Epochs.
        gigabytes: Peak memory, on the accelerator if there is one.
        accelerator: Whether it is an accelerator's.
    """

    training: float = 0.0
    scoring: float = 0.0
    around: float = 0.0
    steps: int = 1
    epochs: int = 1
    gigabytes: float = 0.0
    accelerator: bool = False


Costs = Mapping[tuple[str, int | None], Cost]  # by variant and size


def measure(task: Task) -> Cost:
    """Return the cost of a final run: it trains for a few steps and tests nothing.

    A linear probe is not trained: it takes the time of a pass over the images. Trivial baselines take seconds.

    Raises:
        UserError: It can't be trained.
    """
    kind = task.variant.category
    if kind == "trivial":
        return Cost()
    begin = time.perf_counter()
    module, data, arguments = build(task, {})
    epochs, steps = count_epochs(task, data, arguments), steps_per_epoch(data, arguments)
    timer = BatchTimer()
    # Without the checks of the loss, since the learning rate of the run file may diverge, and trials choose another.
    trainer = make_trainer({**arguments, "limit_train_batches": _STEPS, "log_every_n_steps": 0}, [timer], 1)
    if kind in FIXED_LENGTH:
        data.setup("fit")
    else:
        with lightning_refusals():
            trainer.fit(module, data, weights_only=True)
    around, scoring = time.perf_counter() - begin - sum(timer.seconds), 0.0
    if isinstance(data, ImageDataModule):
        start = time.perf_counter()
        module.to(trainer.strategy.root_device)
        scored = score(trainer, module, islice(data.train_eval_dataloader(), _STEPS))
        scoring = (time.perf_counter() - start) / len(scored.labels)
    accelerator = trainer.strategy.root_device.type == "cuda"
    batch = float(np.median(timer.seconds[1:] or timer.seconds or [0.0]))
    return Cost(
        training=epochs * steps * int(arguments.get("accumulate_grad_batches", 1)) * batch,
        scoring=scoring,
        around=max(0.0, around),
        steps=epochs * steps,
        epochs=epochs,
        gigabytes=(torch.cuda.max_memory_reserved() if accelerator else peak_memory()) / 1e9,
        accelerator=accelerator,
    )


def total_seconds(
    config: ComparisonConfig,
    runs: Iterable[Run],
    costs: Costs,
    subsets: Sequence[Mapping[str, Any]],
    n_parallel: int,
    share: float = 1.0,
) -> float:
    """Return about how many seconds runs take; cores that are not there shorten nothing.

    Args:
        config: Comparison.
        runs: Runs whose variants and sizes have a cost.
        costs: Cost of a final run of each variant and size.
        subsets: Numbers of images, as plan.json has them.
        n_parallel: Runs at a time.
        share: Share of their steps.
    """
    counts = {(one["kind"], one["size"]): one for one in subsets}
    total, features = 0.0, dict[str, float]()
    for run in runs:
        cost, count = costs[run.variant, run.size], counts[run.kind, run.size]
        if config.variants[run.variant].category == "linear_probe":  # features are computed once
            images = counts["final", run.size]
            once = (2 * images["train"] + images["test"]) * cost.scoring
            features[run.variant] = max(once, features.get(run.variant, 0.0))
            total += cost.around
            continue
        part, scored = share, count["test"] + count["train"]
        if run.kind == "trial":
            scored = count["val"] * MEASUREMENTS
            if config.steps is None:
                part *= count["train"] / max(1, counts["final", run.size]["train"])
                part *= 1 if config.tuning.epochs is None else config.tuning.epochs / cost.epochs
        total += cost.around + part * cost.training + scored * cost.scoring
    total += sum(features.values())
    on_accelerator = any(cost.accelerator for cost in costs.values())
    return total / (n_parallel if on_accelerator else min(n_parallel, os.cpu_count() or 1))


def check_memory(costs: Costs, n_parallel: int) -> None:
    """Refuse a plan that needs more memory than there is.

    Raises:
        UserError: It does.
    """
    most = max(costs.values(), key=lambda cost: cost.gigabytes)
    if most.accelerator:
        sharing = math.ceil(n_parallel / torch.cuda.device_count())
        room, where = torch.cuda.get_device_properties(0).total_memory / 1e9, "GPU memory"
    else:
        sharing, room, where = n_parallel, _free_gigabytes(), "memory"
    if sharing * most.gigabytes > room:
        raise UserError(
            f"{sharing} runs at a time need about {sharing * most.gigabytes:.1f} GB of {where}, and there are "
            f"{room:.1f}: lower n_parallel or data.batch_size"
        )


def _free_gigabytes() -> float:
    try:
        rows = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf  # not known here
    sizes = {name: float(value.split()[0]) for name, _, value in (row.partition(":") for row in rows)}
    return sizes.get("MemAvailable", math.inf) / 1e6


def shorter(config: ComparisonConfig, runs: Sequence[Run], seconds: Callable[..., float]) -> list[str]:
    """Return a line for each flag that would shorten a plan, the shortest first, and one for all of them.

    Args:
        config: Comparison.
        runs: Runs that are to be done.
        seconds: Function from runs, and a share of their steps, to their time.
    """
    now = seconds(runs, 1.0)
    found = []
    for flag, keeps, share in _ways(config):
        kept = [run for run in runs if keeps(run)]
        if (time_left := seconds(kept, share)) < _WORTH * now:
            found.append((time_left, flag, keeps, share))
    found.sort(key=lambda way: way[0])
    lines = [f"about {duration(time_left)} with {flag}" for time_left, flag, _, _ in found]
    if len(found) > 1:
        kept = [run for run in runs if all(keeps(run) for _, _, keeps, _ in found)]
        lines.append(f"about {duration(seconds(kept, math.prod(way[3] for way in found)))} with all of these")
    return lines


def _ways(config: ComparisonConfig) -> list[tuple[str, Callable[[Run], bool], float]]:
    """Return flags, each with the runs that it leaves and the share of their steps."""
    ways: list[tuple[str, Callable[[Run], bool], float]] = []
    kinds = {name: variant.category for name, variant in config.variants.items()}

    def include(names: list[str]) -> None:
        kept = [name for name, kind in kinds.items() if name in names and kind != "trivial"]
        flag = f'--include "[{",".join(kept)}]"'
        ways.append((flag, lambda run: run.variant in kept or kinds[run.variant] == "trivial", 1.0))

    if "fine_tuned" in kinds.values():
        include([name for name, kind in kinds.items() if kind != "fine_tuned"])
    others = [name for name, kind in kinds.items() if kind == "regime" and name != config.baseline]
    if len(others) > 1:
        include([str(config.baseline), others[0], *(name for name, kind in kinds.items() if kind == "linear_probe")])
    if trials := config.tuning.trials // 2:
        ways.append((f"--tuning.trials {trials}", lambda run: run.trial is None or run.trial < trials, 1.0))
    if len(config.seeds) > 2:
        seeds = config.seeds[: math.ceil(len(config.seeds) / 2)]
        text = ",".join(map(str, seeds))
        ways.append((f'--seeds "[{text}]"', lambda run: run.kind == "trial" or run.seed in seeds, 1.0))
    if len(config.sizes) > 1:
        text = ",".join(map(str, config.sizes[:-1]))
        ways.append((f'--sizes "[{text}]"', lambda run: run.size in config.sizes[:-1], 1.0))
    if config.steps is not None and config.steps > 1:
        ways.append((f"--steps {config.steps // 2}", lambda run: True, 0.5))
    elif config.epochs is not None and config.epochs > 1:
        ways.append((f"--epochs {config.epochs // 2}", lambda run: True, 0.5))
    return ways
