"""What is compared: variants, sizes, seeds and splits, and every single run that this means."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

from metricloss_pl.compare.words import size_name
from metricloss_pl.errors import UserError, check_choice
from metricloss_pl.files import FilePath

__all__ = ["MAX_SPACE", "Comparison", "Metric", "Plan", "Range", "Run", "Study", "Tuning", "Variant"]

Metric = Literal["accuracy", "balanced_accuracy"]
Preset = Literal["gem", "gem-small"]
Pruner = Literal["median", "halving", "none"]
MAX_SPACE = 16  # settings that may be tuned

# What the plan sets for every run alike, so that no variant trains on more than another; and where it is set.
_PLANNED = {
    "data.samples_per_class": "samples_per_class",
    "data.seed": "seeds or splits",
    "data.val_fraction": "tuning.val_fraction",
    "seed_everything": "seeds",
}
_LENGTH = "trainer.max_epochs"
# On what, and for how long, trials train and are validated: no matter of choice among them.
_NOT_TUNED = (
    *(f"data.{name}" for name in ("repeat", "oversample_to", "test_fraction", "root", "csv", "path", "class_path")),
    *("config", "data", "trainer", "trainer.max_steps", "trainer.max_time"),
)


@dataclass(frozen=True)
class Range:
    """The values of a setting among which tuning chooses: an interval, or choices.

    Args:
        low: Lower end of the interval.
        high: Upper end, above ``low``.
        log: Whether the logarithm is drawn evenly; ``low`` is then above 0.
        choices: The values themselves, instead of an interval.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: list[int | float | str | bool] | None = None

    def check(self, name: str) -> None:
        """Refuse a range that holds nothing to choose from.

        Raises:
            UserError: Neither an interval nor choices, both, or an empty or falling interval.
        """
        if self.choices is not None:
            if self.low is not None or self.high is not None or not self.choices:
                raise UserError(f"the range of {name} needs either low and high, or choices with a value in it")
        elif self.low is None or self.high is None or not -math.inf < self.low < self.high < math.inf:
            raise UserError(f"the range of {name} is {self.low} to {self.high}: low below high is needed, or choices")
        elif self.log and self.low <= 0:
            raise UserError(f"the range of {name} begins at {self.low}: above 0 is needed where log is true")

    @property
    def ends(self) -> list[int | float | str | bool]:
        """Both ends of the interval, or all choices."""
        return (
            [float(end) for end in (self.low, self.high) if end is not None] if self.choices is None else self.choices
        )

    def at(self, share: float) -> int | float | str | bool:
        """The value at a share in [0, 1) of the range."""
        if self.choices is not None:
            return self.choices[int(share * len(self.choices))]
        assert self.low is not None
        assert self.high is not None
        if self.log:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + share * (self.high - self.low)


def _gem(batch_sizes: list[int | float | str | bool]) -> dict[str, Range]:
    """Brigato, Barz, Iocchi and Denzler, "Image Classification with Small Datasets" (IEEE Access 2022)."""
    return {
        "model.optimizer.lr": Range(1e-4, 0.1, log=True),
        "model.optimizer.weight_decay": Range(1e-5, 0.1, log=True),
        "data.batch_size": Range(choices=batch_sizes),
    }


PRESETS: dict[str, dict[str, Range]] = {"gem": _gem([8, 16, 32]), "gem-small": _gem([10, 25, 50])}


