"""Verdict and checks of a comparison as codes and values; the sentences are in the templates."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from metricloss_pl.compare.statistics import LEVEL
from metricloss_pl.compare.summary import Summary, rows
from metricloss_pl.formatting import is_known

__all__ = ["Check", "find_headline", "find_next_steps", "find_rival", "kept_checkpoint", "run_checks"]

_WANTED = 0.02  # difference that a next comparison should be able to detect
_PRETRAINED = ("weights", "pretrained")  # settings of a backbone that does not start at random
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
    if summary.labels.empty:
        return
    counts = pd.Series(np.bincount(summary.labels, minlength=len(summary.class_names)), summary.class_names)
    if (total := int(counts.sum())) < _FEW_TEST_IMAGES:
        yield Check("few_test_images", "warning", {"images": total, "folds": summary.plan["folds"]})
    few = list(counts.index[counts < _FEW_PER_CLASS])
    if few:
        yield Check("few_images_per_class", "note", {"classes": few[:3], "number": len(few), "below": _FEW_PER_CLASS})
    if summary.metric == "accuracy" and counts.min() > 0 and counts.max() / counts.min() > _IMBALANCE:
        yield Check("class_imbalance", "warning", {"ratio": float(counts.max() / counts.min())})


def _repetitions(summary: Summary) -> Iterator[Check]:
    planned = summary.table.loc[summary.table["variant"].isin(summary.trained), "n_planned"].min()
    if planned < _FEW_SEEDS:  # False for NaN
        yield Check("few_repetitions", "warning", {"repetitions": int(planned)})


def _noisy_selection(summary: Summary) -> Iterator[Check]:
    subsets = [subset for subset in summary.plan["data"]["subsets"] if subset["kind"] == "trial"]
    images = {(subset["size"], subset["split"], subset["fold"]): subset["val"] for subset in subsets}
    found, few = [search for search in summary.searches if len(search.trials) > 1], []
    for search in found:
        number = images.get((search.size, search.split, search.fold), math.inf)
        (first, _), (second, _) = search.trials[:2]
        if number < _TELLING_IMAGES and (first - second) * number < _NOISE_IMAGES + 0.5:
            few.append(number)
    if few:
        values = {"images": few, "within": _NOISE_IMAGES, "close": len(few), "searches": len(found)}
        yield Check("noisy_selection", "warning", values)


def _edge_of_range(summary: Summary) -> Iterator[Check]:
    items: dict[tuple[str, str, str], dict[str, Any]] = {}
    for search in summary.searches:
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
    found = rows(summary.table, summary.kinds("regime", "factory", "fine_tuned"))
    rising = [row for row in found if _late_rise(summary.validation_curve(row["variant"], row["size"])) > _RISE]
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


def _late_rise(curve: pd.Series) -> float:
    """Return the rise between the means of the last two fifths of a curve; 0 for fewer than five values."""
    fifth = len(curve) // 5
    return float(curve.iloc[-fifth:].mean() - curve.iloc[-2 * fifth : -fifth].mean()) if fifth else 0.0


def _not_above_trivial(summary: Summary) -> Iterator[Check]:
    for variant in summary.kinds("trivial"):
        accuracy = {row["size"]: row[summary.metric] for row in rows(summary.table, [variant])}
        found = [row for row in rows(summary.table, summary.trained) if accuracy.get(row["size"], 0.0) >= row["low"]]
        if found:
            yield Check("not_above_trivial", "warning", {"places": _places(found), "trivial": variant})


def _large_gap(summary: Summary) -> Iterator[Check]:
    found = [row for row in rows(summary.table, summary.trained) if row["gap"] > _LARGE_GAP]  # False for NaN
    if found:
        yield Check("large_gap", "note", {"places": _places(found), "largest": max(row["gap"] for row in found)})


def _unequal_budgets(summary: Summary) -> Iterator[Check]:
    tuned = [variant for variant in summary.variants if summary.plan["variants"][variant]["space"]]
    planned = [run for run in summary.plan["runs"].values() if run["kind"] == "trial"]
    trials = {variant: sum(run["variant"] == variant for run in planned) for variant in tuned}
    if len(set(trials.values())) > 1:
        yield Check("unequal_budgets", "warning", {"what": "trials", "numbers": trials})
    for size in summary.sizes:
        finals = {variant: summary.final_results(variant, size) for variant in summary.kinds("regime", "factory")}
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


# ------------------------------------------------------------------------------------------------------------- verdict


def find_headline(summary: Summary) -> dict[str, Any]:
    """Return the code of the headline and its values.

    The codes are `no_results`, `single`, `no_test`, `not_significant` and `significant`. Trivial baselines are left
    out.
    """
    compared = summary.trained
    known = rows(summary.overall, compared)
    metric = summary.metric
    others = [row for row in known if row["variant"] != summary.baseline]
    tested = [row for row in others if is_known(row["p_adjusted"])]
    shown = [row for row in tested if row["p_adjusted"] <= LEVEL]
    single = [row for row in rows(summary.table, compared) if is_known(row["p_adjusted"])]
    if len(compared) < 2:
        code = "single"
    elif not known:
        code = "no_results"
    elif not tested:
        code = "no_test"
    else:
        code = "significant" if shown else "not_significant"
    failed = set(summary.overall.loc[summary.overall["n_failed"] > 0, "variant"])
    return {
        "code": code,
        "better": [row for row in shown if row["difference"] > 0],
        "worse": [row for row in shown if row["difference"] <= 0],
        "tested": tested,
        "untested": [name for name in compared if name not in {row["variant"] for row in tested} | {summary.baseline}],
        "partial": bool(failed & {summary.baseline, *(row["variant"] for row in shown)}),
        "highest": [row for row in known if round(row[metric], 3) == max(round(one[metric], 3) for one in known)],
        "detectable": [row["minimum_detectable"] for row in tested if is_known(row["minimum_detectable"])],
        "size_tests": int(summary.table["p"].notna().sum()) if len(summary.sizes) > 1 else 0,
        "size_shown": [row for row in single if row["p_adjusted"] <= LEVEL],
    }


def find_rival(summary: Summary) -> dict[str, Any] | None:
    """Return the best variant trained from scratch, that on frozen features, and their difference in accuracy."""
    frozen = rows(summary.overall, summary.kinds("linear_probe"))
    scratch = rows(summary.overall, [name for name in summary.kinds("regime", "factory") if _is_new(summary, name)])
    if not frozen or not scratch:
        return None
    ours, theirs = (max(group, key=lambda row: row[summary.metric]) for group in (scratch, frozen))
    difference = ours[summary.metric] - theirs[summary.metric]
    estimate = summary.difference(ours["variant"], theirs["variant"], summary.sizes)
    low, high = (math.nan, math.nan) if estimate is None else estimate.interval
    if difference < 0:
        low, high = -high, -low  # of the distance, as that is what the sentence names
    return {"scratch": ours, "frozen": theirs, "difference": difference, "low": low, "high": high}


def _is_new(summary: Summary, variant: str) -> bool:
    """Return whether the settings of a variant name no pre-trained weights."""
    settings = summary.plan["variants"][variant]["settings"]
    return not any(value for name, value in settings.items() if name.rpartition(".")[2] in _PRETRAINED)


def find_next_steps(
    summary: Summary, headline: dict[str, Any], rival: dict[str, Any] | None, found: Iterable[Check]
) -> list[dict[str, Any]]:
    """Return the codes and values of what to do next, the most useful first."""
    codes = {check.code for check in found}
    steps: list[dict[str, Any]] = []
    if "failed_runs" in codes:
        steps.append({"code": "repair"})
    if "missing_runs" in codes:
        steps.append({"code": "resume"})
    if steps:
        return steps
    pretrained = rival is not None and rival["difference"] < -_WANTED
    if pretrained:
        rivals = rows(summary.overall, summary.kinds("linear_probe", "fine_tuned"))
        ahead = max(rivals, key=lambda row: row[summary.metric])
        steps.append({"code": "use_pretrained", "variant": ahead["variant"]})
    if "not_above_trivial" in codes:
        steps.append({"code": "learn_more"})
    elif "trained_too_short" in codes:
        steps.append({"code": "train_longer"})
    elif "edge_of_range" in codes:
        steps.append({"code": "widen_range"})
    if headline["code"] == "no_test" or (headline["code"] == "not_significant" and "few_repetitions" in codes):
        steps.append({"code": "more_seeds"})
    elif headline["code"] == "not_significant" and not pretrained:
        steps.append({"code": "take_simplest", **_more_data(summary, headline["tested"])})
    elif headline["better"] and not pretrained:
        best = max(headline["better"], key=lambda row: row["difference"])
        steps.append({"code": "use_best", "variant": best["variant"]})
    return steps


def _more_data(summary: Summary, tested: list[dict[str, Any]]) -> dict[str, Any]:
    """Return by which factor, and of what, a comparison must grow to detect the wanted difference; empty if it can."""
    widest = max(tested, key=lambda row: row["minimum_detectable"])
    factor = round((widest["minimum_detectable"] / _WANTED) ** 2)
    estimate = summary.difference(widest["variant"], summary.baseline, summary.sizes)
    if factor < 2 or estimate is None:
        return {}
    return {"wanted": _WANTED, "factor": factor, "source": "seeds" if estimate.share > 0.5 else "images"}


def kept_checkpoint(summary: Summary) -> dict[str, Any] | None:
    """Return the checkpoint of the winner and the command that predicts with it, None for a module of the user."""
    run = summary.best_run
    if run is None:
        return None
    checkpoint = str(summary.store.folder / run["checkpoint"])
    program = (summary.plan["command"] or "metricloss compare").partition(" compare")[0]
    command = f"{program} predict --ckpt_path {shlex.quote(checkpoint)} --data.predict_dir new_images"
    is_named = summary.plan["variants"][run["variant"]]["config"] is not None
    return {"variant": run["variant"], "path": checkpoint, "command": command if is_named else None}
