"""What the results of a comparison say: read from their folder as far as it is sound, then counted and tested."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from metricloss_pl.compare import statistics
from metricloss_pl.compare.results import Line, Results
from metricloss_pl.compare.statistics import Estimate
from metricloss_pl.compare.words import Size, count, named
from metricloss_pl.errors import reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from metricloss_pl.compare.plan import Metric

    Array = NDArray[Any]

__all__ = ["Findings", "Prediction", "Row", "metric_of", "read"]

_ROUNDING = 0.001  # by which accuracy may change where scores of low precision become probabilities

Place = tuple[int, int, int | None]  # split, seed, fold


class Prediction(NamedTuple):
    """What a final run predicts on its test images, N of them.

    Attributes:
        images: (N,) places among all images of the comparison.
        labels: (N,).
        predicted: (N,).
        confidence: (N,) probability of the predicted class.
        positive: (N,) probability of class 1.
        brier: (N,) squared errors of the probabilities, summed over the classes.
    """

    images: Array
    labels: Array
    predicted: Array
    confidence: Array
    positive: Array
    brier: Array

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
        sizes: Training images a class, None for all images; several where it is their mean.
        done: Final runs that are there.
        failed: Final runs that have failed.
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
    sizes: tuple[Size, ...]
    done: int
    failed: int
    planned: int
    accuracy: Estimate | None
    difference: Estimate | None
    p: float | None
    other: float | None
    train: float | None
    gap: float | None
    seconds: float | None

    @property
    def size(self) -> Size:
        """That of a row of one size."""
        (size,) = self.sizes
        return size


@dataclass
class Findings:
    """A plan of a comparison and the results that belong to it.

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
    finals: dict[str, Line] = field(default_factory=dict)
    failed: list[Line] = field(default_factory=list)
    trials: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.variants: list[str] = list(self.plan["variants"])
        self.baseline: str = self.plan["baseline"]
        self.chosen_by: Metric = self.plan.get("metric") or "accuracy"
        self.balanced = self.chosen_by == "balanced_accuracy"
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
        return f"test/{self.chosen_by}"

    @property
    def planned(self) -> dict[str, dict[str, Any]]:
        """The plan's final runs, by key."""
        return {key: run for key, run in self.plan["keys"].items() if run["kind"] == "final"}

    @property
    def missing(self) -> dict[str, dict[str, Any]]:
        """The plan's final runs that have no sound result and have not failed, by key."""
        ended = {*self.finals, *(run["key"] for run in self.failed)}
        return {key: run for key, run in self.planned.items() if key not in ended}

    @property
    def failed_finals(self) -> list[Line]:
        """The final runs that have failed."""
        return [run for run in self.failed if run["kind"] == "final"]

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

    def _scores(self, variant: str, size: Size, centred: bool = False) -> dict[Place, Array]:
        """As :meth:`correct`; where balanced accuracy m counts, with w = N / (C n_c) for 1, whose mean it is.

        Args:
            variant: Whose.
            size: Training images a class.
            centred: Whether w (correct - m) + m stands for it, whose mean is m too, but which does not vary because
                the weights do.
        """
        found = self.correct(variant, size)
        for key, run in self.finals_of(variant, size).items():
            if self.balanced and key in self.predictions:
                prediction = self.predictions[key]
                weights = _class_weights(prediction.labels)
                mean = float((weights * prediction.correct).mean()) if centred else 0.0
                scores = weights * (prediction.correct - mean) + mean
                found[run["split"], run["seed"], run["fold"]][prediction.images] = scores
        return found

    @cached_property
    def test_images(self) -> Array:
        """(C,) different test images of each class, of those that any run has tested."""
        labels: dict[int, int] = {}
        for prediction in self.predictions.values():
            labels.update(zip(prediction.images.tolist(), prediction.labels.tolist(), strict=True))
        return np.bincount(list(labels.values()), minlength=len(self.class_names))

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
        own = self._over_sizes([self._scores(variant, size, centred=True) for size in sizes])
        counts = self.test_images[self.test_images > 0]
        rarest = {"rarest": int(counts.min()), "classes": len(counts)} if self.balanced and len(counts) else {}
        accuracy = statistics.accuracy_estimate(own, **rarest) if own is not None else _of_metrics(cells, self.metric)
        difference = None
        if variant != self.baseline:
            pairs = []
            for size in sizes:
                ours, theirs = self._scores(variant, size), self._scores(self.baseline, size)
                pairs.append({place: ours[place] - theirs[place] for place in ours if place in theirs})
            paired = self._over_sizes(pairs)
            difference = None if paired is None else statistics.difference_estimate(paired, **rarest)
        train, test = _mean(cells, "train/accuracy"), _mean(cells, "test/accuracy")
        seconds = [run["seconds"] for run in runs if run.get("seconds") is not None]
        return Row(
            variant=variant,
            sizes=tuple(sizes),
            done=len(runs),
            failed=sum(run["variant"] == variant and run["samples_per_class"] in sizes for run in self.failed_finals),
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
            predicted = probabilities.argmax(axis=1)
            found, stored = float((predicted == labels).mean()), metric_of(run, "test/accuracy")
            if stored is not None and abs(found - stored) > _ROUNDING + 1 / len(labels):
                raise ValueError(f"their accuracy is {found:.4f}, and that of the run {stored:.4f}")
        except Exception as error:  # a torn archive can raise nearly anything
            self.notes.append(f"{named(run)}: its predictions can't be read ({reason(error)})")
            return None
        return Prediction(
            images=self._image_places(names.tolist()),
            labels=labels,
            predicted=predicted,
            confidence=probabilities[np.arange(len(labels)), predicted].astype(np.float64),
            positive=probabilities[:, min(1, len(self.class_names) - 1)].astype(np.float64),
            brier=statistics.brier(probabilities, labels),
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


def read(folder: Path) -> Findings:
    """Reads ``plan.json`` and ``results.jsonl``; lines that are torn or of another plan are left out and named.

    Args:
        folder: Where a comparison has written.

    Raises:
        UserError: There is no sound plan.
    """
    results = Results(folder)
    plan = results.read_plan()
    lines = results.read(plan["keys"])
    failed = [line for line in lines.values() if line["status"] == "failed"]
    ended = {key: line for key, line in lines.items() if line["status"] != "failed"}
    finals = {key: line for key, line in ended.items() if line["kind"] == "final"}
    trials = [line for line in ended.values() if line["kind"] == "trial"]
    others = [f"{count(len(results.others), 'result')} of another plan left out"] if results.others else []
    return Findings(folder, plan, finals, failed, trials, [*results.notes, *others])


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
    value: float | None = run["metrics"].get(name)
    return value
