"""Images of a comparison: the same for every variant, readable, and enough for each run."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor

from metricloss_pl.cli.errors import format_user_error
from metricloss_pl.compare.config import ComparisonConfig, Factory, Range
from metricloss_pl.compare.plan import Run
from metricloss_pl.compare.run_files import RunFileFactory
from metricloss_pl.compare.runner import Task, build
from metricloss_pl.compare.scoring import labels_of
from metricloss_pl.data import ImageDataModule
from metricloss_pl.data.file_checks import describe_duplicates, digest_files, find_duplicates
from metricloss_pl.data.folds import FoldDataModule
from metricloss_pl.data.samples import Samples
from metricloss_pl.errors import UserError, plural

__all__ = ["DatasetSummary", "check_subsets", "factory_of", "for_each", "summarize", "task_of"]

T = TypeVar("T")


@dataclass(frozen=True)
class DatasetSummary:
    """Facts about the images of a comparison.

    Args:
        name: Name of the data module.
        root: Folder that the names of the images are relative to. None: they are in no folder.
        class_names: Names of the classes in the order of the labels.
        n_images: Number of all images.
        n_tested: Number of tested images, of all folds together.
        digest: Digest of all images.
        decisive: For each variant, everything in its settings that decides a result.
        labels: Labels of the test set.
        by_position: Whether images are named by their position in the test set, since a data module does not name them.
        fixed: By variant and size, settings that were `auto`.
        subsets: Numbers of images of each subset.
        warnings: Warnings about images that occur twice or are not used.
    """

    name: str
    root: str | None
    class_names: list[str]
    n_images: int
    n_tested: int
    digest: str
    decisive: dict[str, Any]
    labels: list[int] = field(default_factory=list)
    by_position: bool = False
    fixed: dict[tuple[str, int | None], dict[str, Any]] = field(default_factory=dict)
    subsets: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def image_size(self) -> int | None:
        """Side of the images in px that was resolved, if any."""
        return next((found["data.image_size"] for found in self.fixed.values() if "data.image_size" in found), None)


def factory_of(config: ComparisonConfig, variant: str) -> Factory:
    """Return the factory of a variant."""
    chosen = config.variants[variant]
    if chosen.factory is not None:
        return chosen.factory
    return RunFileFactory(str(chosen.config), config.resolved_overrides(variant))


def summarize(config: ComparisonConfig) -> DatasetSummary:
    """Build every variant once, and return the facts about its images.

    Args:
        config: Comparison, as `ComparisonConfig.checked` returns it.

    Raises:
        UserError: A variant can't be run, or not be compared with the baseline.
    """
    known: dict[Path, bytes] = {}  # each file is read once

    def look(variant: str) -> tuple[DatasetSummary, Any]:
        factory = factory_of(config, variant)
        if isinstance(factory, RunFileFactory) and config.trials(variant):
            _check_ranges(factory, config.space(variant))
        seed, fold = config.seeds[0], None if config.folds is None else 0
        module, data, _ = build(task_of(config, Run("trial", variant, None, seed, seed, fold, 0, "", ())), {})
        decisive = factory.decisive({}) if hasattr(factory, "decisive") else _source(factory, module, data)
        if (hierarchy := getattr(module, "class_hierarchy", None)) is not None:
            decisive["hierarchy"] = list(hierarchy.lines())
        if not isinstance(data, ImageDataModule):
            return _summarize_other(data, decisive), None
        source = data.source if isinstance(data, FoldDataModule) else data
        sets = {name: samples for name, samples in source.official_sets().items() if samples is not None}
        if config.folds is None and "test" not in sets:
            raise UserError(f"{type(data).__name__} has no test set: give folds, so that each image is tested")
        total = sum(map(len, sets.values()))
        summary = DatasetSummary(
            name=type(source).__name__,
            root=_root([sets["test"]] if config.folds is None else sets.values()),
            class_names=list(data.class_names),
            n_images=total,
            n_tested=len(sets["test"]) if config.folds is None else total,
            digest=" ".join(_digest(samples, known) for samples in sets.values()),
            decisive=decisive,
            labels=sets["test"].labels.tolist() if "test" in sets else [],
        )
        return summary, data.val_fraction

    found = for_each(config.variants, look)
    baseline = str(config.baseline)
    shared, fraction = found[baseline]
    by_position = not all(summary.digest for summary, _ in found.values())
    for name, (summary, own) in found.items():
        own_images, images = (
            (one.labels,) if by_position else (one.digest, one.class_names) for one in (summary, shared)
        )
        if own_images != images:
            raise UserError(
                f"variant {name} has other images or classes than {baseline} ({summary.name} with "
                f"{plural(summary.n_tested, 'test image')}, {shared.name} with {shared.n_tested}): variants are "
                "compared on the same images"
            )
        as_given = config.trials(name) and config.tuning.val_fraction is None
        if as_given and None not in (own, fraction) and own != fraction:
            raise UserError(
                f"variant {name} has data.val_fraction {own}, and {baseline} {fraction}: give tuning.val_fraction, so "
                "that all are tuned on as many images"
            )
    decisive = {name: summary.decisive for name, (summary, _) in found.items()}
    if not by_position:
        return replace(shared, decisive=decisive)
    named = next((summary for summary, _ in found.values() if summary.digest), shared)
    labels = hashlib.blake2b(json.dumps(shared.labels).encode(), digest_size=10).hexdigest()
    return replace(named, decisive=decisive, digest=labels, root=None, by_position=True)


def _summarize_other(data: LightningDataModule, decisive: Any) -> DatasetSummary:
    """Return the facts that any data module gives: the labels of its test set."""
    data.setup("test")
    labels = [int(label) for batch in data.test_dataloader() for label in labels_of(batch)]
    names = [str(label) for label in range(max(labels, default=0) + 1)]
    return DatasetSummary(type(data).__name__, None, names, len(labels), len(labels), "", decisive, labels)


def _source(factory: Factory, module: LightningModule, data: LightningDataModule) -> Any:
    """Return the names of a factory and of what it builds, and a digest of their source code as far as it is known."""
    found = []
    for item in (factory, type(module), type(data)):
        name = f"{getattr(item, '__module__', '')}.{getattr(item, '__qualname__', repr(item))}"
        try:
            source = inspect.getsource(item)
        except (OSError, TypeError):
            source = ""
        found.append([name, hashlib.blake2b(source.encode(), digest_size=10).hexdigest()])
    return found


def task_of(config: ComparisonConfig, run: Run, fixed: Mapping[str, Any] | None = None) -> Task:
    """Return the task of a run, as far as the configuration decides it."""
    chosen, space = config.variants[run.variant], config.space(run.variant)
    # A run file has values of its own before any trial; a factory is given the middle of each range.
    middle = {} if chosen.factory is None else {name: values.at(0.5) for name, values in space.items()}
    return Task(
        run=run,
        factory=factory_of(config, run.variant),
        kind=chosen.category,
        space=space,
        tuning=config.tuning,
        metric=config.metric,
        folds=config.folds,
        epochs=config.epochs if chosen.config is None else None,
        steps=config.steps,
        fixed={**middle, **(fixed or {})},
    )


def check_subsets(config: ComparisonConfig, runs: Sequence[Run], summary: DatasetSummary) -> DatasetSummary:
    """List the images of every run, and decode each image once.

    What a size, split or fold lacks, and a missing or broken image, is reported now, whichever a run draws.

    Returns:
        The summary with subsets, settings that were `auto`, and warnings.

    Raises:
        UserError: Something is missing or broken.
    """
    subsets: list[dict[str, Any]] = []
    fixed: dict[tuple[str, int | None], dict[str, Any]] = {}
    seen = set()
    finals = [run for run in runs if run.kind == "final"]

    def divide(variant: str) -> None:
        for run in [*finals, *runs]:  # a final run decides what is `auto` in the trials of its size
            decisive = summary.decisive[variant]
            own = json.dumps(decisive["data"] if isinstance(decisive, dict) else variant)
            place = (own, run.kind, run.size, run.split, run.fold)
            if run.variant != variant or (place in seen and (variant, run.size) in fixed):
                continue
            module, data, _ = build(task_of(config, run, fixed.get((variant, run.size))), {})
            if isinstance(data, ImageDataModule):
                fixed.setdefault((variant, run.size), _resolve_sizes(module, data))
                if run.kind == "trial" and not data.has_validation:
                    raise UserError("data.val_fraction is 0, and trials are validated: give tuning.val_fraction")
                train, val = data.divide()
                test = data.official("test")
                counts = [0 if samples is None else len(samples) for samples in (train, val, test)]
            else:
                fixed[variant, run.size] = {}
                counts = _count(data, run.kind == "trial", summary.n_tested)
            seen.add(place)
            where = {name: run.metadata[name] for name in ("kind", "size", "split", "seed", "fold")}
            if variant == config.baseline:
                subsets.append({**where, "train": counts[0], "val": counts[1], "test": counts[2]})

    for_each(config.variants, divide)
    for variant in config.variants:  # one size of the images for all training-set sizes
        size = fixed[variant, config.sizes[-1]].get("data.image_size")
        for (name, _), found in fixed.items():
            if name == variant and size is not None:
                found["data.image_size"] = size
    largest = next(run for run in finals if run.variant == config.baseline and run.size == config.sizes[-1])
    data = build(task_of(config, largest), {})[1]
    warnings = []
    if isinstance(data, ImageDataModule):
        data.samples_per_class = None  # all images
        data.check_files()
        sets = {name: samples for name, samples in data.official_sets().items() if samples is not None}
        duplicates = data.duplicates() if isinstance(data, FoldDataModule) else find_duplicates(sets)
        warnings = data.left_out() + describe_duplicates(duplicates, data.class_names)
    return replace(summary, subsets=subsets, fixed=fixed, warnings=warnings)


def _resolve_sizes(module: LightningModule, data: ImageDataModule) -> dict[str, Any]:
    """Return the sizes that are `auto`, so that trials and final runs have the same."""
    state = SimpleNamespace(fn=None)
    trainer = SimpleNamespace(lightning_module=module, world_size=1, global_rank=0, state=state)
    data.trainer = trainer  # type: ignore[assignment]
    names = [name for name in ("batch_size", "repeat", "image_size") if getattr(data, name) == "auto"]
    sizes = {f"data.{name}": getattr(data, f"resolved_{name}") for name in names}
    data.trainer = None
    return sizes


def _count(data: LightningDataModule, has_validation: bool, tested: int) -> list[int]:
    data.setup("fit")
    loaders = [data.train_dataloader(), data.val_dataloader() if has_validation else None]
    return [len(getattr(loader, "dataset", ())) for loader in loaders] + [tested]


def _check_ranges(factory: RunFileFactory, space: Mapping[str, Range]) -> None:
    """Refuse a range with a value that its setting can't have."""
    most = max((len(values.ends) for values in space.values()), default=0)
    together = [
        {name: values.ends[min(n, len(values.ends) - 1)] for name, values in space.items()} for n in range(most)
    ]
    if not any(_mistake(factory.parse, settings) for settings in together):
        return
    for name, values in space.items():
        for value in values.ends:
            if line := _mistake(factory.parse, {name: value}):
                if values.choices is None and not _mistake(factory.parse, {name: round(float(value))}):
                    line = "only integers are possible: give choices instead of low and high"
                raise UserError(f"the range of {name} holds {value}: {line}")


