"""A comparison from begin to end: what is told before it starts, its runs one after the other or side by side."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from metricloss_pl.cli.console import print_table, relative_path, silence_lightning
from metricloss_pl.compare import remarks
from metricloss_pl.compare.costs import Costs, check_cost, shorter, threads_of, time_of
from metricloss_pl.compare.other_plans import earlier_plan, of_other_plans
from metricloss_pl.compare.plan import Comparison, Plan, Run
from metricloss_pl.compare.prepare import Known, check_parts, measure, prepare
from metricloss_pl.compare.progress import PlanProgress
from metricloss_pl.compare.report import write_report
from metricloss_pl.compare.results import Line, Results
from metricloss_pl.compare.tuning import check_optuna
from metricloss_pl.compare.words import count, duration, size_name, span
from metricloss_pl.compare.worker import Worker
from metricloss_pl.errors import UserError, plural

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

__all__ = ["run_comparison"]

_GRACE = 10.0  # seconds in which other processes end once they are told to
_LOOK_EVERY = 0.5  # seconds between two looks at what other processes have done
_LONG = 300.0  # seconds from which the plan says what would shorten it


def run_comparison(
    comparison: Comparison,
    folder: str | None = None,
    jobs: int = 1,
    max_hours: float | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
    command: str | None = None,
) -> Path:
    """Do the runs of a comparison that are not done yet, and write the report.

    A second start goes on where the first one ended, however it ended. Several processes, also on machines that share
    the folder, may be at it at the same time.

    Args:
        comparison: What is compared.
        folder: Where the results are. None: ``runs/compare/<name>``.
        jobs: Runs side by side, each in a process of its own; they take turns with the GPUs, where there are some.
        max_hours: Time in which all must be done; a plan that needs longer is refused.
        dry_run: Whether to print the plan, with its time and memory from a few measured steps, and stop.
        retry_failed: Whether final runs that failed are done again, and their trials where none of those ended well.
        command: What the user has typed, for the report.

    Returns:
        The folder.

    Raises:
        UserError: The plan can't be run: by its own fault, or for data, time or memory; nothing has run then.
    """
    place = Path(folder or Path("runs", "compare", comparison.name or "comparison"))
    if jobs < 1:
        raise UserError(f"jobs is {jobs}: at least 1 is needed")
    if max_hours is not None and not 0 < max_hours < math.inf:
        raise UserError(f"max_hours is {max_hours}: it must be above 0 and finite")
    comparison = comparison.checked()
    if comparison.tuning.trials:
        check_optuna()
    with silence_lightning():
        worker = Worker(comparison)
        plan, facts = prepare(worker)
        results = Results(place)
        done = results.read(plan.places)
        again = _in_vain(plan, done) if retry_failed else {}
        done = {key: line for key, line in done.items() if key not in again}
        missing = [run for run in plan.runs if run.key not in done]
        before = earlier_plan(results)
        another = set(before.get("keys", ())) != set(plan.places)
        if missing or another or "parts" not in before:  # an older version has written none
            facts = check_parts(worker, plan, facts)
        else:  # of the same images
            facts = replace(facts, **{name: before.get(name, []) for name in ("parts", "warnings")})
        jobs = max(1, min(jobs, len(missing)))
        with _threads(jobs):
            costs = measure(worker, plan, missing)
    ways = shorter(plan, done, costs, jobs, facts.settings, facts.images)
    if missing:
        check_cost(comparison, missing, costs, jobs, max_hours, ways)
    _announce(plan, missing, costs, jobs, ways, place, facts)
    described = {"command": command, **json.loads(json.dumps(_described(plan, facts)))}
    if results.others:
        print(f"warning: {of_other_plans(results, before, described)}")
    for note in results.notes:
        print(f"note: {note}")
    if dry_run:
        return place
    results.make()
    _describe(results, described)
    if again:
        results.remove(again)
    if missing:
        _say_what_is_held(missing, results)
        try:
            _do(worker, plan, results, jobs, costs)
        except (KeyboardInterrupt, SystemExit):
            print(f"stopped; the same command goes on with what is in {relative_path(place)}")
            raise
    done = results.read(plan.places)
    for run in plan.runs:
        if run.key in done and done[run.key]["status"] == "failed":
            print(f"failed: {run.title}: {done[run.key]['reason']}")
    if in_vain := _in_vain(plan, done):
        print(f"note: the same command with --retry_failed true does {count(len(in_vain), 'failed run')} again")
    if _describe(results, described):
        print("note: plan.json was another plan's by now; it is written again, and the report is on this plan")
    print_table([("report", relative_path(write_report(place)))])
    return place


def _announce(
    plan: Plan,
    missing: Sequence[Run],
    costs: Costs,
    jobs: int,
    ways: Sequence[str],
    place: Path,
    facts: Known,
) -> None:
    comparison, tuning = plan.comparison, plan.comparison.tuning
    finals = [run for run in plan.runs if run.kind == "final"]
    trials = len(plan.runs) - len(finals)
    rows = [
        ("data", facts.data),
        ("variants", ", ".join(comparison.variants) + f" (baseline {comparison.baseline})"),
        ("sizes", ", ".join(map(size_name, comparison.samples_per_class))),
        ("final runs", f"{len(finals)}, tested once each"),
    ]
    if trials:
        studies = len({run.study for run in plan.runs})
        validation = [part["val"] for part in facts.parts if part["kind"] == "trial"]
        each = "variant, size" if comparison.folds is None else "variant, size, fold"
        on = span(validation, "validation image") if validation else "validation images"
        rows.append(("trials", f"{trials}: {tuning.trials} for each of {studies} ({each}) on {on}"))
    else:
        rows.append(("trials", "none: the configs' own values are taken"))
    if missing:
        steps, epochs = (
            span((getattr(cost, f"{noun}s") for cost in costs.values()), noun) for noun in ("step", "epoch")
        )
        rows.append(("training", f"{steps} a run, {epochs}"))
    rows.append(("done", f"{len(plan.runs) - len(missing)} of {len(plan.runs)} runs"))
    if missing:
        seconds = time_of(comparison, missing, costs, jobs)
        beside = f" with {jobs} runs at a time" if jobs > 1 else ""
        rows.append(("time left", f"about {duration(seconds)}{beside}"))
        if seconds > _LONG:
            rows += [("" if number else "shorter", text) for number, text in enumerate(ways)]
        rows.append(("memory", f"about {max(cost.gigabytes for cost in costs.values()):.1f} GB a run"))
    rows.append(("folder", relative_path(place)))
    print_table(rows)
    for warning in [*facts.warnings, *(_few_images(plan, facts) if missing else [])]:
        print(f"warning: {warning}")


def _few_images(plan: Plan, facts: Known) -> list[str]:
    """What can't be told by the plan's images, before hours are spent on it."""
    comparison, lines = plan.comparison, []
    tests = len(comparison.variants) - 1
    if tests and (few := remarks.few_test_images(facts.tested, tests)):
        lines.append(f"{few} {remarks.more_test_images(comparison.folds)}")
    validation = [part["val"] for part in facts.parts if part["kind"] == "trial"]
    if comparison.tuning.trials > 1 and validation and (few := remarks.few_validation_images(min(validation))):
        lines.append(f"{few} {remarks.more_validation_images(comparison.folds)}")
    return lines


def _described(plan: Plan, facts: Known) -> dict[str, Any]:
    """What plan.json holds."""
    comparison = plan.comparison
    variants = {
        name: {**asdict(variant), "space": {k: asdict(v) for k, v in comparison.space(name).items()}}
        for name, variant in comparison.variants.items()
    }
    for name, variant in variants.items():
        variant["overrides"] = comparison.overriding(name)
        variant["settings"] = facts.settings[name]
    return {
        "name": comparison.name,
        "variants": variants,
        "baseline": comparison.baseline,
        "samples_per_class": comparison.samples_per_class,
        "seeds": comparison.seeds,
        "splits": len({run.split for run in plan.runs}),
        "folds": comparison.folds,
        "trials": comparison.tuning.trials,
        "tuning": {**asdict(comparison.tuning), "space": None},
        "metric": comparison.metric,
        "class_names": facts.class_names,
        "data": facts.data,
        "images": facts.images,
        "images_root": facts.images_root,
        "steps": comparison.steps,
        "warnings": facts.warnings,
        "parts": facts.parts,
        "keys": plan.places,
    }


def _describe(results: Results, described: Mapping[str, Any]) -> bool:
    """Whether plan.json had to be written, since it said anything else than this; a command alone is nothing else."""
    other = {**earlier_plan(results), "command": None} != {**described, "command": None}
    if other:
        results.write_plan(described)
    return other


# ----------------------------------------------------------------------------------------------------------- the runs


def _in_vain(plan: Plan, done: Mapping[str, Line]) -> dict[str, Line]:
    """Of final runs that have failed, and of their trials where none of those ended well, the lines by key."""
    failed = [run for run in plan.runs if run.kind == "final" and done.get(run.key, {}).get("status") == "failed"]
    keys = {run.key for run in failed}
    for study in {run.study for run in failed}:
        trials = [run.key for run in plan.trials_of(study) if run.key in done]
        if all(done[key]["status"] != "ok" for key in trials):
            keys.update(trials)
    return {key: done[key] for key in keys}


def _say_what_is_held(missing: Sequence[Run], results: Results) -> None:
    """Of runs that another start is at: it may have been stopped, and would be waited for in silence."""
    held = results.held(run.key for run in missing)
    if held:
        first = next(run for run in missing if run.key in held)
        more = f" and {count(len(held) - 1, 'other run')}" if len(held) > 1 else ""
        print(
            f"note: {first.title}{more}: held by another process, and waited for until that is done or ends "
            f"(the claim: {relative_path(held[first.key])})"
        )


def _do(worker: Worker, plan: Plan, results: Results, jobs: int, costs: Costs) -> None:
    with PlanProgress(plan, results, costs) as progress:
        if jobs == 1:
            with silence_lightning():
                _work(worker, plan, results, progress.look)
            return
        context = _context()
        processes = [  # no daemons: those may not have processes that load images
            context.Process(target=_work_alone, args=(plan, results.folder, number, jobs)) for number in range(jobs)
        ]
        for process in processes:
            process.start()
        try:
            while any(process.is_alive() for process in processes):
                time.sleep(_LOOK_EVERY)
                progress.look()
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.join(_GRACE)
                process.kill()
        progress.look()
    _check_ends(plan, results, processes)


def _context() -> ForkServerContext | SpawnContext:
    """Starts processes quickly, and without what this one has done to an accelerator."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _check_ends(plan: Plan, results: Results, processes: Sequence[BaseProcess]) -> None:
    missing = len(plan.runs) - len(results.read(plan.places))
    if missing:
        codes = sorted({process.exitcode or 0 for process in processes})
        raise UserError(
            f"missing: {plural(missing, 'run')}; processes ended with status {', '.join(map(str, codes))} (-9: killed, "
            "perhaps for memory); what they said, if anything, is above. The same command goes on; fewer jobs need less"
        )


