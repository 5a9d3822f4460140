"""Images of a comparison: the same for every variant, readable, and enough for each run."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

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

__all__ = ["DatasetSummary", "check_subsets", "naming", "summarize"]


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


def summarize(config: ComparisonConfig) -> DatasetSummary:
    """Build every variant once, and return the facts about its images.

    Args:
        config: Comparison, as `ComparisonConfig.checked` returns it.

    Raises:
        UserError: A variant can't be run, or not be compared with the baseline.
    """
    digests: dict[Path, bytes] = {}  # each file is read once
    found: dict[str, DatasetSummary] = {}
    fractions: dict[str, float | None] = {}  # of validation images
    for name in config.variants:
        with naming(config, name):
            found[name], fractions[name] = _look(config, name, digests)
    baseline = str(config.baseline)
    shared, fraction = found[baseline], fractions[baseline]
    by_position = not all(summary.digest for summary in found.values())
    for name, own in found.items():
        same = own.labels == shared.labels if by_position else own.digest == shared.digest
        if not same or (not by_position and own.class_names != shared.class_names):
            raise UserError(
                f"variant {name} has other images or classes than {baseline} ({own.name} with "
                f"{plural(own.n_tested, 'test image')}, {shared.name} with {shared.n_tested}): variants are "
                "compared on the same images"
            )
        as_given = config.trials(name) and config.tuning.val_fraction is None
        if as_given and None not in (fractions[name], fraction) and fractions[name] != fraction:
            raise UserError(
                f"variant {name} has data.val_fraction {fractions[name]}, and {baseline} {fraction}: give "
                "tuning.val_fraction, so that all are tuned on as many images"
            )
    decisive = {name: summary.decisive for name, summary in found.items()}
    if not by_position:
        return replace(shared, decisive=decisive)
    named = next((summary for summary in found.values() if summary.digest), shared)
    return replace(named, decisive=decisive, digest=_hash(json.dumps(shared.labels)), root=None, by_position=True)


@contextlib.contextmanager
def naming(config: ComparisonConfig, variant: str) -> Iterator[None]:
    """Let the line on a user's mistake name the variant, if there are several."""
    try:
        yield
    except Exception as error:
        line = format_user_error(error)
        if line is None or len(config.variants) == 1:
            raise
        raise UserError(f"variant {variant}: {line}") from error


def _look(config: ComparisonConfig, variant: str, digests: dict[Path, bytes]) -> tuple[DatasetSummary, float | None]:
    """Return the facts about the images of a variant, and the share of its validation images."""
    seed, fold = config.seeds[0], None if config.folds is None else 0
    kind: Literal["trial", "final"] = "trial" if config.trials(variant) else "final"
    task = Task(Run(kind, variant, None, seed, seed, fold, None, "", ()), config)
    factory = task.factory
    if isinstance(factory, RunFileFactory) and config.trials(variant):
        _check_ranges(factory, task.space)
    module, data, _ = build(task, {})
    decisive = factory.decisive({}) if hasattr(factory, "decisive") else _source(factory, module, data)
    if (hierarchy := getattr(module, "class_hierarchy", None)) is not None:
        decisive["hierarchy"] = list(hierarchy.lines())
    if not isinstance(data, ImageDataModule):  # which has but loaders
        data.setup("test")
        labels = [int(label) for batch in data.test_dataloader() for label in labels_of(batch)]
        names = [str(label) for label in range(max(labels, default=0) + 1)]
        return DatasetSummary(type(data).__name__, None, names, len(labels), len(labels), "", decisive, labels), None
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
        digest=" ".join(_digest(samples, digests) for samples in sets.values()),
        decisive=decisive,
        labels=sets["test"].labels.tolist() if "test" in sets else [],
    )
    return summary, data.val_fraction


