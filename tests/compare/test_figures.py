"""Arrays of the report's figures, against the stored results."""

from __future__ import annotations

import numpy as np
import pytest

from metricloss_pl.compare import figures
from metricloss_pl.compare.store import Store
from metricloss_pl.compare.summary import Summary
from tests.compare.synthetic import make_comparison

VARIANTS = {"softmax": 0.7, "cosine": 0.9, "forest": 0.5}


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    """A comparison at three sizes, of which the largest has not been trained."""
    folder = make_comparison(
        tmp_path_factory.mktemp("figures"), VARIANTS, sizes=(5, 20, None), trials=4, images=80, class_names="abcd",
        kinds={"forest": "trivial"}, missing=lambda run: run["size"] is None and run["kind"] == "final",
    )  # fmt: skip
    return Summary(folder)


def finals(summary, variant, size):
    runs = Store(summary.store.folder).results().values()
    return [run for run in runs if (run["kind"], run["variant"], run["size"]) == ("final", variant, size)]


def test_the_largest_size_with_results_is_shown(summary):
    assert figures.shown_size(summary) == 20


def test_accuracies(summary):
    series = figures.accuracies(summary)
    assert list(series) == ["softmax", "cosine"]
    for variant, (mean, low, high) in series.items():
        for place, size in enumerate((5, 20)):
            values = [run["metrics"]["test/accuracy"] for run in finals(summary, variant, size)]
            assert mean[place] == pytest.approx(np.mean(values))
            assert low[place] < mean[place] < high[place]
        assert np.isnan([mean[2], low[2], high[2]]).all()


def test_learning_curves_are_those_of_the_final_runs_or_of_the_best_trials(tmp_path):
    summary = Summary(make_comparison(tmp_path, VARIANTS, images=40, class_names="ab", trials=4))
    for number, run in enumerate(finals(summary, "cosine", None)):
        summary.results[run["key"]]["history"] = {"epoch": [1, 2], "val/accuracy": [0.1 * number, 0.5]}
    curves, ends = figures.learning_curves(summary, None)
    assert list(curves) == list(ends) == list(VARIANTS)
    epochs, values = curves["cosine"]
    assert epochs.tolist() == [1, 2]
    np.testing.assert_allclose(values, [0.1, 0.5])
    accuracies = [run["metrics"]["test/accuracy"] for run in finals(summary, "cosine", None)]
    assert ends["cosine"] == pytest.approx(np.mean(accuracies))
    trials = [run for run in summary.results.values() if run["kind"] == "trial" and run["variant"] == "softmax"]
    best = max(trials, key=lambda run: run["metrics"].get("val/accuracy", 0))
    np.testing.assert_allclose(curves["softmax"][1], best["history"]["val/accuracy"])


def test_no_learning_curves_without_a_history_of_accuracies(tmp_path):
    summary = Summary(make_comparison(tmp_path, images=40, class_names="ab"))
    assert figures.learning_curves(summary, None) == ({}, {})


def test_learning_rates(summary):
    found = figures.learning_rates(summary)
    assert list(found) == list(VARIANTS)
    trials = [run for run in summary.results.values() if run["kind"] == "trial" and run["variant"] == "cosine"]
    expected = sorted(
        (run["settings"]["model.optimizer.lr"], run["metrics"]["val/accuracy"])
        for run in trials
        if run["status"] == "ok"
    )
    assert list(zip(*found["cosine"], strict=True)) == expected


def test_recalls_and_confusion(summary):
    recall = figures.recalls(summary, 20)
    assert list(recall) == ["softmax", "cosine"]
    predictions = [summary.store.predictions(run["key"]) for run in finals(summary, "cosine", 20)]
    right = np.concatenate([found.probabilities.argmax(axis=1) == found.labels for found in predictions])
    labels = np.concatenate([found.labels for found in predictions])
    np.testing.assert_allclose(recall["cosine"], [right[labels == label].mean() for label in range(4)])
    rates = np.array([[90.0, 10.0], [25.0, 75.0]])
    assert figures.largest_confusion(rates, ["a", "b"]) == {"true": "b", "predicted": "a", "rate": 0.25}


def test_reliability_leaves_small_bins_out(summary, monkeypatch):
    monkeypatch.setattr(figures, "_LEAST_BIN", 20)
    for variant, (confidence, accuracy) in figures.reliability(summary, 20).items():
        bins = summary.calibration(variant, 20).bins
        large = bins[bins["n"] >= 20]
        assert 0 < len(large) < len(bins)
        np.testing.assert_allclose(confidence, large["confidence"])
        np.testing.assert_allclose(accuracy, large["accuracy"])


def test_embeddings_are_those_of_one_run(summary):
    maps = figures.embeddings(summary, 20)
    assert list(maps) == ["softmax", "cosine"]
    stored = summary.store.predictions(finals(summary, "cosine", 20)[0]["key"])
    points, labels = maps["cosine"]
    np.testing.assert_array_equal(labels, stored.labels)
    centered = stored.embeddings.astype(float) - stored.embeddings.astype(float).mean(axis=0)
    largest = np.linalg.svd(centered, compute_uv=False)[:2]
    np.testing.assert_allclose(np.linalg.norm(points, axis=0), largest, rtol=1e-6)
