"""Checks, headline, rival and next steps: codes and values on simulated results, each rule where it holds and not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metricloss_pl.compare import checks
from metricloss_pl.compare.summary import Summary
from tests.compare.synthetic import make_comparison

SOUND = {"images": 300, "trials": 6, "variants": {"softmax": 0.92, "cosine": 0.92}, "sizes": (20,)}


def summary_of(folder: Path, **settings: Any) -> Summary:
    """Return the tables of a simulated comparison in which no rule finds anything, but for the settings."""
    return Summary(make_comparison(folder, **(SOUND | settings)))


def found(summary: Summary) -> dict[str, checks.Check]:
    return {check.code: check for check in checks.run_checks(summary)}


def edit(folder: Path, kind: str, change: Callable[[dict[str, Any]], None]) -> Summary:
    """Return the tables after a change of all results of a kind."""
    for file in (folder / "runs").iterdir():
        result = json.loads(file.read_text())
        if result["kind"] == kind:
            change(result)
            file.write_text(json.dumps(result))
    return Summary(folder)


def set_rate(summary: Summary, chosen: float) -> Summary:
    """Return the tables after all searches have chosen a learning rate, whose trainings have converged."""

    def change(result):
        best = result["trial"] == 0
        result["settings"]["model.optimizer.lr"] = chosen if best else 0.02 + 0.01 * result["trial"]
        result["status"], result["metrics"]["val/accuracy"] = "ok", 0.9 if best else 0.5
        result["history"]["val/accuracy"] = [0.9] * 10

    return edit(summary.store.folder, "trial", change)


def test_a_sound_comparison_has_no_findings(tmp_path):
    assert found(set_rate(summary_of(tmp_path), 0.03)) == {}


def test_failed_and_missing_runs(tmp_path):
    summary = summary_of(
        tmp_path,
        failing=lambda run: run["kind"] == "final" and run["variant"] == "cosine" and run["seed"] == 1,
        missing=lambda run: run["kind"] == "final" and run["seed"] == 2,
    )
    codes = found(summary)
    failed = codes["failed_runs"]
    assert failed.severity == "error"
    assert failed.values == {
        "variant": "cosine", "failed": 1, "planned": 3, "reason": "train/loss is not finite at step 12 <b>"
    }  # fmt: skip
    assert codes["missing_runs"].values == {"missing": 2, "planned": 6}
    severities = [check.severity for check in checks.run_checks(summary)]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


TWO = {"class_names": ["a", "b"]}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"warnings": ["3 images"]}, {"plan": {"text": "3 images"}}),
        ({"images": 90}, {"few_test_images": {"images": 90, "folds": None}}),
        ({"images": 110}, {}),
        ({"seeds": (0, 1)}, {"few_repetitions": {"repetitions": 2}}),
        ({**TWO, "labels": np.repeat([0, 1], (100, 100))}, {}),
        ({**TWO, "labels": np.repeat([0, 1], (90, 29))}, {"class_imbalance": {"ratio": 90 / 29}}),
        ({**TWO, "labels": np.repeat([0, 1], (90, 31))}, {}),
        ({**TWO, "labels": np.repeat([0, 1], (90, 29)), "metric": "balanced_accuracy"}, {}),
        (
            {**TWO, "labels": np.repeat([0, 1], (190, 4)), "metric": "balanced_accuracy"},
            {"few_images_per_class": {"classes": ["b"], "number": 1, "below": 5}},
        ),
    ],
)
def test_too_few_images_or_seeds(tmp_path, settings, expected):
    rules = {"plan", "few_test_images", "few_repetitions", "class_imbalance", "few_images_per_class"}
    codes = found(summary_of(tmp_path, **settings))
    assert {code: check.values for code, check in codes.items() if code in rules} == expected


@pytest.mark.parametrize(("images", "lead", "noisy"), [(50, 5, True), (50, 6, False), (60, 5, False)])
def test_noisy_selection(tmp_path, images, lead, noisy):
    """Six discordant images of one sign are the fewest with which McNemar's exact test reaches 0.05."""
    assert 2 * 0.5**6 < 0.05 < 2 * 0.5**5
    summary = summary_of(tmp_path, trials=3)

    def change(result):
        result |= {"status": "ok", "metrics": {"val/accuracy": 0.5 + (lead / images if result["trial"] == 1 else 0)}}

    summary = edit(tmp_path, "trial", change)
    for subset in summary.plan["data"]["subsets"]:
        subset["val"] = images
    codes = found(summary)
    assert ("noisy_selection" in codes) == noisy
    if noisy:
        values = {"images": [50, 50], "within": 5, "close": 2, "searches": 2}
        assert codes["noisy_selection"].values == values