def _source(factory: Factory, module: LightningModule, data: LightningDataModule) -> dict[str, Any]:
    """Return what is known of a factory that decides its results: its values, the network, and digests of sources."""
    closure = [cell.cell_contents for cell in getattr(factory, "__closure__", None) or ()]
    values = [getattr(factory, "__defaults__", None), getattr(factory, "__dict__", None), closure]
    sources = {}
    for item in (getattr(factory, "func", factory), type(module), type(data)):  # a partial has a `func`
        with contextlib.suppress(OSError, TypeError):  # no source is known
            sources[item.__qualname__] = _hash(inspect.getsource(item))
    known = {"factory": repr(factory), "values": repr(values), "module": repr(module)}
    return {"sources": sources} | {name: re.sub(r" at 0x[0-9a-fA-F]+", "", text) for name, text in known.items()}


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


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
    # A final run decides what is `auto` in the trials of its size; the subsets are those of the baseline.
    for run in sorted([*finals, *runs], key=lambda run: run.variant != config.baseline):
        decisive = summary.decisive[run.variant]
        place = (json.dumps(decisive.get("data", run.variant)), run.kind, run.size, run.split, run.fold)
        if place in seen and (run.variant, run.size) in fixed:
            continue
        seen.add(place)
        with naming(config, run.variant):
            own, counts = _divide(Task(run, config, fixed.get((run.variant, run.size), {})), summary.n_tested)
        fixed.setdefault((run.variant, run.size), own)
        if run.variant == config.baseline:
            where = {name: run.metadata[name] for name in ("kind", "size", "split", "seed", "fold")}
            subsets.append({**where, **dict(zip(("train", "val", "test"), counts, strict=True))})
    for (variant, _), own in fixed.items():  # one size of the images for all training-set sizes
        own |= {k: v for k, v in fixed[variant, config.sizes[-1]].items() if k == "data.image_size"}
    largest = next(run for run in finals if run.variant == config.baseline and run.size == config.sizes[-1])
    data = build(Task(largest, config), {})[1]
    warnings = []
    if isinstance(data, ImageDataModule):
        data.samples_per_class = None  # all images
        data.check_files()
        sets = {name: samples for name, samples in data.official_sets().items() if samples is not None}
        duplicates = data.duplicates() if isinstance(data, FoldDataModule) else find_duplicates(sets)
        warnings = data.left_out() + describe_duplicates(duplicates, data.class_names)
    return replace(summary, subsets=subsets, fixed=fixed, warnings=warnings)


def _divide(task: Task, tested: int) -> tuple[dict[str, Any], list[int]]:
    """Return the settings of a run that are `auto`, and the numbers of its training, validation and test images."""
    module, data, _ = build(task, {})
    if not isinstance(data, ImageDataModule):
        data.setup("fit")
        loaders = [data.train_dataloader(), data.val_dataloader() if task.run.kind == "trial" else None]
        return {}, [*(len(getattr(loader, "dataset", ())) for loader in loaders), tested]
    sizes = _resolve_sizes(module, data)
    if task.run.kind == "trial" and not data.has_validation:
        raise UserError("data.val_fraction is 0, and trials are validated: give tuning.val_fraction")
    return sizes, [0 if samples is None else len(samples) for samples in (*data.divide(), data.official("test"))]


def _resolve_sizes(module: LightningModule, data: ImageDataModule) -> dict[str, Any]:
    """Return the sizes that are `auto`, so that trials and final runs have the same."""
    state = SimpleNamespace(fn=None)
    trainer = SimpleNamespace(lightning_module=module, world_size=1, global_rank=0, state=state)
    data.trainer = trainer  # type: ignore[assignment]
    names = [name for name in ("batch_size", "repeat", "image_size") if getattr(data, name) == "auto"]
    sizes = {f"data.{name}": getattr(data, f"resolved_{name}") for name in names}
    data.trainer = None
    return sizes


def _check_ranges(factory: RunFileFactory, space: Mapping[str, Range]) -> None:
    """Refuse a range with a value that its setting can't have."""
    for number in range(max((len(values.ends) for values in space.values()), default=0)):
        given = {name: values.ends[min(number, len(values.ends) - 1)] for name, values in space.items()}
        try:
            factory.plain(given)
        except Exception as error:
            line = format_user_error(error)
            if line is None:
                raise
            listed = ", ".join(f"{name} {value}" for name, value in given.items())
            raise UserError(f"the ranges hold {listed}: {line} (integers need choices, not low and high)") from error


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