def _work_alone(plan: Plan, folder: Path, number: int, jobs: int) -> None:
    """What a process does that stands beside others."""
    _die_with_parent()
    # Else it is forkserver as for this one: what loads its images would start slowly, and outlive it.
    multiprocessing.set_start_method(None, force=True)
    torch.set_num_threads(threads_of(jobs))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(gpu) for gpu in range(torch.cuda.device_count())]
    if gpus and not torch.cuda.is_initialized():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    with silence_lightning(), contextlib.suppress(KeyboardInterrupt):
        try:
            _work(Worker(plan.comparison), plan, Results(folder))
        except UserError as error:
            sys.exit(f"error: {error}")


@contextlib.contextmanager
def _threads(jobs: int) -> Iterator[None]:
    """With as many threads as each of several jobs has; one alone has all."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads_of(jobs) if jobs > 1 else before)
        yield
    finally:
        torch.set_num_threads(before)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _work(worker: Worker, plan: Plan, results: Results, look: Callable[[], None] = lambda: None) -> None:
    """Do what no other process does, until all runs are done."""
    places = plan.places
    while True:
        look()
        done = results.read(places)
        missing = [run for run in plan.runs if run.key not in done]
        if not missing:
            return
        ready = [run for run in missing if all(other.key in done for other in plan.awaited(run))]
        for run in ready:
            with results.claimed(run.key) as mine:
                if not mine or run.key in results.read(places):
                    continue
                results.append(*worker.run(plan, run, done))
                break
        else:
            time.sleep(_LOOK_EVERY)
