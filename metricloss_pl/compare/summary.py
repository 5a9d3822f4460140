"""Tables of a comparison, computed from its stored runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from metricloss_pl.compare import statistics
from metricloss_pl.compare.search import best_run
from metricloss_pl.compare.statistics import Estimate
from metricloss_pl.compare.store import Store

__all__ = ["Calibration", "Search", "Summary", "at_size", "rows"]

Size = int | None
IMAGE, RUN = ["name", "occurrence"], ["split", "seed", "fold"]  # levels of a table of images and runs
COLUMNS = [
    "size", "variant", "n_runs", "n_planned", "n_failed", "accuracy", "balanced_accuracy", "low", "high", "std",
    "difference", "difference_low", "difference_high", "p", "p_adjusted", "minimum_detectable", "train_accuracy", "gap",
    "seconds", "method",
]  # fmt: skip


class Calibration(NamedTuple):
    """Distance of predicted probabilities from what comes true, over all runs of a variant at a size."""

    n: int  # predictions
    brier: float  # squared errors summed over the classes, in [0, 2]
    nll: float
    ece: float  # of the predicted class, in 10 bins of equal width
    bins: pd.DataFrame  # confidence, accuracy, n


class Search(NamedTuple):
    """Trials among which one is chosen."""

    variant: str
    size: Size
    split: int
    fold: int | None
    trials: list[tuple[float, dict[str, Any]]]  # scores and results of those that ended well, the best first

    @property
    def best(self) -> dict[str, Any]:
        """Result of the trial with the highest score."""
        return self.trials[0][1]


class Summary:
    """Tables of a comparison. Accuracies are fractions; NaN stands for what is not known.

    Args:
        folder: Folder of the comparison, which may be incomplete.

    Attributes:
        plan: Content of plan.json.
        results: Results by key, as stored.
        sizes: Training images per class, ascending; None for all images.
        variants: Names, in the order of the plan.
        baseline: Variant to which the others are compared.
        metric: `accuracy` or `balanced_accuracy`: the subject of intervals, differences and p-values.
        class_names: Names by label.

    Raises:
        UserError: It holds no sound plan. The tables raise one if a file of predictions is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.store = Store(folder)
        self.plan = self.store.plan()
        self.results = self.store.results(self.plan["runs"])
        self.sizes: list[Size] = self.plan["sizes"]
        self.variants = list(self.plan["variants"])
        self.baseline: str = self.plan["baseline"]
        self.metric: str = self.plan["metric"]
        self.class_names: list[str] = self.plan["data"]["class_names"]
        self._finals: dict[tuple[str, Size], dict[str, pd.DataFrame]] = {}

    def kinds(self, *names: str) -> list[str]:
        """Return the variants of some kinds, in their order."""
        return [variant for variant in self.variants if self.plan["variants"][variant]["kind"] in names]

    @property
    def trained(self) -> list[str]:
        """Variants that are no trivial baselines."""
        return [variant for variant in self.variants if variant not in self.kinds("trivial")]

    def final_results(self, variant: str, size: Size) -> list[dict[str, Any]]:
        """Return the results of the final runs of a variant at a size that ended well."""
        return [
            run
            for run in self.results.values()
            if (run["kind"], run["variant"], run["size"], run["status"]) == ("final", variant, size, "ok")
        ]

    @property
    def best_run(self) -> dict[str, Any] | None:
        """Result of the run to use further, chosen on validation images only; None if its checkpoint is not kept."""
        key = best_run(self.plan, self.results)
        return self.results[key] if key is not None and self.results[key]["checkpoint"] else None

    # ------------------------------------------------------------------------------------------------------ the tables

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per size and variant.

        `low` to `high` is the 95 % confidence interval of the metric, `difference` is to the baseline, `p_adjusted` by
        Holm over all rows but those of trivial baselines, which are not tested, and `minimum_detectable` (power 80 %,
        level 5 % divided by the number of tests) in the unit of `difference`. `method` is that of
        `statistics.Estimate`, and None without runs.
        """
        return self._table([[size] for size in self.sizes])

    @cached_property
    def overall(self) -> pd.DataFrame:
        """One row per variant, with the mean over the sizes; `table` where there is one size only."""
        return self._table([self.sizes]) if len(self.sizes) > 1 else self.table

    def _table(self, groups: Sequence[Sequence[Size]]) -> pd.DataFrame:
        rows, differences = [], []
        for sizes in groups:
            for variant in self.variants:
                row, difference = self._row(variant, sizes)
                rows.append(row)
                differences.append(difference)
        table = pd.DataFrame(rows, columns=COLUMNS)
        for name in ("size", "method"):  # None, not NaN
            table[name] = pd.Series([row.get(name) for row in rows], dtype=object)
        tested = table["p"].notna()
        table.loc[tested, "p_adjusted"] = statistics.holm(table.loc[tested, "p"].tolist())
        table["minimum_detectable"] = [
            found.minimum_detectable(int(tested.sum())) if found is not None and is_tested else np.nan
            for found, is_tested in zip(differences, tested, strict=True)
        ]
        return table

    def _row(self, variant: str, sizes: Sequence[Size]) -> tuple[dict[str, Any], Estimate | None]:
        cells = [self.final_results(variant, size) for size in sizes]
        planned = [
            self.results.get(key, {"status": "missing"})["status"]
            for key, run in self.plan["runs"].items()
            if run["kind"] == "final" and run["variant"] == variant and run["size"] in sizes
        ]
        own = self._over_sizes([self.correct(variant, size) for size in sizes])
        estimate = self._estimated(statistics.accuracy, own, cells)
        difference = None if variant == self.baseline else self.difference(variant, self.baseline, sizes)
        row: dict[str, Any] = {
            "size": sizes[0] if len(sizes) == 1 else None,
            "variant": variant,
            "n_runs": sum(map(len, cells)),
            "n_planned": len(planned),
            "n_failed": planned.count("failed"),
            "accuracy": _mean(cells, "test/accuracy"),
            "balanced_accuracy": _mean(cells, "test/balanced_accuracy"),
            "train_accuracy": _mean(cells, "train/accuracy"),
            "seconds": float(np.mean([run["seconds"] for cell in cells for run in cell])) if any(cells) else np.nan,
        }
        row["gap"] = row["train_accuracy"] - row["accuracy"]
        if estimate is not None:
            low, high = estimate.interval
            row |= {"low": low, "high": high, "std": estimate.std, "method": estimate.method}
        if difference is not None:
            low, high = difference.interval
            row |= {"difference": difference.value, "difference_low": low, "difference_high": high}
            if self.plan["variants"][variant]["kind"] != "trivial":
                row["p"] = difference.p
        return row, difference

    def difference(self, variant: str, other: str, sizes: Sequence[Size]) -> Estimate | None:
        """Return the paired difference of the metric between two variants, over some sizes, or None without runs."""
        pairs = [self.correct(variant, size) - self.correct(other, size) for size in sizes]
        cells = [self.final_results(variant, size) for size in sizes]
        return self._estimated(statistics.difference, self._over_sizes(pairs), cells)

    def correct(self, variant: str, size: Size) -> pd.DataFrame:
        """Return a table of test images and runs: 1 where a run is correct, 0 where not, NaN where it has not tested.

        Its index are `name` and `occurrence` (0, or more where a name is found repeatedly) of the image, its columns
        `split`, `seed` and `fold` of the run.
        """
        return self._of_finals(variant, size)["correct"]

    def _of_finals(self, variant: str, size: Size) -> dict[str, pd.DataFrame]:
        """Return tables of test images and runs: `correct`, `predicted` and `label`."""
        if (variant, size) not in self._finals:
            columns: dict[tuple[int, int, int], pd.DataFrame] = {}
            for run in self.final_results(variant, size):
                found = self.store.predictions(run["key"])
                predicted = found.probabilities.argmax(axis=1)
                frame = pd.DataFrame(
                    {"predicted": predicted, "label": found.labels, "correct": predicted == found.labels}, dtype=float
                )
                names = pd.Series(found.names)
                frame.index = pd.MultiIndex.from_arrays([names, names.groupby(names).cumcount()])
                fold = -1 if run["fold"] is None else run["fold"]
                columns[run["split"], run["seed"], fold] = frame.rename_axis(index=IMAGE)
            self._finals[variant, size] = {
                value: _aligned({place: frame[value] for place, frame in columns.items()})
                for value in ("correct", "predicted", "label")
            }
        return self._finals[variant, size]

    @cached_property
    def labels(self) -> pd.Series:
        """Label of each test image of any run; its index is that of `correct`."""
        tables = [self._of_finals(variant, size)["label"] for variant in self.variants for size in self.sizes]
        columns = [table.bfill(axis=1).iloc[:, 0] for table in tables if not table.empty]
        found: pd.Series = pd.concat([pd.Series(dtype=float), *columns])
        return found[~found.index.duplicated()].astype(int)

    @staticmethod
    def _over_sizes(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
        """Return images and repetitions, averaged over the sizes; runs that are not there at every size are left out.

        Several splits are the repetitions, with their seeds averaged; else the seeds are. Folds are repetitions, too.
        """
        total = tables[0]
        for table in tables[1:]:
            columns = total.columns.intersection(table.columns)
            total = total[columns] + table[columns]
        mean = total / len(tables)
        runs = mean.columns.to_frame(index=False)
        if (runs["fold"] >= 0).any():
            levels = ["split", "fold"]
        else:
            levels = ["split"] if runs["split"].nunique() > 1 else ["seed"]
        return mean.T.groupby(level=levels).mean().T.dropna(how="all").dropna(axis=1, how="all")

    def _estimated(
        self, estimate: Callable[..., Estimate], table: pd.DataFrame, cells: Sequence[Sequence[dict[str, Any]]]
    ) -> Estimate | None:
        if table.empty:
            return None
        labels = self.labels[table.index].to_numpy() if self.metric == "balanced_accuracy" else None
        images = [run["images"] for cell in cells for run in cell]
        test_share = sum(n["test"] for n in images) / sum(n["train"] + n["val"] for n in images)
        if self.plan["folds"]:
            test_share = 1 / (self.plan["folds"] - 1)
        return estimate(table.to_numpy(), labels, test_share)

    # -------------------------------------------------------------------------------------- one variant at one size

    def _pooled(self, variant: str, size: Size) -> tuple[np.ndarray, np.ndarray]:
        """Return the labels (N,) and probabilities (N, C) of all final runs."""
        runs = [self.store.predictions(run["key"]) for run in self.final_results(variant, size)]
        labels = np.concatenate([np.empty(0, dtype=np.int64), *(run.labels for run in runs)])
        empty = np.empty((0, len(self.class_names)), dtype=np.float32)
        return labels, np.concatenate([empty, *(run.probabilities for run in runs)])

    def per_class(self, variant: str, size: Size) -> pd.DataFrame:
        """Return recall with its 95 % confidence interval, precision and F1 by class, and its number `n` of images."""
        from sklearn.metrics import precision_recall_fscore_support

        labels, probabilities = self._pooled(variant, size)
        rates = ["recall", "low", "high", "precision", "f1"]
        found = pd.DataFrame({"class": self.class_names, "n": 0, **dict.fromkeys(rates, np.nan)})
        if len(labels):
            found["precision"], found["recall"], found["f1"], _ = precision_recall_fscore_support(
                labels, probabilities.argmax(axis=1), labels=range(len(found)), zero_division=np.nan
            )
        correct, cells = self.correct(variant, size), [self.final_results(variant, size)]
        for label, own in correct.groupby(self.labels.reindex(correct.index)):
            found.loc[label, "n"] = len(own)
            if (estimate := self._estimated(statistics.accuracy, self._over_sizes([own]), cells)) is not None:
                found.loc[label, ["low", "high"]] = estimate.interval
        return found

    def auc(self, variant: str, size: Size) -> float:
        """Return the mean over runs of the area under the ROC curve of class 1; NaN unless there are two classes."""
        from sklearn.metrics import roc_auc_score

        if len(self.class_names) != 2:
            return float("nan")
        runs = [self.store.predictions(run["key"]) for run in self.final_results(variant, size)]
        known = [roc_auc_score(run.labels, run.probabilities[:, 1]) for run in runs if np.unique(run.labels).size == 2]
        return float(np.mean(known)) if known else float("nan")

    def calibration(self, variant: str, size: Size) -> Calibration | None:
        """Return the calibration of the predicted probabilities, or None without runs."""
        from sklearn.calibration import calibration_curve
        from sklearn.metrics import brier_score_loss, log_loss

        labels, probabilities = self._pooled(variant, size)
        if not len(labels):
            return None
        p = probabilities.astype(np.float64)
        p /= p.sum(axis=1, keepdims=True)
        # One class against the others: scikit-learn 1.7 is the first with a score of several classes.
        brier = sum(brier_score_loss(labels == c, p[:, c], pos_label=True) for c in range(p.shape[1]))
        correct, confidence = p.argmax(axis=1) == labels, p.max(axis=1)
        accuracy, mean = calibration_curve(correct, confidence, n_bins=10, pos_label=True)
        counts = np.bincount(np.searchsorted(np.linspace(0, 1, 11)[1:-1], confidence))
        bins = pd.DataFrame({"confidence": mean, "accuracy": accuracy, "n": counts[counts > 0]})
        ece = float((bins["n"] * (bins["accuracy"] - bins["confidence"]).abs()).sum() / len(labels))
        return Calibration(len(labels), float(brier), float(log_loss(labels, p, labels=range(p.shape[1]))), ece, bins)

    def confusion(self, variant: str, size: Size) -> np.ndarray:
        """Return rates (C, C), [label, prediction], that sum to 1 per label, or to 0 for a label without images."""
        from sklearn.metrics import confusion_matrix

        labels, probabilities = self._pooled(variant, size)
        classes = range(len(self.class_names))
        if not len(labels):
            return np.zeros((len(classes),) * 2)
        found: np.ndarray = confusion_matrix(labels, probabilities.argmax(axis=1), labels=classes, normalize="true")
        return found

    def disagreements(self, size: Size, n: int) -> list[dict[str, Any]]:
        """Return the images that some variants recognize in more of their runs than others, at most n.

        Trivial baselines do not count. Each image has its `name`, its `label`, which is a class name, and `variants`:
        by name `predicted` (number of runs by predicted class, the most frequent first), `right` and `runs` (numbers of
        runs).
        """
        every = {variant: self._of_finals(variant, size) for variant in self.trained}
        tables = {variant: found for variant, found in every.items() if not found["correct"].empty}
        shares = pd.DataFrame({variant: found["correct"].mean(axis=1) for variant, found in tables.items()}).dropna()
        spread = (shares.max(axis=1) - shares.min(axis=1)).rename("spread")
        turn = spread.groupby([spread, self.labels[spread.index]]).cumcount()  # of equal ones, each class in its turn
        order = pd.DataFrame({"spread": -spread, "turn": turn}).sort_values(["spread", "turn"], kind="stable").index
        spread = spread[order]
        return [
            {
                "name": str(image[0]),
                "label": self.class_names[self.labels[image]],
                "variants": {
                    variant: {
                        "predicted": self._counted(found["predicted"].loc[image].dropna()),
                        "right": int(found["correct"].loc[image].sum()),
                        "runs": int(found["correct"].loc[image].count()),
                    }
                    for variant, found in tables.items()
                },
            }
            for image in spread[spread > 0].index[:n]
        ]

    def _counted(self, labels: pd.Series) -> dict[str, int]:
        """Return how often each class occurs, the most frequent first."""
        counts = Counter(labels.astype(int).tolist())
        return {self.class_names[label]: n for label, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))}

    @cached_property
    def searches(self) -> list[Search]:
        """Searches of all variants that have a trial which ended well."""
        found: dict[tuple[Any, ...], Search] = {}
        for run in self.results.values():
            score = run["metrics"].get(f"val/{self.metric}")
            if (run["kind"], run["status"]) == ("trial", "ok") and score is not None:
                place = run["variant"], run["size"], run["split"], run["fold"]
                found.setdefault(place, Search(*place, [])).trials.append((score, run))
        for search in found.values():
            search.trials.sort(key=lambda trial: -trial[0])
        return list(found.values())

    def validation_curve(self, variant: str, size: Size) -> pd.Series:
        """Return mean validation accuracies by epoch: of the final runs, or else of the best trials; empty without."""
        best = [search.best for search in self.searches if (search.variant, search.size) == (variant, size)]
        for runs in (self.final_results(variant, size), best):
            histories = [run["history"] for run in runs if "val/accuracy" in run["history"]]
            if histories:
                curves = [pd.Series(one["val/accuracy"], one["epoch"], dtype=float) for one in histories]
                return pd.concat(curves, axis=1).mean(axis=1).dropna().sort_index()
        return pd.Series(dtype=float)


def at_size(table: pd.DataFrame, size: Size) -> pd.DataFrame:
    """Return the rows of a table at a training-set size."""
    return table[table["size"].isna() if size is None else table["size"] == size]


def rows(table: pd.DataFrame, variants: Sequence[str]) -> list[dict[Any, Any]]:
    """Return the rows of some variants that have an accuracy, as dictionaries."""
    found: list[dict[Any, Any]] = table[table["accuracy"].notna() & table["variant"].isin(variants)].to_dict("records")
    return found


def _aligned(columns: dict[tuple[int, int, int], pd.Series]) -> pd.DataFrame:
    """Return a table with one column per run and one row per image of any of them."""
    if not columns:
        index, runs = (pd.MultiIndex.from_arrays([[]] * len(names), names=names) for names in (IMAGE, RUN))
        return pd.DataFrame(index=index, columns=runs, dtype=float)
    return pd.concat(columns, axis=1, names=RUN)


def _mean(cells: Sequence[Sequence[dict[str, Any]]], metric: str) -> float:
    """Return the mean over the sizes of the means over their runs; NaN where one has no value."""
    known = [[value for run in cell if (value := run["metrics"].get(metric)) is not None] for cell in cells]
    return float(np.mean([np.mean(values) for values in known])) if all(known) else np.nan
