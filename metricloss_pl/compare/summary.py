"""What the results of a comparison say: read from their folder as far as it is sound, then counted and tested."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from metricloss_pl.compare import statistics
from metricloss_pl.compare.statistics import Estimate
from metricloss_pl.compare.words import Size, count, named
from metricloss_pl.errors import UserError, reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["Comparison", "Prediction", "Row", "metric_of", "read"]

Place = tuple[int, int, int | None]  # split, seed, fold


class Prediction(NamedTuple):
    """What a final run predicts on its test images, N of them.

    Attributes:
        images: (N,) places among all images of the comparison.
        labels: (N,).
        predicted: (N,).
        confidence: (N,) probability of the predicted class.
        positive: (N,) probability of class 1.
    """

    images: Array
    labels: Array
    predicted: Array
    confidence: Array
    positive: Array

    @property
    def correct(self) -> Array:
        """(N,) 1.0 where it is right, else 0.0."""
        correct: Array = (self.labels == self.predicted).astype(np.float64)
        return correct


@dataclass(frozen=True)
class Row:
    """One variant at one size, or over all sizes; None for what can't be said.

    Attributes:
        variant: Its name.
        size: Training images a class; None for all images.
        done: Final runs that are there.
        planned: Final runs that the plan holds.
        accuracy: On the test images; balanced where the comparison goes by that.
        difference: To the baseline, paired.
        p: Of the difference, corrected.
        other: Mean of the accuracy, balanced or not, that ``accuracy`` is not.
        train: Mean training accuracy.
        gap: Mean training minus mean test accuracy.
        seconds: Mean of a run.
    """

    variant: str
    size: Size
    done: int
    planned: int
    accuracy: Estimate | None
    difference: Estimate | None
    p: float | None
    other: float | None
    train: float | None
    gap: float | None
    seconds: float | None


@dataclass
class Comparison:
    """A plan and the results that belong to it.

    Attributes:
        folder: Where they lie.
        plan: As ``plan.json`` holds it.
        finals: The final runs that ended well, by key.
        failed: The runs, trials too, that failed.
        trials: The trials that ended well or were pruned.
        notes: What was left out, in words.
    """

    folder: Path
    plan: dict[str, Any]
    finals: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: list[dict[str, Any]] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.variants: list[str] = list(self.plan["variants"])
        self.baseline: str = self.plan["baseline"]
        self.balanced = self.plan.get("metric") == "balanced_accuracy"
        self.sizes: list[Size] = sorted(self.plan["samples_per_class"], key=lambda n: math.inf if n is None else n)
        self.class_names: list[str] = [str(name) for name in self.plan["class_names"]]
        self.image_names: list[str] = []
        self._places: dict[tuple[str, int], int] = {}
        self.predictions: dict[str, Prediction] = {}
        for key, run in self.finals.items():
            found = self._read_prediction(run)
            if found is not None:
                self.predictions[key] = found

    @property
    def metric(self) -> str:
        """What the table and the tests are of."""
        return "test/balanced_accuracy" if self.balanced else "test/accuracy"

    @property
    def planned(self) -> dict[str, dict[str, Any]]:
        """The plan's final runs, by key."""
        return {key: run for key, run in self.plan["keys"].items() if run.get("kind", "final") == "final"}

    @property
    def missing(self) -> dict[str, dict[str, Any]]:
        """The plan's final runs that have no sound result, by key."""
        return {key: run for key, run in self.planned.items() if key not in self.finals}

    def finals_of(self, variant: str, size: Size) -> dict[str, dict[str, Any]]:
        """The final runs of a variant at a size, by key."""
        return {
            key: run
            for key, run in self.finals.items()
            if run["variant"] == variant and run["samples_per_class"] == size
        }

    def correct(self, variant: str, size: Size) -> dict[Place, Array]:
        """(N,) of each run: 1 where it is right, 0 where it is wrong, NaN for an image that it has not tested."""
        found = {}
        for key, run in self.finals_of(variant, size).items():
            if key in self.predictions:
                values = np.full(len(self.image_names), np.nan)
                values[self.predictions[key].images] = self.predictions[key].correct
                found[(run["split"], run["seed"], run["fold"])] = values
        return found

    def _scores(self, variant: str, size: Size) -> dict[Place, Array]:
        """As :meth:`correct`; where balanced accuracy counts, with N / (C n_c) for 1, whose mean it is."""
        found = self.correct(variant, size)
        for key, run in self.finals_of(variant, size).items():
            if self.balanced and key in self.predictions:
                prediction = self.predictions[key]
                found[run["split"], run["seed"], run["fold"]][prediction.images] *= _class_weights(prediction.labels)
        return found

    # ------------------------------------------------------------------------------------------------------- the table

    @cached_property
    def rows(self) -> list[Row]:
        """A row a size and variant; p-values are corrected for all of them together."""
        return self._corrected([self._row(variant, [size]) for size in self.sizes for variant in self.variants])

    @cached_property
    def overall(self) -> list[Row]:
        """A row a variant, the mean over the sizes; p-values are corrected for the variants."""
        return self._corrected([self._row(variant, self.sizes) for variant in self.variants])

    def _row(self, variant: str, sizes: Sequence[Size]) -> Row:
        cells = [list(self.finals_of(variant, size).values()) for size in sizes]
        runs = [run for cell in cells for run in cell]
        planned = [
            run for run in self.planned.values() if run["variant"] == variant and run["samples_per_class"] in sizes
        ]
        own = self._over_sizes([self._scores(variant, size) for size in sizes])
        accuracy = statistics.accuracy_estimate(own) if own is not None else _of_metrics(cells, self.metric)
        difference = None
        if variant != self.baseline:
            pairs = []
            for size in sizes:
                ours, theirs = self._scores(variant, size), self._scores(self.baseline, size)
                pairs.append({place: ours[place] - theirs[place] for place in ours if place in theirs})
            paired = self._over_sizes(pairs)
            difference = None if paired is None else statistics.difference_estimate(paired)
        train, test = _mean(cells, "train/accuracy"), _mean(cells, "test/accuracy")
        seconds = [run["seconds"] for run in runs if run.get("seconds") is not None]
        return Row(
            variant=variant,
            size=sizes[0],
            done=len(runs),
            planned=len(planned),
            accuracy=accuracy,
            difference=difference,
            p=None if difference is None else difference.p,
            other=_mean(cells, "test/accuracy" if self.balanced else "test/balanced_accuracy"),
            train=train,
            gap=None if train is None or test is None else train - test,
            seconds=float(np.mean(seconds)) if seconds else None,
        )

    def _over_sizes(self, cells: Sequence[dict[Place, Array]]) -> Array | None:
        """(N, U) a column a repetition, of those that are there whole at every size; None if there is none.

        Several splits are the repetitions, with the seeds within each averaged; of one split the seeds are; of one
        split and seed the folds.
        """
        common = [place for place in cells[0] if all(place in cell for cell in cells)]
        folds = {run["fold"] for run in self.planned.values()}
        whole = [place for place in common if all((*place[:2], fold) in common for fold in folds)]
        which = next((k for k in (0, 1) if len({place[k] for place in whole}) > 1), 2)
        units: dict[int | None, list[Array]] = {}
        for place in whole:
            mean = np.mean([cell[place] for cell in cells], axis=0)  # NaN where one size has not tested the image
            units.setdefault(place[which], []).append(mean)
        table = [_mean_of_known(columns) for columns in units.values()]
        values = np.array(table).T if table else np.empty((0, 0))
        values = values[~np.isnan(values).all(axis=1)] if values.size else values
        return values if values.size and not np.isnan(values).all(axis=0).any() else None

    @staticmethod
    def _corrected(rows: list[Row]) -> list[Row]:
        tested = [k for k, row in enumerate(rows) if row.p is not None]
        for k, p in zip(tested, statistics.holm([rows[k].p or 0.0 for k in tested]), strict=True):
            rows[k] = replace(rows[k], p=p)
        return rows

    # ------------------------------------------------------------------------------------------------------ predictions

    def _read_prediction(self, run: dict[str, Any]) -> Prediction | None:
        if run.get("predictions") is None:
            self.notes.append(f"{named(run)}: no predictions are stored, so that it is in no test")
            return None
        try:
            with np.load(self.folder / run["predictions"]) as file:
                probabilities, labels, names = file["probabilities"], file["labels"].astype(np.int64), file["names"]
            if probabilities.shape != (labels.size, len(self.class_names)) or not names.shape == labels.shape == (
                labels.size,
            ):
                raise ValueError(f"shapes {probabilities.shape}, {labels.shape} and {names.shape} do not go together")
            if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(self.class_names):
                raise ValueError("no images, or labels out of range")
            if not np.isfinite(probabilities).all():
                raise ValueError("probabilities that are not finite")
        except Exception as error:  # a torn archive can raise nearly anything
            self.notes.append(f"{named(run)}: its predictions can't be read ({reason(error)})")
            return None
        predicted = probabilities.argmax(axis=1)
        return Prediction(
            images=self._image_places(names.tolist()),
            labels=labels,
            predicted=predicted,
            confidence=probabilities[np.arange(len(labels)), predicted].astype(np.float64),
            positive=probabilities[:, min(1, len(self.class_names) - 1)].astype(np.float64),
        )

    def _image_places(self, names: Iterable[str]) -> Array:
        """Places of images among all of the comparison; of equal names the first is the first, and so on."""
        seen: Counter[str] = Counter()
        places = []
        for name in map(str, names):
            image = (name, seen[name])
            seen[name] += 1
            if image not in self._places:
                self._places[image] = len(self._places)
                self.image_names.append(name)
            places.append(self._places[image])
        return np.array(places, dtype=np.int64)