@dataclass(frozen=True)
class Variant:
    """What is compared with others: a run file, and what differs from it.

    Args:
        config: The run file, such as digits_cosine.yaml.
        overrides: Values of its settings by dotted name, as flags have them: ``model.optimizer.lr: 0.05``.
        space: Ranges that are tuned for this variant alone, such as that of ``model.ce_weight``.
    """

    config: FilePath
    overrides: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Range] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuning:
    """How settings are chosen for each variant and size, on validation images alone: as many trials for every variant.

    The first ``startup`` trials are spread evenly over the ranges (a scrambled Halton sequence), at the same places for
    all variants; the further ones are proposed by Optuna's TPE from the results before.

    Args:
        trials: Trials of each variant at each size. 0: the values of its config are taken, and Optuna is not needed.
        preset: Ranges of the GEM protocol for learning rate, weight decay and batch size: 8, 16 or 32, or, for small
            images, 10, 25 or 50. What ``space`` names as well is taken from there.
        space: Ranges by dotted name, tuned for every variant.
        epochs: Epochs of a trial. None: as of the final runs.
        val_fraction: Share of the training images on which trials are validated. None: as the config has it.
        pruner: What ends a hopeless trial early: a metric below the ``median`` of those before it at the same share of
            the training, successive ``halving``, or ``none``.
        startup: Trials before TPE begins.
        at_once: Trials of one variant and size that may run side by side; they don't know of each other's results.
    """

    trials: int = 0
    preset: Preset | None = None
    space: dict[str, Range] = field(default_factory=dict)
    epochs: int | None = None
    val_fraction: float | None = None
    pruner: Pruner = "median"
    startup: int = 8
    at_once: int = 1

    def check(self) -> None:
        """Refuse what can't be run.

        Raises:
            UserError: A number is out of its range.
        """
        check_choice("tuning.preset", self.preset, Preset | None)
        check_choice("tuning.pruner", self.pruner, Pruner)
        for name, value, least in (
            ("trials", self.trials, 0),
            ("epochs", self.epochs, 1),
            ("startup", self.startup, 1),
            ("at_once", self.at_once, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"tuning.{name} is {value}: at least {least} is needed")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise UserError(f"tuning.val_fraction is {self.val_fraction}: a number between 0 and 1 is needed")


@dataclass(frozen=True)
class Comparison:
    """Variants x training-set sizes x seeds x splits, each variant tuned with the same budget.

    Args:
        variants: What is compared, by name.
        name: Of the comparison. None: of the config's file.
        baseline: The variant that the others are compared with. None: the first.
        only: Names of the variants to run. None: all.
        overrides: Values of settings for every variant, by dotted name; a variant's own come after them.
        data_root: Folder of the images, in place of that in the run files.
        epochs: Epochs of every run. None: as the run files have it.
        steps: Steps of every run instead, whatever its size and batch size, in whole epochs: so that runs on few images
            train as long as those on many.
        samples_per_class: Training images a class; null for all.
        seeds: Of the final runs, at least 0: of initial weights, and, without ``splits``, of the draw and the order of
            the training images.
        splits: Number of draws of the training images, each with every seed, which then decides weights and dropout
            alone. None: each seed draws its own, or one draw with ``folds``.
        folds: All images, an official test part too, are divided in so many parts, stratified, groups kept whole. Each
            part is the test part of runs on the others, so that each image is predicted once, and tuning is done for
            each anew. None: the data's own test part.
        tuning: How settings are chosen.
        metric: By which they are chosen, and hopeless trials ended.
    """

    variants: dict[str, Variant] = field(default_factory=dict)
    name: str | None = None
    baseline: str | None = None
    only: list[str] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    data_root: str | None = None
    epochs: int | None = None
    steps: int | None = None
    samples_per_class: list[int | None] = field(default_factory=lambda: [None])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    splits: int | None = None
    folds: int | None = None
    tuning: Tuning = field(default_factory=Tuning)
    metric: Metric = "accuracy"

    def checked(self) -> Comparison:
        """This comparison with the variants of ``only`` and its baseline by name.

        Raises:
            UserError: There is nothing to compare, or something is out of its range.
        """
        variants = self.variants
        if self.only is not None:
            for name in self.only:
                if name not in variants:
                    raise UserError(f"only names {name}: there is no such variant, but {', '.join(variants)}")
            variants = {name: variants[name] for name in variants if name in self.only}
        if not variants:
            raise UserError("there is no variant to compare: give variants, each a name and the config of a run")
        baseline = next(iter(variants)) if self.baseline is None else self.baseline
        if baseline not in variants:
            raise UserError(f"baseline is {baseline}: it must be one of the variants, {', '.join(variants)}")
        _check_list("seeds", self.seeds, 0)
        if max(self.seeds) >= 2**32:
            raise UserError(f"seeds holds {max(self.seeds)}: below 2**32 is needed")
        _check_list("samples_per_class", self.samples_per_class, 1)
        for name, value, least in (
            ("splits", self.splits, 1),
            ("folds", self.folds, 2),
            ("epochs", self.epochs, 1),
            ("steps", self.steps, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"{name} is {value}: at least {least} is needed")
        if self.steps is not None and self.epochs is not None:
            raise UserError(
                f"epochs is {self.epochs} and steps {self.steps}: one of them says how long runs are, the other null"
            )
        if self.steps is not None and self.tuning.epochs is not None:
            raise UserError(f"tuning.epochs is {self.tuning.epochs} and steps {self.steps}: trials take as many steps")
        if self.splits is not None and self.splits > 1 and self.folds is None and set(self.samples_per_class) == {None}:
            raise UserError(
                f"splits is {self.splits} and every run has all training images, so that all splits would be the same: "
                "give samples_per_class, or folds"
            )
        check_choice("metric", self.metric, Metric)
        self.tuning.check()
        checked = replace(self, variants=variants, baseline=baseline)
        self._check_names("overrides", self.overrides)
        self._check_names("tuning.space", self.tuning.space)
        for name, variant in variants.items():
            self._check_names(f"variant {name}: overrides", variant.overrides)
            self._check_names(f"variant {name}: space", variant.space)
            space = checked.space(name)
            for setting in (*self.overrides, *variant.overrides):
                if self.tuning.trials and _plain(setting) in space:
                    raise UserError(
                        f"variant {name}: overrides give {setting}, and tuning chooses it: leave one of them out, or "
                        "give its range in space as choices with that one value"
                    )
            if self.tuning.trials and not space:
                raise UserError(
                    f"variant {name}: tuning.trials is {self.tuning.trials}, and nothing is named to tune: give "
                    "tuning.preset or tuning.space, or 0 trials"
                )
            if len(space) > MAX_SPACE:
                raise UserError(f"variant {name} has {len(space)} settings to tune: at most {MAX_SPACE} can be")
            for setting, values in space.items():
                values.check(setting)
        return checked

    def _check_names(self, where: str, settings: Mapping[str, Any]) -> None:
        """Refuse what is the plan's to set; a variant may train for other epochs, where it says so itself."""
        tuned = where.endswith("space")
        for name in _names(settings):
            if name in _PLANNED:
                raise UserError(f"{where} has {name}, which the plan sets for all runs: give {_PLANNED[name]} instead")
            if name == _LENGTH and self.steps is not None:
                raise UserError(f"{where} has {name}, and steps is {self.steps}: steps decide how long every run is")
            if name == _LENGTH and (tuned or where == "overrides"):
                raise UserError(f"{where} has {name}, which the plan sets for all runs: give epochs instead")
            if tuned and name in _NOT_TUNED:
                raise UserError(
                    f"{where} has {name}, which has to be the same in all trials: it is no matter of tuning"
                )

    def space(self, variant: str) -> dict[str, Range]:
        """What is tuned for a variant: first what is for all, so that these are drawn alike for all."""
        preset = PRESETS[self.tuning.preset] if self.tuning.preset else {}
        spaces = preset, self.tuning.space, self.variants[variant].space
        return {_plain(name): values for space in spaces for name, values in space.items()}

    def overriding(self, variant: str) -> dict[str, Any]:
        """All values of settings for a variant, by dotted name."""
        root = {} if self.data_root is None else {"data.root": self.data_root}
        epochs = {} if self.epochs is None else {"trainer.max_epochs": self.epochs}
        return {**root, **epochs, **self.overrides, **self.variants[variant].overrides}


def _plain(name: str) -> str:
    """A dotted name as users write it: ``data.seed`` is ``data.init_args.seed``."""
    return name.replace(".init_args", "")


def _names(settings: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """The names of all settings, those in a block too."""
    for name, value in settings.items():
        yield _plain(f"{within}{name}")
        if isinstance(value, dict):
            yield from _names(value, f"{within}{name}.")


def _check_list(name: str, values: Sequence[int | None], least: int) -> None:
    if not values:
        raise UserError(f"{name} is empty: give at least one")
    for value in values:
        if value is not None and value < least:
            raise UserError(f"{name} holds {value}: at least {least} is needed")
        if values.count(value) > 1:
            raise UserError(f"{name} holds {value} twice: each once")


class Study(NamedTuple):
    """Those trials among which the settings of some final runs are chosen."""

    variant: str
    samples_per_class: int | None
    split: int
    fold: int | None


@dataclass(frozen=True)
class Run:
    """One run: a trial on validation images, or a final one on test images."""

    kind: Literal["trial", "final"]
    variant: str
    samples_per_class: int | None
    split: int
    fold: int | None
    seed: int
    trial: int | None
    study: Study
    key: str

    @property
    def place(self) -> dict[str, Any]:
        """What plan.json and a line of results.jsonl say of it."""
        names = ("kind", "variant", "samples_per_class", "split", "fold", "seed", "trial")
        return {name: getattr(self, name) for name in names}

    @property
    def title(self) -> str:
        """For the screen: "cosine, 10 images a class, trial 3"."""
        fold = "" if self.fold is None else f", fold {self.fold}"
        which = f"seed {self.seed}" if self.trial is None else f"trial {self.trial}"
        return f"{self.variant}, {size_name(self.samples_per_class)}{fold}, {which}"


@dataclass(frozen=True)
class Plan:
    """A comparison and all its runs: first the trials, then the final runs, seed by seed.

    Args:
        comparison: As :meth:`Comparison.checked` gives it.
        runs: In the order in which they are best done.
    """

    comparison: Comparison
    runs: list[Run]

    @classmethod
    def of(cls, comparison: Comparison, settings: Mapping[str, Any], data: str) -> Plan:
        """All runs of a comparison.

        Args:
            comparison: As :meth:`Comparison.checked` gives it.
            settings: For each variant, everything of its config that decides a run.
            data: A digest of all images.
        """
        trials: list[Run] = []
        finals: list[Run] = []
        tuning = asdict(replace(comparison.tuning, trials=0, space={}, preset=None))

        def add(runs: list[Run], study: Study, seed: int, split: int, trial: int | None) -> None:
            number = comparison.tuning.trials
            space = {name: asdict(values) for name, values in comparison.space(study.variant).items()}
            spread = list(space.items())  # as a list, since the order decides what is drawn
            decides = {
                "settings": settings[study.variant],
                "data": data,
                "folds": comparison.folds,
                "steps": comparison.steps,
                "study": study,
                "run": (seed, split, trial),
                "tuning": (tuning, spread, comparison.metric, comparison.seeds[0]) if number else None,
                "trials": number if trial is None else None,
            }
            key = hashlib.blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=10).hexdigest()
            kind: Literal["trial", "final"] = "final" if trial is None else "trial"
            size, fold = study.samples_per_class, study.fold
            runs.append(Run(kind, study.variant, size, split, fold, seed, trial, study, key))

        folds: list[int | None] = [None] if comparison.folds is None else list(range(comparison.folds))
        first = comparison.seeds[0]
        for size in comparison.samples_per_class:
            same = size is None and comparison.folds is None and comparison.splits is not None
            draws = 1 if same else comparison.splits
            pairs = _seeds_and_splits(comparison.seeds, draws, comparison.folds is not None)
            # A fold's training images are tested in the other folds, so that each has to be tuned on its own.
            tuned = dict.fromkeys(split for _, split in pairs) if comparison.folds else [pairs[0][1]]
            for trial in range(comparison.tuning.trials):
                for variant in comparison.variants:
                    for split in tuned:
                        for fold in folds:
                            add(trials, Study(variant, size, split, fold), first, split, trial)
            for seed, split in pairs:
                for fold in folds:
                    for variant in comparison.variants:
                        study = Study(variant, size, split if comparison.folds else pairs[0][1], fold)
                        add(finals, study, seed, split, None)
        finals.sort(key=lambda run: (comparison.seeds.index(run.seed), run.fold or 0))  # stable
        return cls(comparison, trials + finals)

    @property
    def places(self) -> dict[str, dict[str, Any]]:
        """The place of each run, by key."""
        return {run.key: run.place for run in self.runs}

    def trials_of(self, study: Study) -> list[Run]:
        """The trials of a study, in their order."""
        return [run for run in self.runs if run.kind == "trial" and run.study == study]

    def awaited(self, run: Run) -> list[Run]:
        """What has to be done before: the trials of earlier rounds, or all trials for a final run."""
        trials = self.trials_of(run.study)
        if run.trial is None:
            return trials
        at_once = self.comparison.tuning.at_once
        return trials[: run.trial // at_once * at_once]


def _seeds_and_splits(seeds: Sequence[int], splits: int | None, folded: bool) -> list[tuple[int, int]]:
    if splits is None and not folded:
        return [(seed, seed) for seed in seeds]
    return [(seed, split) for seed in seeds for split in range(splits or 1)]
