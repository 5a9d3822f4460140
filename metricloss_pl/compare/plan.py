"""Expansion of a comparison into runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from metricloss_pl.compare.config import FIXED_LENGTH, ComparisonConfig
from metricloss_pl.compare.store import FORMAT

__all__ = ["Run", "expand"]


@dataclass(frozen=True)
class Run:
    """One run: a trial on validation images, or a final one on test images.

    Args:
        kind: Whether it is a `trial` or `final`.
        variant: Name of the variant.
        size: Training images per class. None: all.
        split: Seed of the subsample, the validation set and the folds.
        seed: Random seed.
        fold: Fold that is the test set. None: the data's own test set.
        trial: Number of the trial. None: a final run.
        key: Digest of all that decides the result.
        needs: Keys of the runs that must be done before: earlier trials, or all trials of a final run.
    """

    kind: Literal["trial", "final"]
    variant: str
    size: int | None
    split: int
    seed: int
    fold: int | None
    trial: int | None
    key: str
    needs: tuple[str, ...]

    @property
    def metadata(self) -> dict[str, Any]:
        """Description of the run in plan.json and in its result."""
        names = ("kind", "variant", "size", "split", "seed", "fold", "trial")
        return {name: getattr(self, name) for name in names}

    @property
    def label(self) -> str:
        """Name for the screen: "cosine, 10 images per class, trial 3"."""
        size = "all images" if self.size is None else f"{self.size} images per class"
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.variant}, {size}{fold}, {f'seed {self.seed}' if self.trial is None else f'trial {self.trial}'}"


def expand(config: ComparisonConfig, decisive: Mapping[str, Any], data: str) -> list[Run]:
    """Return all runs of a comparison in the order in which they are done: trials, then final runs seed by seed.

    Keys do not change when a plan grows, and change with all that decides a result.

    Args:
        config: Comparison, as `ComparisonConfig.checked` returns it.
        decisive: Everything in the settings of each variant that decides a result.
        data: Digest of all images.
    """
    trials: list[Run] = []
    finals: list[Run] = []
    first, tuning = config.seeds[0], config.tuning
    budget = asdict(replace(tuning, trials=0, space={}))
    folds: list[int | None] = [None] if config.folds is None else list(range(config.folds))

    def key(variant: str, *decisions: Any) -> str:
        length = None if config.variants[variant].category in FIXED_LENGTH else (config.steps, config.epochs)
        decides = [FORMAT, variant, decisive[variant], data, config.folds, length, decisions]
        return hashlib.blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=10).hexdigest()

    for size in config.sizes:
        same = size is None and config.folds is None and config.splits is not None  # all images in every split
        if config.splits is None and config.folds is None:
            pairs = [(seed, seed) for seed in config.seeds]
        else:
            pairs = [(seed, split) for seed in config.seeds for split in range(1 if same else config.splits or 1)]
        # Images that one fold trains on are tested in the others, so each fold is tuned separately.
        tuned = list(dict.fromkeys(split for _, split in pairs)) if config.folds else [pairs[0][1]]
        keys: dict[tuple[str, int, int | None], list[str]] = {}
        for trial in range(tuning.trials):
            for variant in config.variants:
                if trial >= config.trials(variant):
                    continue
                space = [(name, asdict(values)) for name, values in config.space(variant).items()]
                for split in tuned:
                    for fold in folds:
                        before = keys.setdefault((variant, split, fold), [])
                        search = (budget, space, config.metric, first)
                        own = key(variant, "trial", size, split, fold, trial, search)
                        needs = tuple(before[: trial // tuning.n_parallel * tuning.n_parallel])
                        trials.append(Run("trial", variant, size, split, first, fold, trial, own, needs))
                        before.append(own)
        for seed, split in pairs:
            for fold in folds:
                for variant in config.variants:
                    needs = tuple(keys.get((variant, split if config.folds else pairs[0][1], fold), ()))
                    own = key(variant, "final", size, split, fold, seed, needs)
                    finals.append(Run("final", variant, size, split, seed, fold, None, own, needs))
    finals.sort(key=lambda run: (config.seeds.index(run.seed), run.fold or 0))  # stable
    return trials + finals
