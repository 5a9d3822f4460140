"""What is found out before a comparison starts: its plan, the data, the cost; and what is refused then."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from metricloss_pl.cli.errors import format_user_error
from metricloss_pl.compare.costs import Costs
from metricloss_pl.compare.folds import digest, images_root
from metricloss_pl.compare.plan import Plan, Range, Run
from metricloss_pl.compare.settings import for_each
from metricloss_pl.compare.worker import Worker
from metricloss_pl.data.file_checks import describe_duplicates, find_duplicates
from metricloss_pl.errors import UserError
from metricloss_pl.files import FilePath

__all__ = ["Known", "check_parts", "measure", "prepare"]

# By these the Trainer would leave out images or end by the clock, unless they are so.
_WHOLE = {
    "limit_train_batches": None,
    "limit_val_batches": None,
    "limit_test_batches": None,
    "overfit_batches": 0.0,
    "fast_dev_run": False,
    "max_time": None,
}


@dataclass(frozen=True)
class Known:
    """What run files and data say.

    Args:
        data: The images in words.
        class_names: In the order of the labels.
        images: A digest of all images.
        images_root: Folder from which their names lead to their files, where there is one.
        tested: How many images are tested, in all folds together.
        settings: Of each variant, all that decides what its runs find.
        parts: Numbers of images to train on and to validate on, with the kind, size, split and fold of their runs, and
            how many classes the latter are of, and how many images of the rarest of these.
        warnings: Of images that stand twice or are not used, in words.
    """

    data: str
    class_names: list[str]
    images: str
    images_root: str | None
    tested: int
    settings: dict[str, dict[str, Any]]
    parts: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def prepare(worker: Worker) -> tuple[Plan, Known]:
    """The plan, and what is known of its data; every variant's data and network are built once on the way.

    Args:
        worker: Of the comparison.

    Raises:
        UserError: A variant can't be run, or not be compared with the baseline.
    """
    comparison = worker.comparison
    of_files: dict[Path, bytes] = {}  # each is read once, of however many variants

    def look(name: str) -> tuple[Known, float]:
        config = worker.files.parse(comparison.variants[name].config, comparison.overriding(name))
        _check_whole(config)
        for tuned, values in comparison.space(name).items() if comparison.tuning.trials else ():
            _check_range(worker, name, tuned, values)
        model, data, *_ = worker.files.build(config)
        settings = worker.files.decisive(config, model.class_hierarchy)
        data.prepare_data()
        parts = data.official_sets()
        counts = {part: 0 if samples is None else len(samples) for part, samples in parts.items()}
        images = f"{counts['train'] + counts['val']} images to train on and {counts['test']} to test on"
        if comparison.folds is not None:
            images = f"{sum(counts.values())} images, of which each of {comparison.folds} folds tests a part"
        elif parts["test"] is None:
            raise UserError(f"{type(data).__name__} has no test part: give folds, so that each image is tested")
        facts = Known(
            data=f"{type(data).__name__}: {images}, of {data.num_classes} classes",
            class_names=data.class_names,
            images=" ".join(digest(samples, of_files) for samples in parts.values() if samples is not None),
            images_root=images_root([parts["test"]] if comparison.folds is None else parts.values()),
            tested=counts["test"] if comparison.folds is None else sum(counts.values()),
            settings={name: settings},
        )
        return facts, config.data.init_args.val_fraction

    found = for_each(comparison.variants, look)
    baseline = comparison.baseline or ""
    shared, fraction = found[baseline]
    for name, (facts, own_fraction) in found.items():
        if (facts.images, facts.class_names) != (shared.images, shared.class_names):
            raise UserError(
                f"variant {name} has other images or classes than {baseline} ({facts.data}; {shared.data}): "
                "variants are compared on the same images"
            )
        as_files = comparison.tuning.trials and comparison.tuning.val_fraction is None
        if as_files and own_fraction != fraction:
            raise UserError(
                f"variant {name} has data.val_fraction {own_fraction}, and {baseline} {fraction}: give "
                "tuning.val_fraction, so that all are tuned on as many images"
            )
    settings = {name: facts.settings[name] for name, (facts, _) in found.items()}
    return Plan.of(comparison, settings, shared.images), replace(shared, settings=settings)


def _check_whole(config: Namespace) -> None:
    """Refuse what lets the Trainer see a part of the images, or end by the clock."""
    for name, whole in _WHOLE.items():
        value = config.trainer[name]
        if value != whole:
            raise UserError(
                f"trainer.{name} is {value}: runs that are compared see all images of their parts, for as many epochs "
                "or steps as the plan says; leave it out"
            )


def _check_range(worker: Worker, variant: str, name: str, values: Range) -> None:
    """Refuse a range with a value that its setting can't have."""
    comparison = worker.comparison
    file, overriding = comparison.variants[variant].config, comparison.overriding(variant)
    for value in values.ends:
        try:
            _check_whole(worker.files.parse(file, {**overriding, name: value}))
        except Exception as error:
            line = format_user_error(error)
            if line is None:
                raise
            unfit = values.choices is None and isinstance(error, argparse.ArgumentError)
            if unfit and _is_sound(worker, file, {**overriding, name: round(float(value))}):
                line = "it takes integers alone: give choices instead of low and high"
            raise UserError(f"the range of {name} holds {value}: {line}") from error