def read(folder: Path) -> Comparison:
    """Reads ``plan.json`` and ``results.jsonl``; lines that are torn or of another plan are left out and named.

    Args:
        folder: Where a comparison has written.

    Raises:
        UserError: There is no sound plan.
    """
    plan = _read_plan(folder / "plan.json")
    finals: dict[str, dict[str, Any]] = {}
    failed: dict[str, dict[str, Any]] = {}
    trials: dict[str, dict[str, Any]] = {}
    torn, foreign, again = [], 0, 0
    sizes, variants, keys = set(plan["samples_per_class"]), set(plan["variants"]), plan["keys"]
    with_trials = any(run.get("kind") == "trial" for run in keys.values())
    file = folder / "results.jsonl"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        run = _sound(line)
        if run is None:
            torn.append(number)
            continue
        key, is_trial = run["key"], run["kind"] == "trial"
        by_key = with_trials or not is_trial  # a plan may leave its trials unnamed
        if run["variant"] not in variants or run["samples_per_class"] not in sizes or (by_key and key not in keys):
            foreign += 1
        else:
            again += key in finals or key in trials
            target = failed if run["status"] == "failed" else trials if is_trial else finals
            for other in (finals, failed, trials):
                other.pop(key, None)  # the last word on a run counts
            target[key] = run
    notes = []
    if torn:
        which = ", ".join(map(str, torn[:5])) + (" and others" if len(torn) > 5 else "")
        notes.append(f"{count(len(torn), 'line')} of results.jsonl left out, torn or no result: {which}")
    if foreign:
        notes.append(f"{count(foreign, 'result')} of another plan left out")
    if again:
        notes.append(f"{count(again, 'result')} replaced by a later one of the same run")
    return Comparison(folder, plan, finals, list(failed.values()), list(trials.values()), notes)


