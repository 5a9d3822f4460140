"""Answers of a comparison as codes and values: which variant is ahead, the pre-trained rival, and the next steps."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable
from typing import Any

from metricloss_pl.compare.checks import Check
from metricloss_pl.compare.filters import is_known
from metricloss_pl.compare.statistics import LEVEL
from metricloss_pl.compare.summary import Summary, rows

__all__ = ["find_headline", "find_next_steps", "find_rival", "kept_checkpoint"]

_WANTED = 0.02  # difference that a next comparison should be able to detect
_PRETRAINED = ("weights", "pretrained")  # settings of a backbone that does not start at random


def find_headline(summary: Summary) -> dict[str, Any]:
    """Return the code of the headline and its values.

    The codes are `no_results`, `single`, `no_test`, `not_significant` and `significant`. The headline is about the
    networks that the comparison trains; trivial baselines and the pre-trained rival are in the table.
    """
    compared = summary.kinds("regime", "factory")
    if summary.baseline not in compared or len(compared) < 2:
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
    if rival is not None and rival["difference"] < -_WANTED:
        steps.append({"code": "use_frozen", "variant": rival["frozen"]["variant"]})
    if "not_above_trivial" in codes:
        steps.append({"code": "learn_more"})
    elif "trained_too_short" in codes:
        steps.append({"code": "train_longer"})
    elif "edge_of_range" in codes:
        steps.append({"code": "widen_range"})
    if headline["code"] == "no_test" or (headline["code"] == "not_significant" and "few_repetitions" in codes):
        steps.append({"code": "more_seeds"})
    elif headline["code"] == "not_significant":
        steps.append({"code": "take_simplest", **_more_data(summary, headline["tested"])})
    elif headline["better"]:
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
