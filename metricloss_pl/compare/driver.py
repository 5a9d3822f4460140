"""Process that plans the runs of a comparison, hands them out, and alone writes their results."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from metricloss_pl.cli.console import print_table, relative_path
from metricloss_pl.cli.saved_config import FEW_POINTS
from metricloss_pl.compare.budget import Cost, check_memory, measure, shorter, total_seconds
from metricloss_pl.compare.config import ComparisonConfig, KeepCheckpoints, Range
from metricloss_pl.compare.dataset import DatasetSummary, check_subsets, naming, summarize
from metricloss_pl.compare.executor import Executor, InProcess, LocalPool, RayCluster
from metricloss_pl.compare.plan import Run, expand
from metricloss_pl.compare.runner import Outcome, Task, execute
from metricloss_pl.compare.search import best_run
from metricloss_pl.compare.store import FORMAT, Result, Store
from metricloss_pl.environment import collect_environment
from metricloss_pl.errors import UserError, plural, shell_command
from metricloss_pl.formatting import duration

__all__ = ["Driver"]

_LONG = 300.0  # seconds from which a plan comes with what would shorten it


class Driver:
    """Process that plans the runs, hands them out, and alone writes their results."""

    def __init__(
        self, config: ComparisonConfig, store: Store, n_parallel: int, cluster: str | None, keep: KeepCheckpoints
    ) -> None:
        self.config, self.store, self.cluster, self.keep = config, store, cluster, keep
        self.n_parallel = n_parallel
        self.attempts = store.folder / ".attempts"

    def prepare(self, retry_failed: bool) -> None:
        """Check all that can be checked before the first run, and measure a few steps of each kind of run."""
        config = self.config
        if self.n_parallel > 1 and self.cluster is None:
            _check_factories(config)
        self.summary: DatasetSummary = summarize(config)
        self.runs = expand(config, self.summary.decisive, self.summary.digest)
        planned = {run.key: run.metadata for run in self.runs}
        self.results = self.store.results(planned)
        try:
            earlier = self.store.plan()
        except UserError:  # none, or of another version: it will be replaced
            earlier = {"runs": {}, "environment": {}}
        self.others = len(earlier["runs"].keys() - planned.keys())
        if retry_failed:
            for run in filter(self._has_failed, self.runs):
                trials = [key for key in run.needs if self.results.get(key, {}).get("status") == "failed"]
                for key in (run.key, *(trials if len(trials) == len(run.needs) else ())):
                    self.results.pop(key, None)
        self.missing = [run for run in self.runs if run.key not in self.results]
        self.known: dict[str, Any] = {}  # facts about the same images in the earlier plan.json
        if self.missing or earlier["runs"].keys() != planned.keys():
            self.summary = check_subsets(config, self.runs, self.summary)
        else:
            self.known = {name: earlier[name] for name in ("data", "warnings")}
            self.summary = replace(self.summary, subsets=earlier["data"]["subsets"], warnings=earlier["warnings"])
        self.n_parallel = max(1, min(self.n_parallel, len(self.missing)))
        before = torch.get_num_threads()
        cores = 1 if self.cluster else max(1, (os.cpu_count() or 1) // self.n_parallel)
        known = earlier["environment"].get("threads") if self.results else None  # others round differently
        self.threads = int(known or min(cores, before))
        torch.set_num_threads(self.threads)
        self.costs: dict[tuple[str, int | None], Cost] = {}
        try:
            wanted = {(run.variant, run.size) for run in self.missing}
            for run in self.runs:
                at = run.variant, run.size
                if run.kind == "final" and at in wanted and at not in self.costs:
                    with naming(config, run.variant):
                        self.costs[at] = measure(self._task(run))
        finally:
            torch.set_num_threads(before)
        if self.costs and self.cluster is None:
            check_memory(self.costs, self.n_parallel)

    def _has_failed(self, run: Run) -> bool:
        return run.kind == "final" and self.results.get(run.key, {}).get("status") == "failed"

    def seconds(self, runs: Iterable[Run], share: float = 1.0) -> float:
        """Return about how long runs take."""
        return total_seconds(self.config, runs, self.costs, self.summary.subsets, self.n_parallel, share)

    def announce(self) -> None:
        """Print the plan."""
        config, summary, tuning = self.config, self.summary, self.config.tuning
        finals = sum(run.kind == "final" for run in self.runs)
        validated = _ends(one["val"] for one in summary.subsets if one["kind"] == "trial")
        steps = _ends(cost.steps for cost in self.costs.values() if cost.training)
        fixed: dict[str, list[int]] = {}
        for found in summary.fixed.values():
            for name, value in found.items():
                fixed.setdefault(name.removeprefix("data."), []).append(value)
        beside = f" with {self.n_parallel} runs at a time" if self.n_parallel > 1 else ""
        rows = [
            ("data", f"{summary.name}: {plural(summary.n_images, 'image')} of {len(summary.class_names)} classes, "
             f"{summary.n_tested} of them tested" + (f" in {config.folds} folds" if config.folds else "")),
            ("variants", f"{', '.join(config.variants)} (baseline {config.baseline})"),
            ("sizes", ", ".join("all images" if size is None else f"{size} per class" for size in config.sizes)),
            ("final runs", f"{finals}, tested once each"),
            ("trials", f"{len(self.runs) - finals}: {tuning.trials} for each variant"
             f"{', fold' if config.folds else ''} and size, on {validated} validation images" if tuning.trials
             else "none: values as given"),
            ("few", ", ".join(_few(summary))),
            ("resolved", ", ".join(f"{name} {_ends(values)}" for name, values in fixed.items())),
            ("training", f"{steps} steps per run" if steps else ""),
            ("done", f"{len(self.results)} of {len(self.runs)} runs"),
        ]  # fmt: skip
        if self.missing:
            rows.append(("time left", f"about {duration(self.seconds(self.missing))}{beside}"))
            if self.seconds(self.missing) > _LONG:
                ways = shorter(config, self.missing, self.seconds)
                rows += [("" if number else "shorter", line) for number, line in enumerate(ways)]
            rows.append(("memory", f"about {max(cost.gigabytes for cost in self.costs.values()):.1f} GB per run"))
        rows.append(("folder", relative_path(self.store.folder)))
        print_table([row for row in rows if row[1]])
        for warning in summary.warnings:
            print(f"warning: {warning}")
        if self.others:
            print(f"note: {plural(self.others, 'run')} of the plan before stay in the folder, and are not reported")

    def describe(self, command: str | None) -> dict[str, Any]:
        """Return the content of plan.json."""
        config, summary = self.config, self.summary
        found = collect_environment()
        environment = {**found["versions"], **found["hardware"], "git": found["git"], "threads": self.threads}
        variants = {
            name: {
                "kind": variant.category,
                "config": None if variant.config is None else str(variant.config),
                "settings": config.resolved_overrides(name),
                "space": {n: _described(v) for n, v in config.space(name).items()} if config.trials(name) else {},
            }
            for name, variant in config.variants.items()
        }
        names = ("trials", "val_fraction", "pruner", "n_startup_trials", "epochs")
        return {
            "format": FORMAT,
            "name": config.name or self.store.folder.name,
            "command": command,
            "baseline": config.baseline,
            "metric": config.metric,
            "variants": variants,
            "sizes": config.sizes,
            "seeds": config.seeds,
            "splits": len({run.split for run in self.runs}),
            "folds": config.folds,
            "steps": config.steps,
            "tuning": {name: getattr(config.tuning, name) for name in names},
            "data": {
                name: getattr(summary, name)
                for name in ("name", "root", "class_names", "n_images", "image_size", "subsets")
            },
            "warnings": summary.warnings,
            "environment": {name: str(value) for name, value in environment.items() if value is not None},
            "runs": {run.key: run.metadata for run in self.runs},
            **self.known,
        }

    def _task(self, run: Run, is_kept: bool = False) -> Task:
        first = next(one for one in self.runs if one.kind == "final")
        place = ("final", first.seed, first.split, first.fold, self.config.sizes[-1])
        is_first = (run.kind, run.seed, run.split, run.fold, run.size) == place
        is_kept |= run.kind == "final" and (self.keep == "all" or (self.keep == "best" and is_first))
        return Task(
            run,
            self.config,
            fixed=self.summary.fixed.get((run.variant, run.size), {}),
            before=tuple(self.results[key] for key in run.needs if key in self.results),
            folder=self.attempts / f"{run.key}-{uuid4().hex[:8]}" if is_kept else None,
            features_dir=self.store.folder.absolute() / "features",
            embeddings=is_first,
            by_position=self.summary.by_position,
            threads=self.threads,
        )

    def run(self) -> None:
        """Do the missing runs, each as soon as those that it needs are done, and print a line for each."""
        _remove(self.attempts)  # left by a process that was killed
        waiting = list(self.missing)
        if not waiting:
            return
        begin, left = time.monotonic(), {run.key: self.seconds([run]) for run in waiting}
        total = sum(left.values())
        executor: Executor = InProcess()
        if self.cluster is not None:
            executor = RayCluster(self.cluster, None if self.n_parallel == 1 else self.n_parallel, self.threads)
        elif self.n_parallel > 1:
            executor = LocalPool(self.n_parallel)
        print(end="", flush=True)  # a log file has the plan from now on
        with contextlib.closing(executor):
            while left:
                for run in [run for run in waiting if all(key in self.results for key in run.needs)][: executor.free]:
                    executor.submit(self._task(run))
                    waiting.remove(run)
                task, outcome = executor.wait()
                self._store(task, outcome)
                del left[task.run.key]
                rest = sum(left.values())
                elapsed = (time.monotonic() - begin) / (total - rest) if total > rest else 0.0
                ends = f", {duration(elapsed * rest)} left" if rest and elapsed else ""
                with contextlib.suppress(OSError):  # nobody reads it; the runs continue
                    progress = f"{len(self.results)} of {len(self.runs)} runs{ends}"
                    print(f"{task.run.label}: {self._in_words(outcome.result)} ({progress})", flush=True)
        _remove(self.attempts)

    def _in_words(self, result: Result) -> str:
        if result["status"] != "ok":
            return f"{result['status']}: {result['reason']}"
        name = f"{'val' if result['kind'] == 'trial' else 'test'}/{self.config.metric}"
        return f"{name} {result['metrics'][name]:.4f}"

    def _store(self, task: Task, outcome: Outcome) -> None:
        result, run = outcome.result, task.run
        if task.folder is not None and task.folder.is_dir() and result["status"] == "ok":
            name = re.sub(r"[^\w.-]+", "_", f"{run.variant}-{run.size or 'all'}-{run.seed}") + f"-{run.key[:6]}"
            target = self.store.folder / "trained" / name
            _remove(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(task.folder, target)
            result["folder"] = f"trained/{name}"
            result["checkpoint"] = f"trained/{name}/{result['checkpoint']}"
        self.store.write_result(result, outcome.predictions)
        self.results |= self.store.results({run.key: run.metadata})

    def conclude(self) -> None:
        """Keep the checkpoint of the best run, and print how it is used, and what has failed."""
        plan = self.store.plan()
        self.results = self.store.results(plan["runs"])  # in the order of the plan
        best = best_run(plan, self.results)
        if best is not None and self.keep == "best" and not self.results[best]["folder"]:
            run = next(run for run in self.runs if run.key == best)
            print(f"{run.label}: trained again, since its checkpoint was not kept", flush=True)
            task = replace(self._task(run, is_kept=True), fixed=self.results[best]["settings"])
            if (outcome := execute(task)).result["status"] == "ok":
                self._store(task, outcome)
            else:  # the result stays
                print(f"{run.label}: no checkpoint: {outcome.result['reason']}")
            _remove(self.attempts)
        for key, result in self.results.items():
            if self.keep != "all" and result["folder"] and (self.keep == "none" or key != best):
                self.store.write_result(result | {"folder": None, "checkpoint": None})
                _remove(self.store.folder / result["folder"])
        failed = [run for run in self.runs if self._has_failed(run)]
        for run in failed:
            print(f"failed: {run.label}: {self.results[run.key]['reason']}")
        if failed:
            print("note: the same command with --retry_failed true repeats failed runs")
        if self.keep != "none" and best is not None and (name := self.results[best]["checkpoint"]):
            checkpoint = relative_path(self.store.folder / name)
            variant = self.results[best]["variant"]
            why = "best on the validation images" if self.config.tuning.trials else "the baseline"
            rows = [("variant", f"{variant}, {why}"), ("checkpoint", checkpoint)]
            if self.config.variants[self.results[best]["variant"]].config is not None:
                new = ("--ckpt_path", checkpoint, "--data.predict_dir", "FOLDER")
                rows.append(("predict", shell_command("predict", *new)))
            print_table(rows)


def _few(summary: DatasetSummary) -> Iterator[str]:
    """Yield what one image is worth, where this is much."""
    validated = [one["val"] for one in summary.subsets if one["kind"] == "trial"]
    for name, counts in (("test", [summary.n_tested]), ("validation", validated)):
        if counts and 0 < min(counts) * FEW_POINTS < 100:
            yield f"one {name} image is {100 / min(counts):.0f} percentage points"


def _check_factories(config: ComparisonConfig) -> None:
    for name, variant in config.variants.items():
        try:
            pickle.dumps(variant.factory)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise UserError(
                f"variant {name}: its factory can't be passed to another process: define it at the top level of a "
                "module, or set n_parallel to 1"
            ) from error


def _described(values: Range) -> dict[str, Any]:
    return {"choices": values.choices} if values.choices else {k: getattr(values, k) for k in ("low", "high", "log")}


def _ends(values: Iterable[int]) -> str:
    """Return the least and the largest value: "5" or "5 to 7"."""
    known = sorted(values)
    return " to ".join(map(str, dict.fromkeys(known[:1] + known[-1:])))


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
