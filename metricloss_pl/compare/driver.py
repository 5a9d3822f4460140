"""Process that plans the runs of a comparison, hands them out, and alone writes their results."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from metricloss_pl.cli.console import print_table, relative_path
from metricloss_pl.compare.budget import Costs, check_memory, duration, measure, shorter, total_seconds
from metricloss_pl.compare.config import ComparisonConfig, KeepCheckpoints
from metricloss_pl.compare.dataset import DatasetSummary, check_subsets, for_each, summarize, task_of
from metricloss_pl.compare.executor import Executor, InProcess, LocalPool, RayCluster
from metricloss_pl.compare.plan import Run, expand
from metricloss_pl.compare.progress import PlanProgress
from metricloss_pl.compare.runner import Outcome, Task, execute
from metricloss_pl.compare.search import best_run
from metricloss_pl.compare.store import FORMAT, Result, Store
from metricloss_pl.environment import collect_environment
from metricloss_pl.errors import UserError, plural, shell_command

__all__ = ["Driver"]

_LONG = 300.0  # seconds from which a plan comes with what would shorten it


class Driver:
    """Process that plans the runs, hands them out, and alone writes their results."""

    def __init__(
        self, config: ComparisonConfig, store: Store, n_parallel: int, cluster: str | None, keep: KeepCheckpoints
    ) -> None:
        self.config, self.store, self.cluster, self.keep = config, store, cluster, keep
        self.attempts = store.folder / ".attempts"
        self.n_parallel = n_parallel
        self.costs: Costs = {}
        self.known: dict[str, Any] = {}  # facts in an earlier plan.json

    def prepare(self, retry_failed: bool) -> None:
        """Check all that can be checked before the first run, and measure a few steps of each kind of run."""
        config = self.config
        if self.n_parallel > 1 and self.cluster is None:
            for name, variant in config.variants.items():
                try:
                    pickle.dumps(variant.factory)
                except (AttributeError, TypeError, pickle.PicklingError) as error:
                    raise UserError(
                        f"variant {name}: its factory can't be passed to another process: define it at the top level "
                        "of a module, or set n_parallel to 1"
                    ) from error
        self.summary: DatasetSummary = summarize(config)
        self.runs = expand(config, self.summary.decisive, self.summary.digest)
        planned = {run.key: run.metadata for run in self.runs}
        self.results = self.store.results(planned)
        try:
            earlier = self.store.plan()
        except UserError:  # none, or of another version: it will be replaced
            earlier = {}
        self.others = len(set(earlier.get("runs", ())) - set(planned))
        if retry_failed:
            for run in self.runs:
                if self._has_failed(run):
                    trials = [key for key in run.needs if self.results.get(key, {}).get("status") == "failed"]
                    for key in (run.key, *(trials if len(trials) == len(run.needs) else ())):
                        self.results.pop(key, None)
        self.missing = [run for run in self.runs if run.key not in self.results]
        if self.missing or set(earlier.get("runs", ())) != set(planned):
            self.summary = check_subsets(config, self.runs, self.summary)
        else:  # of the same images
            self.known = {name: earlier[name] for name in ("data", "warnings")}
            self.summary = replace(self.summary, subsets=earlier["data"]["subsets"], warnings=earlier["warnings"])
        self.n_parallel = max(1, min(self.n_parallel, len(self.missing)))
        known = earlier.get("environment", {}).get("threads")  # another number of threads rounds differently
        cores = 1 if self.cluster else max(1, (os.cpu_count() or 1) // self.n_parallel)
        self.threads = int(known) if self.results and known else min(cores, torch.get_num_threads())
        wanted = {(run.variant, run.size) for run in self.missing}
        finals: dict[tuple[str, int | None], Run] = {}
        for run in self.runs:
            if run.kind == "final" and (run.variant, run.size) in wanted:
                finals.setdefault((run.variant, run.size), run)
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            found = for_each(
                config.variants,
                lambda name: {at: measure(self._task(run)) for at, run in finals.items() if at[0] == name},
            )
        finally:
            torch.set_num_threads(before)
        self.costs = {at: cost for costs in found.values() for at, cost in costs.items()}
        if self.costs and self.cluster is None:
            check_memory(self.costs, self.n_parallel)

    def _has_failed(self, run: Run) -> bool:
        return run.kind == "final" and self.results.get(run.key, {}).get("status") == "failed"

    def seconds(self, runs: Iterable[Run], share: float = 1.0) -> float:
        """Return about how long runs take."""
        return total_seconds(self.config, runs, self.costs, self.summary.subsets, self.n_parallel, share)

    def announce(self) -> None:
        """Print the plan."""
        config, summary = self.config, self.summary
        finals = sum(run.kind == "final" for run in self.runs)
        trials = len(self.runs) - finals
        sizes = ", ".join("all images" if size is None else f"{size} per class" for size in config.sizes)
        rows = [
            ("data", f"{summary.name}: {plural(summary.n_images, 'image')} of {len(summary.class_names)} classes, "
             f"{summary.n_tested} of them tested" + (f" in {config.folds} folds" if config.folds else "")),
            ("variants", f"{', '.join(config.variants)} (baseline {config.baseline})"),
            ("sizes", sizes),
            ("final runs", f"{finals}, tested once each"),
        ]  # fmt: skip
        counts = sorted({one["val"] for one in summary.subsets if one["kind"] == "trial"})
        on = " to ".join(map(str, dict.fromkeys(counts[:1] + counts[-1:])))
        each = f"{config.tuning.trials} for each variant, size{', fold' if config.folds else ''}"
        rows.append(("trials", f"{trials}: {each}, on {on} validation images" if trials else "none: values as given"))
        if fixed := [f"{name.removeprefix('data.')} {value}" for name, value in self._fixed()]:
            rows.append(("resolved", ", ".join(fixed)))
        if steps := sorted({cost.steps for cost in self.costs.values() if cost.training}):
            rows.append(("training", f"{' to '.join(map(str, dict.fromkeys(steps[:1] + steps[-1:])))} steps per run"))
        rows.append(("done", f"{len(self.results)} of {len(self.runs)} runs"))
        if self.missing:
            beside = f" with {self.n_parallel} runs at a time" if self.n_parallel > 1 else ""
            rows.append(("time left", f"about {duration(self.seconds(self.missing))}{beside}"))
            if self.seconds(self.missing) > _LONG:
                ways = shorter(config, self.missing, self.seconds)
                rows += [("" if number else "shorter", line) for number, line in enumerate(ways)]
            rows.append(("memory", f"about {max(cost.gigabytes for cost in self.costs.values()):.1f} GB per run"))
        rows.append(("folder", relative_path(self.store.folder)))
        print_table(rows)
        for warning in summary.warnings:
            print(f"warning: {warning}")
        if self.others:
            print(f"note: {plural(self.others, 'run')} of the plan before stay in the folder, and are not reported")

    def _fixed(self) -> list[tuple[str, str]]:
        """Return names and values of settings that were `auto`, the smallest and the largest of each."""
        values: dict[str, set[int]] = {}
        for found in self.summary.fixed.values():
            for name, value in found.items():
                values.setdefault(name, set()).add(value)
        return [(name, " to ".join(map(str, dict.fromkeys((min(of), max(of)))))) for name, of in values.items()]

    def describe(self, command: str | None) -> dict[str, Any]:
        """Return the content of plan.json."""
        config, summary = self.config, self.summary
        found = collect_environment()
        environment = {**found["versions"], **found["hardware"], "git": found["git"], "threads": self.threads}
        variants = {}
        for name, variant in config.variants.items():
            space = {setting: _described(asdict(values)) for setting, values in config.space(name).items()}
            file = None if variant.config is None else str(variant.config)
            variants[name] = {
                "kind": variant.category,
                "config": file,
                "settings": config.resolved_overrides(name),
                "space": space if config.trials(name) else {},
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
                "name": summary.name,
                "root": summary.root,
                "class_names": summary.class_names,
                "n_images": summary.n_images,
                "image_size": summary.image_size,
                "subsets": summary.subsets,
            },
            "warnings": summary.warnings,
            "environment": {name: str(value) for name, value in environment.items() if value is not None},
            "runs": {run.key: run.metadata for run in self.runs},
            **self.known,
        }

    def _task(self, run: Run, folder: Path | None = None) -> Task:
        first = next(one for one in self.runs if one.kind == "final")
        place = (first.seed, first.split, first.fold, self.config.sizes[-1])
        is_first = run.kind == "final" and (run.seed, run.split, run.fold, run.size) == place
        if run.kind == "final" and (self.keep == "all" or (self.keep == "best" and is_first)):
            folder = self.attempts / f"{run.key}-{uuid4().hex[:8]}"
        return replace(
            task_of(self.config, run, self.summary.fixed.get((run.variant, run.size))),
            before=tuple(self.results[key] for key in run.needs if key in self.results),
            folder=folder,
            features_dir=self.store.folder.absolute() / "features",
            embeddings=is_first,
            by_position=self.summary.by_position,
            threads=self.threads,
        )

    def _executor(self) -> Executor:
        if self.cluster is not None:
            return RayCluster(self.cluster, None if self.n_parallel == 1 else self.n_parallel, self.threads)
        return InProcess() if self.n_parallel == 1 else LocalPool(self.n_parallel)

    def run(self) -> None:
        """Do the missing runs, each as soon as those that it needs are done."""
        shutil.rmtree(self.attempts, ignore_errors=True)  # left by a process that was killed
        waiting = list(self.missing)
        if not waiting:
            return
        executor = self._executor()
        running = 0
        with (
            contextlib.closing(executor),
            PlanProgress(self.runs, self.missing, self.results, self.seconds, self.config.metric) as progress,
        ):
            while waiting or running:
                for run in [run for run in waiting if all(key in self.results for key in run.needs)][: executor.free]:
                    executor.submit(self._task(run))
                    waiting.remove(run)
                    running += 1
                task, outcome = executor.wait()
                running -= 1
                self._store(task, outcome)
                progress.show(task.run)
        shutil.rmtree(self.attempts, ignore_errors=True)

    def _store(self, task: Task, outcome: Outcome) -> None:
        result, run = outcome.result, task.run
        if task.folder is not None and task.folder.is_dir() and result["status"] == "ok":
            name = re.sub(r"[^\w.-]+", "_", f"{run.variant}-{run.size or 'all'}-{run.seed}") + f"-{run.key[:6]}"
            target = self.store.folder / "trained" / name
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(task.folder, target)
            result["folder"] = f"trained/{name}"
            result["checkpoint"] = f"trained/{name}/{result['checkpoint']}"
        self.store.write_result(result, outcome.predictions)
        self.results[run.key] = self.store.results({run.key: run.metadata})[run.key]

    def conclude(self) -> None:
        """Keep the checkpoint of the best run, and print how it is used, and what has failed."""
        plan = self.store.plan()
        self.results = self.store.results(plan["runs"])  # in the order of the plan
        best = best_run(plan, self.results)
        if best is not None and self.keep == "best" and not self.results[best]["folder"]:
            run = next(run for run in self.runs if run.key == best)
            print(f"{run.label}: trained again, since its checkpoint was not kept")
            task = self._task(run)
            self._store(task, execute(task))
        for key, result in self.results.items():
            if self.keep != "all" and result["folder"] and (self.keep == "none" or key != best):
                shutil.rmtree(self.store.folder / result["folder"], ignore_errors=True)
                self._replace(result | {"folder": None, "checkpoint": None})
        for run in self.runs:
            if self._has_failed(run):
                print(f"failed: {run.label}: {self.results[run.key]['reason']}")
        if any(map(self._has_failed, self.runs)):
            print("note: the same command with --retry_failed true repeats failed runs")
        if best is not None and (name := self.results[best]["checkpoint"]):
            checkpoint = relative_path(self.store.folder / name)
            rows = [("checkpoint", checkpoint)]
            if self.config.variants[self.results[best]["variant"]].config is not None:
                new = ("--ckpt_path", checkpoint, "--data.predict_dir", "FOLDER")
                rows.append(("predict", shell_command("predict", *new)))
            print_table(rows)

    def _replace(self, result: Result) -> None:
        has_predictions = result["predictions"] is not None
        self.store.write_result(result, self.store.predictions(result["key"]) if has_predictions else None)
        self.results[result["key"]] = result


def _described(values: dict[str, Any]) -> dict[str, Any]:
    return {"choices": values["choices"]} if values["choices"] else {k: values[k] for k in ("low", "high", "log")}