def _read_plan(file: Path) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = _loaded(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{file} can't be read ({reason(error)}): a report is made from a comparison's folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no JSON ({reason(error)}): it must be the plan that compare has written") from error
    kinds = {"variants": dict, "baseline": str, "samples_per_class": list, "class_names": list, "keys": dict}
    for name, kind in kinds.items():
        if not isinstance(plan, dict) or not isinstance(plan.get(name), kind):
            raise UserError(f"{file} holds no {name!r}: it must be the plan that compare has written")
    if plan["baseline"] not in plan["variants"]:
        raise UserError(f"{file}: the baseline {plan['baseline']!r} is none of the variants {list(plan['variants'])}")
    return plan


_KEYS = ("key", "kind", "variant", "samples_per_class", "split", "fold", "seed", "status")
_FACTS = {"metrics": dict, "history": dict, "settings": dict, "predictions": str, "seconds": int | float}


def _sound(line: str) -> dict[str, Any] | None:
    """The result that a line holds, or None if it is torn."""
    try:
        run = _loaded(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(run, dict) or not all(name in run for name in _KEYS):
        return None
    names, numbers = (run["key"], run["kind"], run["variant"], run["status"]), (run["split"], run["seed"])
    optional = (run["samples_per_class"], run["fold"])
    sound = all(isinstance(name, str) for name in names) and all(isinstance(number, int) for number in numbers)
    sound &= all(isinstance(run.get(name), kind | None) for name, kind in _FACTS.items())
    sound &= len({len(curve) for curve in (run.get("history") or {"epoch": []}).values()}) == 1
    return run if sound and all(number is None or isinstance(number, int) for number in optional) else None


def _loaded(text: str) -> Any:
    """What a JSON text holds; a NaN is what is not known."""
    return json.loads(text, parse_constant=lambda name: None if name == "NaN" else float(name))


def _mean_of_known(columns: Sequence[Array]) -> Array:
    """Mean over columns (N,) of what each knows; NaN where none does."""
    table = np.array(columns)
    counts = (~np.isnan(table)).sum(axis=0)
    mean: Array = np.where(counts > 0, np.nansum(table, axis=0) / np.maximum(counts, 1), np.nan)
    return mean


def _class_weights(labels: Array) -> Array:
    """(N,) with which a mean over images is one over classes."""
    counts = np.bincount(labels)
    weights: Array = len(labels) / (np.count_nonzero(counts) * counts[labels])
    return weights


def _of_metrics(cells: Sequence[Sequence[dict[str, Any]]], metric: str) -> Estimate | None:
    """Mean of the stored accuracies, of one size with their spread, where no predictions are there for more."""
    mean = _mean(cells, metric)
    if mean is None:
        return None
    values = [metric_of(run, metric) for run in cells[0]] if len(cells) == 1 else []
    known = [value for value in values if value is not None]
    spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Estimate(mean, spread, None, None, None, len(known), 0)


def _mean(cells: Sequence[Sequence[dict[str, Any]]], metric: str) -> float | None:
    """Mean over the sizes of each one's mean over its runs; None where one size has none."""
    means = []
    for runs in cells:
        known = [value for run in runs if (value := metric_of(run, metric)) is not None]
        if not known:
            return None
        means.append(float(np.mean(known)))
    return float(np.mean(means))


def metric_of(run: dict[str, Any], name: str) -> float | None:
    """A stored metric of a run; None where it is not known."""
    value: float | None = (run.get("metrics") or {}).get(name)
    return value
