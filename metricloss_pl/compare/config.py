"""Configuration of a comparison: variants, sizes, seeds and the search for settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule

from metricloss_pl.errors import UserError, check_choice
from metricloss_pl.files import FilePath

__all__ = [
    "FIXED_LENGTH",
    "ComparisonConfig",
    "Factory",
    "KeepCheckpoints",
    "Kind",
    "Metric",
    "Range",
    "Tuning",
    "Variant",
    "plain_name",
]

Metric = Literal["accuracy", "balanced_accuracy"]
Kind = Literal["regime", "factory", "linear_probe", "fine_tuned", "trivial"]
Pruner = Literal["median", "successive_halving", "none"]
KeepCheckpoints = Literal["best", "all", "none"]
# From the settings of a run (seed, split, fold, samples_per_class, val_fraction and tuned values by dotted name) to the
# network, the data and the arguments of the Trainer.
Factory = Callable[[Mapping[str, Any]], tuple[LightningModule, LightningDataModule, dict[str, Any]]]

# Settings that the plan sets alike for every variant, so that none trains on more than another, and their names there.
_PLANNED = {
    "data.samples_per_class": "sizes",
    "data.seed": "seeds or splits",
    "data.val_fraction": "tuning.val_fraction",
    "seed_everything": "seeds",
}
_LENGTH = "trainer.max_epochs"
# Settings that decide on which images, and for how long, trials train and are validated.
_NOT_TUNED = (
    *(f"data.{name}" for name in ("repeat", "oversample_to", "test_fraction", "root", "csv", "path", "class_path")),
    *("config", "data", "trainer", "trainer.max_steps", "trainer.max_time"),
)
_OWN_SPACE = ("linear_probe", "fine_tuned", "trivial")  # kinds for which the others' ranges and model.* mean nothing
FIXED_LENGTH = ("linear_probe", "trivial")  # kinds that are not trained step by step


@dataclass(frozen=True)
class Range:
    """Values of a setting among which tuning chooses: an interval, or choices.

    Args:
        low: Lower end of the interval.
        high: Upper end, above `low`.
        log: Whether to draw the logarithm uniformly; `low` is then above 0.
        choices: List of the values, instead of an interval.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: list[int | float | str | bool] | None = None

    def check(self, name: str) -> None:
        """Refuse a range with nothing to choose from.

        Raises:
            UserError: It has neither an interval nor choices, both, or an empty or falling interval.
        """
        if self.choices is not None:
            if self.low is not None or self.high is not None or not self.choices:
                raise UserError(f"the range of {name} needs either low and high, or choices with at least one value")
        elif self.low is None or self.high is None or not -math.inf < self.low < self.high < math.inf:
            raise UserError(f"the range of {name} is {self.low} to {self.high}: low below high is needed, or choices")
        elif self.log and self.low <= 0:
            raise UserError(f"the range of {name} begins at {self.low}: above 0 is needed if log is true")

    @property
    def ends(self) -> list[int | float | str | bool]:
        """Both ends of the interval, or all choices."""
        return self.choices or [float(end) for end in (self.low, self.high) if end is not None]

    def holds(self, value: Any) -> bool:
        """Return whether a value is in the range."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None
        assert self.high is not None
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def at(self, share: float) -> int | float | str | bool:
        """Return the value at a share in [0, 1) of the range."""
        if self.choices is not None:
            return self.choices[int(share * len(self.choices))]
        assert self.low is not None
        assert self.high is not None
        if self.log:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + share * (self.high - self.low)


@dataclass(frozen=True)
class Variant:
    """One of the compared classifiers: a run file with overrides, or a factory.

    Args:
        config: Run file, such as digits_cosine.yaml. None: the factory builds the runs.
        overrides: Settings of the run file by dotted name, such as `model.optimizer.lr: 0.05`.
        space: Ranges that are tuned for this variant only, such as that of `model.ce_weight`.
        factory: Function, by its import path, from the settings of a run to the network, the data and the arguments of
            the Trainer. None: the run file describes the runs.
        kind: Category in the report. None: `factory` with a factory, else `regime`.
    """

    config: FilePath | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Range] = field(default_factory=dict)
    factory: Callable | None = None
    kind: Kind | None = None

    @property
    def category(self) -> Kind:
        """Kind, also where it follows from the factory."""
        return self.kind or ("regime" if self.factory is None else "factory")


@dataclass(frozen=True)
class Tuning:
    """Search for the settings of each variant at each size on validation images, with equally many trials for all.

    The first trial has the values of the run file, as far as they are in the ranges, or for a factory the middle of
    each range. The others up to `n_startup_trials` are spread evenly over the ranges (a scrambled Halton sequence),
    alike for all variants; the later ones are proposed by Optuna's TPE from the results so far.

    Args:
        trials: Trials per variant and size. 0: the values of the run files are used, and Optuna is not needed.
        space: Ranges by dotted name, tuned for every variant.
        epochs: Epochs of a trial. None: those of the final runs.
        val_fraction: Share of the training images on which trials are validated. None: that of the run file.
        pruner: Rule that stops a hopeless trial early: validation metric below the `median` of earlier trials at the
            same share of the training, `successive_halving`, or `none`.
        n_startup_trials: Trials before TPE begins.
        n_parallel: Trials per variant and size that are proposed together, without the results of each other.
    """

    trials: int = 0
    space: dict[str, Range] = field(default_factory=dict)
    epochs: int | None = None
    val_fraction: float | None = None
    pruner: Pruner = "median"
    n_startup_trials: int = 8
    n_parallel: int = 1

    def check(self) -> None:
        """Refuse values that are out of their range.

        Raises:
            UserError: There is one.
        """
        check_choice("tuning.pruner", self.pruner, Pruner)
        _check_least(self, "tuning.", trials=0, epochs=1, n_startup_trials=1, n_parallel=1)
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise UserError(f"tuning.val_fraction is {self.val_fraction}: a number between 0 and 1 is needed")


@dataclass(frozen=True)
class ComparisonConfig:
    """Variants x training-set sizes x seeds x splits, each variant tuned with the same budget.

    Args:
        variants: Compared classifiers by name.
        name: Name of the comparison. None: that of the config file.
        baseline: Variant that the others are tested against. None: the first.
        include: Names of the variants to run. None: all.
        overrides: Settings for every variant, by dotted name; overrides of a variant replace them.
        data_root: Folder of images, CSV list or npz file, in place of that in the run files.
        epochs: Epochs of every run. None: those of the run files.
        steps: Steps of every run instead of epochs, whatever its size and batch size, in whole epochs: runs on few
            images then train as long as those on many.
        sizes: Training images per class; null for all.
        seeds: Random seeds of the final runs. Each seed controls initialization, data order and, unless `splits` is
            set, subsampling.
        splits: Number of subsamples of the training images, each trained with every seed. None: one subsample per seed,
            or one division into folds.
        folds: Number of folds of all images, an official test set included, stratified and with groups kept whole. Each
            fold is the test set of runs on the others, so that each image is predicted once. None: the test set.
        tuning: Search for the settings.
        metric: Metric that chooses among trials.
        trivial: Add trivial baselines: the most frequent class, and a forest on statistics of colors and edges.
    """

    variants: dict[str, Variant] = field(default_factory=dict)
    name: str | None = None
    baseline: str | None = None
    include: list[str] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    data_root: str | None = None
    epochs: int | None = None
    steps: int | None = None
    sizes: list[int | None] = field(default_factory=lambda: [None])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    splits: int | None = None
    folds: int | None = None
    tuning: Tuning = field(default_factory=Tuning)
    metric: Metric = "accuracy"
    trivial: bool = True

    def checked(self) -> ComparisonConfig:
        """Return this comparison with the variants of `include`, sizes in ascending order and its baseline by name.

        Raises:
            UserError: There is nothing to compare, or a value is out of its range.
        """
        variants = self.variants
        for name in self.include or ():
            if name not in variants:
                raise UserError(f"include names {name}: there is no such variant, but {', '.join(variants)}")
        if self.include is not None:
            variants = {name: variants[name] for name in variants if name in self.include}
        if not variants:
            raise UserError("there is no variant to compare: give variants, each a name and the config of a run")
        baseline = next(iter(variants)) if self.baseline is None else self.baseline
        if baseline not in variants:
            raise UserError(f"baseline is {baseline}: it must be one of the variants, {', '.join(variants)}")
        _check_list("seeds", self.seeds, 0)
        _check_list("sizes", self.sizes, 1)
        _check_least(self, "", splits=1, folds=2, epochs=1, steps=1)
        for where, epochs in (("epochs", self.epochs), ("tuning.epochs", self.tuning.epochs)):
            if self.steps is not None and epochs is not None:
                raise UserError(f"{where} is {epochs} and steps {self.steps}: give one of them, the other null")
        if self.splits is not None and self.splits > 1 and self.folds is None and set(self.sizes) == {None}:
            raise UserError(f"splits is {self.splits}, and all would hold all training images: give sizes, or folds")
        check_choice("metric", self.metric, Metric)
        self.tuning.check()
        sizes = sorted(self.sizes, key=lambda size: math.inf if size is None else size)
        checked = replace(self, variants=variants, baseline=baseline, sizes=sizes)
        self._check_names("overrides", self.overrides)
        self._check_names("tuning.space", self.tuning.space)
        for name, variant in variants.items():
            checked._check_variant(name, variant)
        return checked

    def _check_variant(self, name: str, variant: Variant) -> None:
        check_choice(f"variant {name}: kind", variant.kind, Kind | None)
        if (variant.config is None) == (variant.factory is None):
            raise UserError(f"variant {name} needs either config, a run file, or factory, a function")
        if variant.overrides and variant.factory is not None:
            raise UserError(f"variant {name} has overrides, which change a run file: its factory takes settings itself")
        if variant.category not in _OWN_SPACE:  # they are given all settings of the baseline's data
            self._check_names(f"variant {name}: overrides", variant.overrides)
        self._check_names(f"variant {name}: space", variant.space)
        space, trials = self.space(name), self.trials(name)
        for setting in self.resolved_overrides(name):
            if trials and plain_name(setting) in space:
                raise UserError(f"variant {name}: overrides give {setting}, and tuning chooses it: leave one out")
        if trials and not space:
            raise UserError(f"variant {name}: tuning.trials is {trials}, and tuning.space names nothing to tune")
        for setting, values in space.items():
            values.check(setting)

    def _check_names(self, where: str, settings: Mapping[str, Any]) -> None:
        """Refuse settings that are the plan's; a variant may train for other epochs if it says so itself."""
        tuned = where.endswith("space")
        for name in _names(settings):
            if name in _PLANNED:
                raise UserError(f"{where} has {name}, which the plan sets for all runs: give {_PLANNED[name]} instead")
            if name == _LENGTH and self.steps is not None:
                raise UserError(f"{where} has {name}, and steps is {self.steps}: steps decide how long every run is")
            if name == _LENGTH and (tuned or where == "overrides"):
                raise UserError(f"{where} has {name}, which the plan sets for all runs: give epochs instead")
            if tuned and name in _NOT_TUNED:
                raise UserError(f"{where} has {name}, which must be the same in all trials: it can't be tuned")

    def trials(self, variant: str) -> int:
        """Return the number of trials of a variant at each size."""
        return 0 if self.variants[variant].category == "trivial" else self.tuning.trials

    def space(self, variant: str) -> dict[str, Range]:
        """Return the ranges of a variant, those for all first, so that these are drawn alike for all."""
        shared = {} if self.variants[variant].category in _OWN_SPACE else self.tuning.space
        spaces = shared, self.variants[variant].space
        return {plain_name(name): values for space in spaces for name, values in space.items()}

    def resolved_overrides(self, variant: str) -> dict[str, Any]:
        """Return all overrides of a run file by dotted name."""
        chosen = self.variants[variant]
        if chosen.config is None:
            return {}
        shared = _data_settings(self.data_root)
        if self.epochs is not None and chosen.category not in FIXED_LENGTH:
            shared[_LENGTH] = self.epochs
        of_model = chosen.category in _OWN_SPACE  # settings of the networks that are trained from scratch
        shared |= {name: value for name, value in self.overrides.items() if not (of_model and name.startswith("model"))}
        return {**shared, **chosen.overrides}


