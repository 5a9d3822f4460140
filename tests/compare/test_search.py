from __future__ import annotations

import pytest

from metricloss_pl.compare.config import Range, Tuning
from metricloss_pl.compare.search import Search, best_run, best_trial, score_of
from metricloss_pl.compare.store import Store
from tests.compare.synthetic import make_comparison

pytest.importorskip("optuna")

SPACE = {"lr": Range(0.001, 1.0, log=True), "batch": Range(choices=[8, 16])}


def result(accuracy: float, status: str = "ok", nll: float | None = 1.0, history=(), epochs: int = 4, **settings):
    balanced = [1 - value for value in history]  # the other way round
    metrics = {"val/accuracy": accuracy, "val/balanced_accuracy": 1 - accuracy, "val/nll": nll}
    return {
        "status": status,
        "settings": {"lr": 0.1, "batch": 8, **settings},
        "metrics": metrics if status == "ok" else {},
        "planned_epochs": epochs,
        "history": {
            "epoch": list(range(1, len(history) + 1)), "val/accuracy": list(history), "val/balanced_accuracy": balanced,
        },
    }  # fmt: skip


def search(trial: int, before=(), space=SPACE, metric="accuracy", start=None, **tuning) -> Search:
    return Search(Tuning(20, space=space, **tuning), space, trial, before, metric, start or {})


def test_first_trials_are_at_the_same_places_for_all_variants():
    wider = {**SPACE, "weight": Range(0.0, 1.0)}
    first = [search(trial).settings for trial in range(4)]
    shared = [search(trial, space=wider).settings for trial in range(4)]
    assert first == [{name: settings[name] for name in SPACE} for settings in shared]
    rates = sorted(settings["lr"] for settings in first)
    for rate, end in zip(rates, (10**-2.25, 10**-1.5, 10**-0.75, 1.0), strict=True):  # one in each quarter
        assert end * 10**-0.75 <= rate < end


def test_the_first_trial_has_the_values_of_the_run_file():
    start = {"lr": 0.0123}
    assert search(0, start=start).settings == {**search(0).settings, **start}
    assert search(1, start=start).settings == search(1).settings


def test_later_trials_follow_the_earlier_ones_and_nothing_else():
    before = [result(rate, lr=0.9 if rate > 0.5 else 0.002) for rate in (0.9, 0.1, 0.95, 0.2, 0.92, 0.15, 0.91, 0.1)]
    proposed = [search(8, before).settings for _ in range(2)]
    assert proposed[0] == proposed[1]
    worse = [result(1 - one["metrics"]["val/accuracy"], lr=one["settings"]["lr"]) for one in before]
    assert proposed[0]["lr"] > search(8, worse).settings["lr"]


def test_a_failed_trial_counts_as_the_worst():
    before = [result(0.3, lr=0.002), result(0.2, lr=0.003)] * 3
    failed = [result(0, "failed", lr=0.9), result(0, "failed", lr=0.8)]
    good = [result(0.9, lr=0.9), result(0.9, lr=0.8)]
    assert search(8, before + failed).settings["lr"] < search(8, before + good).settings["lr"]
    assert score_of(failed[0], "accuracy") == 0


@pytest.mark.parametrize("pruner", ["median", "successive_halving"])
def test_a_hopeless_trial_is_stopped_and_a_good_one_is_not(pruner):
    before = [result(0.8, history=[0.5, 0.6, 0.7, 0.8]), result(0.7, history=[0.5, 0.6, 0.6, 0.7])] * 2
    bad, good = search(4, before, pruner=pruner), search(4, before, pruner=pruner)
    assert any(bad.is_hopeless(epoch / 4, 0.1) for epoch in (1, 2, 3))
    assert not any(good.is_hopeless(epoch / 4, 0.9) for epoch in (1, 2, 3))


def test_the_median_judges_from_a_fifth_of_the_training_and_after_three_trials():
    before = [result(0.8, history=[0.8] * 4)] * 3
    assert not search(3, before).is_hopeless(0.19, 0.1)
    assert search(3, before).is_hopeless(0.2, 0.1)
    assert not search(3, before[:2]).is_hopeless(0.2, 0.1)


def test_pruned_trials_are_learned_from():
    pruned = [[result(0, "pruned", history=[0.1] * 2, lr=rate)] * 4 for rate in (0.9, 0.0015)]
    first, second = (search(8, [result(0.5, lr=0.03)] * 4 + some).settings["lr"] for some in pruned)
    assert first != second


@pytest.mark.parametrize("status", ["pruned", "failed"])
def test_trials_without_a_result_are_no_measure(status):
    """The median does not count them, and they do not count by what they had reached."""
    before = [result(0.8, history=[0.8] * 4)] * 3
    assert search(7, before + [result(0, "pruned", history=[0.1] * 4)] * 4).is_hopeless(0.5, 0.3)
    assert not search(4, [result(0, "failed", history=[0.9] * 4)] * 4).is_hopeless(0.5, 0.5)
    assert score_of({"status": status, "metrics": {"val/accuracy": 0.9}}, "accuracy") == 0


def test_trials_are_judged_by_the_metric_of_the_plan():
    before = [result(0.9, history=[0.9] * 4), result(0.8, history=[0.8] * 4), result(0.7, history=[0.7] * 4)]
    assert search(4, before).is_hopeless(0.5, 0.5)
    assert not search(4, before, metric="balanced_accuracy").is_hopeless(0.5, 0.5)
    assert best_trial(before, "accuracy") is before[0]
    assert best_trial(before, "balanced_accuracy") is before[2]


def test_without_a_pruner_every_trial_is_complete():
    before = [result(0.8, history=[0.8] * 4)] * 4
    assert not any(search(4, before, pruner="none").is_hopeless(epoch / 4, 0.0) for epoch in (1, 2, 3))


def test_the_best_of_equal_trials_has_the_better_probabilities():
    of = [
        result(0.8, nll=0.9),
        result(0.9, nll=0.7),
        result(0.9, nll=0.5),
        result(0.9, nll=0.6),
        result(0.99, "pruned"),
    ]
    assert best_trial(of, "accuracy") is of[2]
    assert best_trial([result(0, "failed"), result(0, "pruned")], "accuracy") is None
    assert best_trial([result(0.9, nll=None), result(0.9, nll=5.0)], "accuracy")["metrics"]["val/nll"] == 5


def test_the_best_run_is_chosen_on_validation_images_at_the_largest_size(tmp_path):
    """By test accuracy it would be another variant."""
    folder = make_comparison(tmp_path, {"a": 0.9, "b": 0.5, "c": 0.7}, sizes=(5, None), trials=3, folds=2, images=40)
    store = Store(folder)
    plan, results = store.plan(), store.results()
    for found in results.values():
        if found["kind"] == "trial" and found["status"] == "ok":
            better = "b" if found["size"] is None else "c"
            found["metrics"]["val/accuracy"] = 0.8 if found["variant"] == better else 0.6
    best = plan["runs"][best_run(plan, results)]
    assert (best["variant"], best["size"], best["seed"], best["fold"]) == ("b", None, 0, 0)


def test_without_tuning_the_best_run_is_the_baselines(tmp_path):
    store = Store(make_comparison(tmp_path, {"a": 0.5, "b": 0.9}, images=20, baseline="b", failing=lambda run: False))
    assert store.plan()["runs"][best_run(store.plan(), store.results())]["variant"] == "b"
    assert best_run(store.plan(), {}) is None