def _digest(images: Samples, known: dict[Path, bytes]) -> str:
    """Return a digest of names, labels, groups and contents of images."""
    found = hashlib.blake2b(digest_size=10)
    found.update("\0".join(images.names).encode("utf-8", "surrogateescape"))
    found.update(images.labels.numpy().tobytes())
    if images.groups is not None:
        found.update(images.groups.numpy().tobytes())
    if isinstance(images.images, Tensor):
        found.update(images.images.contiguous().numpy().tobytes())
    else:
        new = [file for file in images.images if file not in known]
        known.update(zip(new, digest_files(new), strict=True))
        found.update(b"".join(known[file] for file in images.images))
    return found.hexdigest()


def _root(sets: Iterable[Samples]) -> str | None:
    """Return the folder from which the names of the images lead to their files; None if there is no such folder."""
    files = [
        (os.path.abspath(file), name)
        for samples in sets
        if not isinstance(samples.images, Tensor)
        for file, name in zip(samples.images, samples.names, strict=True)
    ]
    if not files:
        return None
    path, name = files[0]
    if os.path.isabs(name):  # a list may give whole paths
        root = os.path.commonpath([os.path.dirname(path) for path, _ in files])
    else:
        root = path.removesuffix(os.sep + os.path.normpath(name))
    leads = all(os.path.normpath(os.path.join(root, name)) == path for path, name in files)
    return root if leads else None


def for_each(variants: Iterable[str], do: Callable[[str], T]) -> dict[str, T]:
    """Return what a function returns for each variant.

    Raises:
        UserError: A user's mistake; it names the variant, unless all variants share it.
    """
    names, given = list(variants), {}
    for name in names:
        try:
            given[name] = do(name)
        except Exception as error:
            line = format_user_error(error)
            if line is None:
                raise
            shared = not given and all(_mistake(do, other) == line for other in names if other != name)
            raise UserError(line if shared else f"variant {name}: {line}") from error
    return given


def _mistake(do: Callable[[Any], Any], argument: Any) -> str | None:
    """Return the line on the user's mistake that a function makes with an argument, or None."""
    try:
        do(argument)
    except Exception as error:
        line = format_user_error(error)
        if line is None:
            raise
        return line
    return None