def _data_settings(root: str | None) -> dict[str, Any]:
    """Return the settings of a run file for images in a folder, a CSV list or an npz file."""
    if root is None:
        return {}
    lists = {".csv": ("ImageListDataModule", "csv"), ".npz": ("NpzDataModule", "path")}
    if (suffix := Path(root).suffix.lower()) not in lists:
        return {"data.root": root}
    kind, setting = lists[suffix]
    return {"data": kind, f"data.{setting}": root}


def plain_name(name: str) -> str:
    """Return a dotted name as users write it: `data.seed` for `data.init_args.seed`."""
    return name.replace(".init_args", "")


def _names(settings: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Yield the names of all settings, also of those in a block."""
    for name, value in settings.items():
        yield plain_name(f"{within}{name}")
        if isinstance(value, dict):
            yield from _names(value, f"{within}{name}.")


def _check_least(options: Any, prefix: str, **limits: int) -> None:
    for name, least in limits.items():
        if (value := getattr(options, name)) is not None and value < least:
            raise UserError(f"{prefix}{name} is {value}: at least {least} is needed")


def _check_list(name: str, values: Sequence[int | None], least: int) -> None:
    if not values:
        raise UserError(f"{name} is empty: give at least one")
    for value in values:
        if value is not None and value < least:
            raise UserError(f"{name} holds {value}: at least {least} is needed")
        if values.count(value) > 1:
            raise UserError(f"{name} holds {value} twice: each once")