@pytest.mark.parametrize(("chosen", "end"), [(0.0015, "lower"), (0.9, "upper"), (0.004, None), (0.3, None)])
def test_edge_of_range(tmp_path, chosen, end):
    """The outer tenths of 0.001 to 1 on a logarithmic scale end at 0.002 and begin at 0.5."""
    codes = found(set_rate(summary_of(tmp_path), chosen))
    assert ("edge_of_range" in codes) == (end is not None)
    if end is not None:
        items = codes["edge_of_range"].values["items"]
        assert [(item["variant"], item["end"]) for item in items] == [("softmax", end), ("cosine", end)]
        assert (items[0]["setting"], items[0]["low"], items[0]["high"]) == ("model.optimizer.lr", 0.001, 1.0)


@pytest.mark.parametrize(
    ("accuracy", "slope", "expected"),
    [(0.95, 0.0, None), (0.85, 0.0, "unfitted"), (0.95, 0.006, "rising"), (0.95, 0.004, None)],
)
def test_trained_too_short(tmp_path, accuracy, slope, expected):
    """A slope per epoch of which the two last fifths of ten epochs differ by twice as much."""
    summary_of(tmp_path)

    def change(result):
        result["metrics"]["train/accuracy"] = accuracy
        result["history"]["val/accuracy"] = [0.5 + slope * epoch for epoch in range(10)]

    codes = found(edit(tmp_path, "final", change))
    assert ("trained_too_short" in codes) == (expected is not None)
    if expected is not None:
        values = codes["trained_too_short"].values
        assert values[expected] == {(20,): ["softmax", "cosine"]}
        assert values[{"rising": "unfitted", "unfitted": "rising"}[expected]] == {}


def test_not_above_trivial(tmp_path):
    """A variant must be better than a trivial baseline with its whole interval."""
    variants = {"softmax": {5: 0.7, 20: 0.9}, "cosine": 0.9, "forest": 0.4, "majority": 0.1}
    kinds = {"forest": "trivial", "majority": "trivial"}
    summary = summary_of(tmp_path, variants=variants, sizes=(5, 20), kinds=kinds)
    assert "not_above_trivial" not in found(summary)
    softmax = summary.table.iloc[0]
    summary.table.loc[2, "accuracy"] = (softmax["low"] + softmax["accuracy"]) / 2
    assert found(summary)["not_above_trivial"].values == {"places": {(5,): ["softmax"]}, "trivial": "forest"}


def test_large_gap(tmp_path):
    summary = summary_of(tmp_path)

    def change(result):
        result["metrics"]["train/accuracy"] = 1.0 if result["variant"] == "cosine" else 0.95
        result["metrics"]["test/accuracy"] = 0.79 if result["variant"] == "cosine" else 0.76

    summary = edit(tmp_path, "final", change)
    values = found(summary)["large_gap"].values
    assert values["places"] == {(20,): ["cosine"]}
    assert values["largest"] == pytest.approx(0.21)


def test_unequal_budgets(tmp_path):
    """A trial less, or more steps."""
    summary = summary_of(tmp_path)
    key = next(key for key, run in summary.plan["runs"].items() if run["trial"] == 5 and run["variant"] == "cosine")
    del summary.plan["runs"][key]
    assert found(summary)["unequal_budgets"].values == {"what": "trials", "numbers": {"softmax": 6, "cosine": 5}}
    longer = edit(tmp_path, "final", lambda result: result.update(steps=300 if result["variant"] == "cosine" else 200))
    values = found(longer)["unequal_budgets"].values
    assert values == {"what": "steps", "numbers": {"softmax": 200, "cosine": 300}}


# ------------------------------------------------------------------------------------------------------------- verdict


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"missing": lambda run: True}, "no_results"),
        ({"variants": {"softmax": 0.8}}, "single"),
        ({"seeds": (0,)}, "no_test"),
        ({}, "not_significant"),
        ({"variants": {"softmax": 0.6, "cosine": 0.9}}, "significant"),
    ],
)
def test_codes_of_the_headline(tmp_path, settings, code):
    assert checks.find_headline(summary_of(tmp_path, **settings))["code"] == code


def test_values_of_the_headline(tmp_path):
    variants = {"softmax": {5: 0.7, 20: 0.7}, "cosine": {5: 0.95, 20: 0.72}, "center": 0.4, "gone": 0.5}
    summary = summary_of(
        tmp_path, variants=variants, sizes=(5, 20), images=400, seeds=range(5),
        missing=lambda run: run["variant"] == "gone" and run["kind"] == "final",
        failing=lambda run: run["variant"] == "softmax" and run["size"] == 5 and run["seed"] == 4,
    )  # fmt: skip
    headline = checks.find_headline(summary)
    assert [row["variant"] for row in headline["better"]] == ["cosine"]
    assert [row["variant"] for row in headline["worse"]] == ["center"]
    assert headline["untested"] == ["gone"]
    assert headline["partial"]
    assert [row["variant"] for row in headline["highest"]] == ["cosine"]
    assert headline["size_tests"] == 4
    shown = {(row["variant"], row["size"]) for row in headline["size_shown"]}
    assert shown == {("cosine", 5), ("center", 5), ("center", 20)}
    assert len(headline["detectable"]) == 2


