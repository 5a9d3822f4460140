"""Verdict and checks of a comparison as codes and values; the sentences are in the templates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

    from metricloss_pl.compare.summary import Summary

__all__ = [
    "Check",
    "Search",
    "averaged",
    "class_counts",
    "is_known",
    "kinds",
    "records",
    "rows",
    "run_checks",
    "searches",
    "trained",
    "validation_curve",
]

_SEVERITIES = ("error", "warning", "note")
_FEW_TEST_IMAGES = 100  # below, one image is more than one percentage point
_FEW_PER_CLASS = 5
_FEW_SEEDS = 3
# McNemar's exact test of two trials needs six discordant images, all of one sign, to reach p <= 0.05.
_NOISE_IMAGES = 5
_TELLING_IMAGES = 10 * (_NOISE_IMAGES + 1)  # validation images of which those make less than a tenth
_FITTED = 0.9  # training accuracy below which a training has not converged
_RISE = 0.01  # of the validation accuracy between the last two fifths of the epochs
_LARGE_GAP = 0.2
_IMBALANCE = 3  # images of the largest class over those of the smallest
_EDGE = 0.1  # of a range, at either end, on its own scale
_FEWEST_VALUES = 4  # tried ones, for the highest or lowest among them to mean something


@dataclass(frozen=True)
class Check:
    """Finding that limits the conclusions.

    Args:
        code: Name of the finding; the templates hold its sentence.
        severity: `error`, `warning` or `note`.
        values: Values of the sentence.
    """

    code: str
    severity: str
    values: dict[str, Any]


def run_checks(summary: Summary) -> list[Check]:
    """Return the findings of all rules, the most severe first."""
    found = [check for rule in _RULES for check in rule(summary)]
    return sorted(found, key=lambda check: _SEVERITIES.index(check.severity))


def kinds(summary: Summary, *names: str) -> list[str]:
    """Return the variants of some kinds, in their order."""
    return [variant for variant in summary.variants if summary.plan["variants"][variant]["kind"] in names]


def trained(summary: Summary) -> list[str]:
    """Return the variants that are no trivial baselines."""
    return [variant for variant in summary.variants if summary.plan["variants"][variant]["kind"] != "trivial"]


def rows(table: pd.DataFrame, variants: list[str]) -> list[dict[str, Any]]:
    """Return the rows of some variants that have an accuracy, as dictionaries."""
    return [row for row in records(table) if row["variant"] in variants and is_known(row["accuracy"])]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def averaged(summary: Summary) -> pd.DataFrame:
    """Return one row per variant: the mean over the training-set sizes where there are several."""
    return summary.overall if len(summary.sizes) > 1 else summary.table


def is_known(value: Any) -> bool:
    """Return whether a cell of a table holds a number."""
    return value is not None and not math.isnan(value)


def _failed_and_missing(summary: Summary) -> Iterator[Check]:
    table = summary.table
    failed = table[table["n_failed"] > 0]
    for variant, group in failed.groupby("variant", sort=False):
        numbers = {"failed": int(group["n_failed"].sum()), "planned": int(group["n_planned"].sum())}
        reasons = [
            run["reason"] for run in summary.results.values() if run["status"] == "failed" and run["variant"] == variant
        ]
        yield Check("failed_runs", "error", {"variant": variant, **numbers, "reason": next(iter(reasons), None)})
    missing = int((table["n_planned"] - table["n_runs"] - table["n_failed"]).sum())
    if missing:
        yield Check("missing_runs", "error", {"missing": missing, "planned": int(table["n_planned"].sum())})


def _plan_warnings(summary: Summary) -> Iterator[Check]:
    for text in dict.fromkeys(summary.plan["warnings"]):
        yield Check("plan", "warning", {"text": text})


def _test_images(summary: Summary) -> Iterator[Check]:
    counts = class_counts(summary)
    if counts is None:
        return
    if (total := int(counts["n"].sum())) < _FEW_TEST_IMAGES:
        yield Check("few_test_images", "warning", {"images": total, "folds": summary.plan["folds"]})
    few = counts[counts["n"] < _FEW_PER_CLASS]
    if len(few):
        names = list(few["class"].head(3))
        yield Check("few_images_per_class", "note", {"classes": names, "number": len(few), "below": _FEW_PER_CLASS})
    if summary.metric == "accuracy" and (smallest := counts["n"].min()) > 0:
        ratio = counts["n"].max() / smallest
        if ratio > _IMBALANCE:
            yield Check("class_imbalance", "warning", {"ratio": float(ratio)})


def class_counts(summary: Summary) -> pd.DataFrame | None:
    """Return the test images per class, `class` and `n`; None where no run has finished."""
    for row in reversed(rows(summary.table, summary.variants)):
        return summary.per_class(row["variant"], row["size"])[["class", "n"]]
    return None


def _repetitions(summary: Summary) -> Iterator[Check]:
    planned = [row["n_planned"] for row in records(summary.table) if row["variant"] in trained(summary)]
    if planned and min(planned) < _FEW_SEEDS:
        yield Check("few_repetitions", "warning", {"repetitions": min(planned)})


def _noisy_selection(summary: Summary) -> Iterator[Check]:
    subsets = [subset for subset in summary.plan["data"]["subsets"] if subset["kind"] == "trial"]
    images = {(subset["size"], subset["split"], subset["fold"]): subset["val"] for subset in subsets}
    found, few = [search for search in searches(summary) if len(search.trials) > 1], []
    for search in found:
        number = images.get((search.size, search.split, search.fold), math.inf)
        (first, _), (second, _) = search.trials[:2]
        if number < _TELLING_IMAGES and (first - second) * number < _NOISE_IMAGES + 0.5:
            few.append(number)
    if few:
        values = {"images": few, "within": _NOISE_IMAGES, "close": len(few), "searches": len(found)}
        yield Check("noisy_selection", "warning", values)


class Search(NamedTuple):
    """Trials among which one is chosen.

    Args:
        variant: Variant that is tuned.
        size: Training images per class.
        split: Subsample.
        fold: Fold.
        trials: Scores and results of the trials that ended well, the best first.
    """

    variant: str
    size: int | None
    split: int
    fold: int | None
    trials: list[tuple[float, dict[str, Any]]]

    @property
    def best(self) -> dict[str, Any]:
        """Result of the trial with the highest score."""
        return self.trials[0][1]


def searches(summary: Summary) -> list[Search]:
    """Return the searches of all variants that have a trial which ended well."""
    found: dict[tuple[Any, ...], Search] = {}
    for run in summary.results.values():
        score = run["metrics"].get(f"val/{summary.metric}")
        if (run["kind"], run["status"]) == ("trial", "ok") and score is not None:
            place = run["variant"], run["size"], run["split"], run["fold"]
            found.setdefault(place, Search(*place, [])).trials.append((score, run))
    for search in found.values():
        search.trials.sort(key=lambda trial: -trial[0])
    return list(found.values())


def _edge_of_range(summary: Summary) -> Iterator[Check]:
    items: dict[tuple[str, str, str], dict[str, Any]] = {}
    for search in searches(summary):
        for name, space in summary.plan["variants"][search.variant]["space"].items():
            tried, best = {run["settings"][name] for _, run in search.trials}, search.best["settings"][name]
            if "low" not in space or len(tried) < _FEWEST_VALUES:
                continue
            scale: Callable[[float], float] = math.log if space["log"] else float
            low, high, value = (scale(number) for number in (space["low"], space["high"], best))
            place = (value - low) / (high - low)
            end = "lower" if place < _EDGE else "upper" if place > 1 - _EDGE else None
            if end is not None and best in (min(tried), max(tried)):
                item = {"variant": search.variant, "setting": name, "end": end, "low": space["low"]}
                items[search.variant, name, end] = item | {"high": space["high"]}
    if items:
        yield Check("edge_of_range", "warning", {"items": list(items.values())})


def _trained_too_short(summary: Summary) -> Iterator[Check]:
    found = rows(summary.table, kinds(summary, "regime", "factory", "fine_tuned"))
    rising = [row for row in found if _late_rise(validation_curve(summary, row["variant"], row["size"])[1]) > _RISE]
    unfitted = [row for row in found if row["train_accuracy"] < _FITTED]  # False for NaN
    if rising or unfitted:
        lowest = min((row["train_accuracy"] for row in unfitted), default=None)
        values = {"rising": _places(rising), "unfitted": _places(unfitted), "below": _FITTED, "lowest": lowest}
        yield Check("trained_too_short", "warning", {**values, "steps": summary.plan["steps"]})


def _places(found: list[dict[str, Any]]) -> dict[tuple[int | None, ...], list[str]]:
    """Return the variants of rows of the table, by the training-set sizes that they have among the rows."""
    sizes: dict[str, list[int | None]] = {}
    for row in found:
        sizes.setdefault(row["variant"], []).append(row["size"])
    places: dict[tuple[int | None, ...], list[str]] = {}
    for variant, own in sizes.items():
        places.setdefault(tuple(dict.fromkeys(own)), []).append(variant)
    return places


def validation_curve(summary: Summary, variant: str, size: int | None) -> tuple[list[int], list[float]]:
    """Return epochs and mean validation accuracies of the final runs, or else of the best trials; empty without."""
    best = [search.best for search in searches(summary) if (search.variant, search.size) == (variant, size)]
    for runs in (summary.final_results(variant, size), best):
        values: dict[int, list[float]] = {}
        for run in runs:
            history = run["history"]
            for epoch, value in zip(history.get("epoch", ()), history.get("val/accuracy", ()), strict=False):
                if value is not None:
                    values.setdefault(epoch, []).append(value)
        if values:
            return sorted(values), [sum(values[epoch]) / len(values[epoch]) for epoch in sorted(values)]
    return [], []


def _late_rise(curve: list[float]) -> float:
    """Return the rise between the means of the last two fifths of a curve; 0 for fewer than five values."""
    fifth = len(curve) // 5
    return sum(curve[-fifth:]) / fifth - sum(curve[-2 * fifth : -fifth]) / fifth if fifth else 0.0


def _not_above_trivial(summary: Summary) -> Iterator[Check]:
    trivial, metric = rows(summary.table, kinds(summary, "trivial")), summary.metric
    found, beaten_by = [], {}
    for row in rows(summary.table, trained(summary)):
        for other in trivial:
            if other["size"] == row["size"] and other[metric] >= row["low"]:
                beaten_by[other["variant"]] = other
                found.append(row)
    if found:
        yield Check("not_above_trivial", "warning", {"places": _places(found), "trivial": list(beaten_by)})


def _large_gap(summary: Summary) -> Iterator[Check]:
    found = [row for row in rows(summary.table, trained(summary)) if row["gap"] > _LARGE_GAP]  # False for NaN
    if found:
        yield Check("large_gap", "note", {"places": _places(found), "largest": max(row["gap"] for row in found)})


def _unequal_budgets(summary: Summary) -> Iterator[Check]:
    tuned = [variant for variant in summary.variants if summary.plan["variants"][variant]["space"]]
    planned = [run for run in summary.plan["runs"].values() if run["kind"] == "trial"]
    trials = {variant: sum(run["variant"] == variant for run in planned) for variant in tuned}
    if len(set(trials.values())) > 1:
        yield Check("unequal_budgets", "warning", {"what": "trials", "numbers": trials})
    for size in summary.sizes:
        finals = {variant: summary.final_results(variant, size) for variant in kinds(summary, "regime", "factory")}
        steps = {variant: max(run["steps"] for run in runs) for variant, runs in finals.items() if runs}
        if len(set(steps.values())) > 1:
            yield Check("unequal_budgets", "warning", {"what": "steps", "numbers": steps})


_RULES: tuple[Callable[[Summary], Iterator[Check]], ...] = (
    _failed_and_missing,
    _plan_warnings,
    _not_above_trivial,
    _test_images,
    _repetitions,
    _noisy_selection,
    _edge_of_range,
    _trained_too_short,
    _unequal_budgets,
    _large_gap,
)
