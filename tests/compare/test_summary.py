"""The rows of the tables beside loops over the stored predictions."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from metricloss_pl.compare import statistics
from metricloss_pl.compare.summary import read
from tests.compare.simulated import make_results

LABELS = [0] * 6 + [1] * 20 + [3] * 34  # no test image of class 2


def make(folder, metric):
    make_results(
        folder, {"a": 0.0, "b": 1.0}, (None, 10), range(3), class_names="wxyz", labels=LABELS, epochs=2, trials=2,
        metric=metric, failing=lambda run: (run["variant"], run["samples_per_class"], run["seed"]) == ("b", 10, 2),
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "final" and line["status"] == "ok"]


def correct(folder, run):
    with np.load(folder / run["predictions"]) as stored:
        return stored["probabilities"].argmax(1) == stored["labels"]


def table(folder, runs, metric, centred):
    """(N, U) of one variant at one size: 1 or 0 a right or wrong image, or what its class makes of it."""
    columns = []
    for run in sorted(runs, key=lambda run: run["seed"]):
        column = correct(folder, run).astype(float)
        if metric == "balanced_accuracy":
            weights = np.array([len(LABELS) / (3 * LABELS.count(label)) for label in LABELS])
            mean = balanced_accuracy_score(LABELS, np.where(column == 1, LABELS, 2)) if centred else 0.0
            column = weights * (column - mean) + mean
        columns.append(column)
    return np.array(columns).T


def values(estimate):
    return [estimate.mean, estimate.spread, estimate.low, estimate.high, estimate.repetitions, estimate.images]


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_rows_beside_loops(tmp_path, metric):
    finals = make(tmp_path, metric)
    found = read(tmp_path)
    assert found.test_images.tolist() == [6, 20, 0, 34]
    assert [row.sizes for row in found.rows] == [(10,), (10,), (None,), (None,)]
    assert len(found.planned) == 12
    rarest = {"rarest": 6, "classes": 3} if metric == "balanced_accuracy" else {}

    def of(variant, size, seeds=range(3)):
        return [
            run
            for run in finals
            if (run["variant"], run["samples_per_class"]) == (variant, size) and run["seed"] in seeds
        ]

    def mean_over_sizes(sizes, name, variant):
        return np.mean([np.mean([run["metrics"][name] for run in of(variant, size)]) for size in sizes])

    p_values = {1: [], 2: []}
    for row in [*found.rows, *found.overall]:
        sizes, variant = row.sizes, row.variant
        seeds = range(2) if variant == "b" and 10 in sizes else range(3)  # of the third one has failed
        of_sizes = [table(tmp_path, of(variant, size, seeds), metric, True) for size in sizes]
        expected = statistics.accuracy_estimate(np.mean(of_sizes, axis=0), **rarest)
        assert values(row.accuracy) == pytest.approx(values(expected))
        if len(sizes) == 1 and seeds == range(3):
            score = accuracy_score if metric == "accuracy" else balanced_accuracy_score
            scores = [score(LABELS, np.where(correct(tmp_path, run), LABELS, 2)) for run in of(variant, sizes[0])]
            assert row.accuracy.mean == pytest.approx(np.mean(scores))
        if variant == "b":
            pairs = [
                table(tmp_path, of("b", size, seeds), metric, False)
                - table(tmp_path, of("a", size, seeds), metric, False)
                for size in sizes
            ]
            expected = statistics.difference_estimate(np.mean(pairs, axis=0), **rarest)
            assert values(row.difference) == pytest.approx(values(expected))
            p_values[len(sizes)].append((row.p, expected.p))
        else:
            assert (row.difference, row.p) == (None, None)
        runs = [run for size in sizes for run in of(variant, size)]
        failed = int(variant == "b" and 10 in sizes)
        assert (row.done, row.failed, row.planned) == (3 * len(sizes) - failed, failed, 3 * len(sizes))
        other = "test/accuracy" if metric == "balanced_accuracy" else "test/balanced_accuracy"
        train, test = (mean_over_sizes(sizes, f"{part}/accuracy", variant) for part in ("train", "test"))
        assert row.other == pytest.approx(mean_over_sizes(sizes, other, variant))
        assert (row.train, row.gap) == (pytest.approx(train), pytest.approx(train - test))
        assert row.seconds == pytest.approx(np.mean([run["seconds"] for run in runs]))
    for pairs in p_values.values():
        assert [p for p, _ in pairs] == pytest.approx(statistics.holm([p for _, p in pairs]))