def test_trivial_baselines_are_not_in_the_headline(tmp_path):
    variants = {"softmax": 0.7, "cosine": 0.7, "probe": 0.95, "majority": 0.1}
    kinds = {"probe": "linear_probe", "majority": "trivial"}
    headline = checks.find_headline(summary_of(tmp_path, variants=variants, kinds=kinds))
    assert [row["variant"] for row in headline["better"]] == ["probe"]
    assert [row["variant"] for row in headline["highest"]] == ["probe"]
    assert headline["worse"] == []


@pytest.mark.parametrize(("probe", "sign"), [(0.95, -1), (0.5, 1)])
def test_the_rival(tmp_path, probe, sign):
    variants = {"softmax": 0.7, "cosine": 0.75, "fine": 0.9, "probe": probe}
    kinds = {"fine": "fine_tuned", "probe": "linear_probe"}
    summary = summary_of(tmp_path, variants=variants, kinds=kinds)
    rival = checks.find_rival(summary)
    scratch = max(("softmax", "cosine"), key=lambda name: np.nanmean(summary.correct(name, 20)))
    expected = np.nanmean(summary.correct(scratch, 20)) - np.nanmean(summary.correct("probe", 20))
    assert (rival["scratch"]["variant"], rival["frozen"]["variant"]) == (scratch, "probe")
    assert rival["difference"] == pytest.approx(expected)
    assert np.sign(rival["difference"]) == sign
    assert 0 < rival["low"] < abs(expected) < rival["high"]


def test_a_network_with_pretrained_weights_is_not_from_scratch(tmp_path):
    summary = summary_of(tmp_path, variants={"softmax": 0.7, "probe": 0.9}, kinds={"probe": "linear_probe"})
    assert checks.find_rival(summary) is not None
    summary.plan["variants"]["softmax"]["settings"] = {"model.backbone.init_args.weights": "DEFAULT"}
    assert checks.find_rival(summary) is None
    assert checks.find_rival(summary_of(tmp_path / "none")) is None


@pytest.mark.parametrize(
    ("settings", "codes"),
    [
        ({"missing": lambda run: run["kind"] == "final" and run["seed"] == 1}, ["resume"]),
        ({"failing": lambda run: run["kind"] == "final" and run["seed"] == 1}, ["repair"]),
        ({"seeds": (0,)}, ["more_seeds"]),
        ({"seeds": (0, 1)}, ["more_seeds"]),
        ({}, ["take_simplest"]),
        ({"variants": {"softmax": 0.85, "cosine": 0.97}}, ["use_best"]),
        ({"variants": {"softmax": 0.97, "cosine": 0.85}}, []),
        ({"variants": {"softmax": 0.85, "x": 0.99}, "kinds": {"x": "linear_probe"}}, ["use_pretrained"]),
        ({"variants": {"softmax": 0.85, "x": 0.85}, "kinds": {"x": "trivial"}}, ["learn_more"]),
    ],
)
def test_next_steps(tmp_path, settings, codes):
    summary = set_rate(summary_of(tmp_path, **settings), 0.03)
    headline, rival = checks.find_headline(summary), checks.find_rival(summary)
    assert [
        step["code"] for step in checks.find_next_steps(summary, headline, rival, checks.run_checks(summary))
    ] == codes


@pytest.mark.parametrize(("spread", "source"), [(0.8, "seeds"), (0.02, "images")])
def test_growth_that_detects_two_points(tmp_path, spread, source):
    summary = summary_of(tmp_path, training_std=spread, seeds=range(6))
    headline = checks.find_headline(summary)
    [step] = checks.find_next_steps(summary, headline, None, [])
    assert step["factor"] == round((headline["detectable"][0] / 0.02) ** 2)
    assert step["source"] == source


def test_the_checkpoint_that_is_kept(tmp_path):
    assert checks.kept_checkpoint(summary_of(tmp_path / "a b")) is None

    def change(result):
        result["checkpoint"] = f"trained/{result['key']}/last.ckpt"

    summary = edit(tmp_path / "a b", "final", change)
    path = str(tmp_path / "a b" / "trained" / summary.best_run["key"] / "last.ckpt")
    found = checks.kept_checkpoint(summary)
    assert found["path"] == path
    assert found["command"] == f"metricloss predict --ckpt_path '{path}' --data.predict_dir new_images"
    summary.plan["command"] = "python cli.py compare --config digits.yaml"
    assert checks.kept_checkpoint(summary)["command"].startswith("python cli.py predict ")
    summary.plan["variants"][found["variant"]]["config"] = None
    assert checks.kept_checkpoint(summary)["command"] is None