def _is_sound(worker: Worker, file: FilePath, overriding: Mapping[str, Any]) -> bool:
    try:
        worker.files.parse(file, overriding)
    except argparse.ArgumentError:
        return False
    return True


def check_parts(worker: Worker, plan: Plan, facts: Known) -> Known:
    """Cut all parts that the runs need, and decode every image once.

    What a size, split or fold lacks, and an image that is missing or broken, so shows now, whichever a run draws.

    Args:
        worker: Of the comparison.
        plan: Of the comparison.
        facts: As :func:`prepare` gives them.

    Returns:
        The facts with the parts, and with warnings of images that stand twice or are not used.

    Raises:
        UserError: Something lacks, or is broken.
    """
    parts: list[dict[str, Any]] = []
    seen = set()  # a variant may have data settings of its own

    def divide(variant: str) -> None:
        own = json.dumps(facts.settings[variant]["data"])
        for run in plan.runs:
            place = (own, run.kind, run.samples_per_class, run.split, run.fold)
            if run.variant != variant or place in seen:
                continue
            data = worker.build(run).data
            if run.kind == "trial" and not data.has_validation:
                raise UserError("data.val_fraction is 0, and trials are validated: give tuning.val_fraction")
            train, val = data.divide()
            seen.add(place)
            where = {name: run.place[name] for name in ("kind", "samples_per_class", "split", "fold")}
            part = {**where, "train": len(train), "val": 0 if val is None else len(val)}
            if val is not None:
                counts = val.labels.unique(return_counts=True)[1].tolist()
                part |= {"val_classes": len(counts), "val_rarest": min(counts, default=0)}
            if part not in parts:
                parts.append(part)

    for_each(plan.comparison.variants, divide)
    finals = [run for run in plan.runs if run.kind == "final"]
    largest = max(finals, key=lambda run: run.samples_per_class or math.inf)
    data = worker.build(largest).data
    data.samples_per_class = None  # all images
    data.check_files()
    if plan.comparison.folds is None:  # the run's own parts have none for validation, which trials have
        parts_of_data = data.official_sets()
        found = find_duplicates({part: samples for part, samples in parts_of_data.items() if samples is not None})
    else:
        found = data.duplicates()  # the first division speaks for the others
    warnings = data.left_out() + describe_duplicates(found, data.class_names)
    return replace(facts, parts=parts, warnings=warnings)


def measure(worker: Worker, plan: Plan, missing: Sequence[Run]) -> Costs:
    """What a final run takes, of each variant and size that misses any run.

    Args:
        worker: Of the comparison.
        plan: Of the comparison.
        missing: Its runs that are to be done.

    Raises:
        UserError: A variant can't be trained.
    """
    finals: dict[tuple[str, int | None], Run] = {}
    for run in plan.runs:
        if run.kind == "final":
            finals.setdefault((run.variant, run.samples_per_class), run)

    def of(variant: str) -> Costs:
        wanted = dict.fromkeys((variant, run.samples_per_class) for run in missing if run.variant == variant)
        return {at: worker.measure(finals[at]) for at in wanted}

    found = for_each(plan.comparison.variants, of)  # of those that are done, too: a mistake is not theirs
    return {at: cost for costs in found.values() for at, cost in costs.items()}
