from __future__ import annotations

import pytest

from metricloss_pl.compare import Range, Tuning
from metricloss_pl.compare.tuning import Search, best_trial, score

pytest.importorskip("optuna")

SPACE = {"lr": Range(0.001, 1.0, log=True), "batch": Range(choices=[8, 16])}


def line(accuracy: float, status: str = "ok", nll: float = 1.0, history: list[float] | None = None, **settings):
    history = history or []
    balanced = [1 - value for value in history]  # the other way round
    return {
        "status": status,
        "settings": {"lr": 0.1, "batch": 8, "trainer.max_epochs": 4, **settings},
        "metrics": {"val/accuracy": accuracy, "val/balanced_accuracy": 1 - accuracy, "val/nll": nll}
        if status == "ok"
        else {},
        "history": {
            "epoch": list(range(1, len(history) + 1)),
            "val/accuracy": history,
            "val/balanced_accuracy": balanced,
        },
    }


def search(trial: int, before=(), space=SPACE, metric="accuracy", **tuning) -> Search:
    return Search(Tuning(20, space=space, **tuning), space, trial, before, metric)


def test_first_trials_stand_at_the_same_places_for_all_variants():
    wider = {**SPACE, "weight": Range(0.0, 1.0)}
    first = [search(trial).settings for trial in range(4)]
    shared = [search(trial, space=wider).settings for trial in range(4)]
    assert first == [{name: settings[name] for name in SPACE} for settings in shared]
    rates = sorted(settings["lr"] for settings in first)
    for rate, end in zip(rates, (10**-2.25, 10**-1.5, 10**-0.75, 1.0), strict=True):  # one in each quarter
        assert end * 10**-0.75 <= rate < end


def test_further_trials_follow_the_earlier_ones_and_nothing_else():
    before = [line(rate, lr=0.9 if rate > 0.5 else 0.002) for rate in (0.9, 0.1, 0.95, 0.2, 0.92, 0.15, 0.91, 0.1)]
    proposed = [search(8, before).settings for _ in range(2)]
    assert proposed[0] == proposed[1]
    worse = [line(1 - one["metrics"]["val/accuracy"], lr=one["settings"]["lr"]) for one in before]
    assert proposed[0]["lr"] > search(8, worse).settings["lr"]


def test_a_failed_trial_counts_as_the_worst():
    before = [line(0.3, lr=0.002), line(0.2, lr=0.003)] * 3
    failed = [line(0, "failed", lr=0.9), line(0, "failed", lr=0.8)]
    good = [line(0.9, lr=0.9), line(0.9, lr=0.8)]
    assert search(8, before + failed).settings["lr"] < search(8, before + good).settings["lr"]
    assert score(failed[0], "accuracy") == 0


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_a_hopeless_trial_is_ended_and_a_good_one_is_not(pruner):
    before = [line(0.8, history=[0.5, 0.6, 0.7, 0.8]), line(0.7, history=[0.5, 0.6, 0.6, 0.7])] * 2
    bad, good = search(4, before, pruner=pruner), search(4, before, pruner=pruner)
    assert any(bad.hopeless(epoch / 4, 0.1) for epoch in (1, 2, 3))
    assert not any(good.hopeless(epoch / 4, 0.9) for epoch in (1, 2, 3))


def test_the_median_judges_from_a_fifth_of_the_training_on():
    before = [line(0.8, history=[0.8] * 4)] * 3
    assert not search(3, before).hopeless(0.19, 0.1)
    assert search(3, before).hopeless(0.2, 0.1)
    assert not search(3, before[:2]).hopeless(0.2, 0.1)


def test_halving_lets_the_better_half_go_on():
    before = [line(value, history=[value], **{"trainer.max_epochs": 10}) for value in (0.8, 0.7, 0.6)]
    assert search(3, before, pruner="halving").hopeless(0.1, 0.65)
    assert not search(3, before, pruner="halving").hopeless(0.1, 0.75)


def test_trials_that_were_ended_are_learned_from():
    ended = [[line(0, "pruned", history=[0.1] * 2, lr=rate)] * 4 for rate in (0.9, 0.0015)]
    first, second = (search(8, [line(0.5, lr=0.03)] * 4 + some).settings["lr"] for some in ended)
    assert first != second


@pytest.mark.parametrize("status", ["pruned", "failed"])
def test_trials_that_did_not_end_well_are_no_measure(status):
    """Neither does the median count them, which they would lower, nor do they count by what they had reached."""
    before = [line(0.8, history=[0.8] * 4)] * 3
    assert search(7, before + [line(0, "pruned", history=[0.1] * 4)] * 4).hopeless(0.5, 0.3)
    failed = [line(0, "failed", history=[0.9] * 4)] * 4
    assert not search(4, failed).hopeless(0.5, 0.5)
    assert score({"status": status, "metrics": {"val/accuracy": 0.9}}, "accuracy") == 0


def test_trials_are_judged_by_the_metric_of_the_plan():
    before = [line(0.9, history=[0.9] * 4), line(0.8, history=[0.8] * 4), line(0.7, history=[0.7] * 4)]  # 0.1 to 0.3
    assert search(4, before).hopeless(0.5, 0.5)
    assert not search(4, before, metric="balanced_accuracy").hopeless(0.5, 0.5)
    assert best_trial(before, "accuracy") is before[0]
    assert best_trial(before, "balanced_accuracy") is before[2]


def test_without_a_pruner_every_trial_is_whole():
    before = [line(0.8, history=[0.8] * 4)] * 4
    assert not any(search(4, before, pruner="none").hopeless(epoch / 4, 0.0) for epoch in (1, 2, 3))


def test_the_best_is_that_with_the_better_probabilities_among_equals():
    lines = [line(0.8, nll=0.9), line(0.9, nll=0.7), line(0.9, nll=0.5), line(0.9, nll=0.6), line(0.99, "pruned")]
    assert best_trial(lines, "accuracy") is lines[2]
    assert best_trial([line(0, "failed"), line(0, "pruned")], "accuracy") is None
    assert best_trial([line(0.9, nll=None), line(0.9, nll=5.0)], "accuracy")["metrics"]["val/nll"] == 5
