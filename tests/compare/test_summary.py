"""The tables of a comparison beside loops over its stored predictions."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from metricloss_pl.compare import statistics
from metricloss_pl.compare.store import Store
from metricloss_pl.compare.summary import Summary
from metricloss_pl.errors import UserError
from tests.compare.synthetic import make_comparison

LABELS = [0] * 2 + [1] * 20 + [3] * 38  # no test image of class 2
TABLE = [
    "size", "variant", "n_runs", "n_planned", "n_failed", "accuracy", "balanced_accuracy", "low", "high", "std",
    "difference", "difference_low", "difference_high", "p", "p_adjusted", "minimum_detectable", "train_accuracy", "gap",
    "seconds", "method",
]  # fmt: skip


def make(folder, metric="accuracy", **plan):
    """Write a comparison of three variants at two sizes, with two images of each name; one final run has failed."""
    return make_comparison(
        folder, {"a": 0.6, "b": 0.9, "c": 0.7}, (10, None), class_names="wxyz", labels=LABELS, metric=metric,
        name_image=lambda k: f"{k // 2}.png", training_std=0.05, trials=4,
        failing=lambda run: (run["variant"], run["size"], run["seed"]) == ("b", 10, 2), **plan,
    )  # fmt: skip


def finals(folder, variant, size, seeds=(0, 1, 2)):
    """Return the predictions of the final runs of some seeds."""
    store = Store(folder)
    return [
        store.predictions(key)
        for seed in seeds
        for key, run in store.results().items()
        if (run["kind"], run["variant"], run["size"], run["seed"], run["status"])
        == ("final", variant, size, seed, "ok")
    ]


def correct(folder, variant, size, seeds=(0, 1, 2)):
    found = finals(folder, variant, size, seeds)
    return np.array([run.probabilities.argmax(axis=1) == run.labels for run in found], dtype=float).T


def check_row(row, accuracy, difference, tests):
    assert (row["low"], row["high"]) == pytest.approx(accuracy.interval)
    assert (row["std"], row["method"]) == (pytest.approx(accuracy.std), accuracy.method)
    if difference is None:
        assert pd.isna(row[["difference", "difference_low", "p", "p_adjusted", "minimum_detectable"]]).all()
    else:
        assert (row["difference_low"], row["difference_high"]) == pytest.approx(difference.interval)
        assert (row["difference"], row["p"]) == (pytest.approx(difference.value), pytest.approx(difference.p))
        assert row["minimum_detectable"] == pytest.approx(difference.minimum_detectable(tests))


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_rows_beside_loops(tmp_path, metric):
    summary = Summary(make(tmp_path, metric))
    labels = np.array(LABELS) if metric == "balanced_accuracy" else None
    assert list(summary.table.columns) == TABLE
    assert list(summary.overall.columns) == TABLE
    assert list(zip(summary.table["size"], summary.table["variant"], strict=True)) == [
        (size, variant) for size in (10, None) for variant in "abc"
    ]
    rows = [*summary.table.to_dict("records"), *summary.overall.to_dict("records")]
    for number, row in enumerate(map(pd.Series, rows)):
        sizes = [row["size"]] if number < 6 else [10, None]
        variant, tests = row["variant"], 4 if number < 6 else 2
        seeds = (0, 1) if variant == "b" and 10 in sizes else (0, 1, 2)  # the third one has failed
        own, base = (
            np.mean([correct(tmp_path, name, size, seeds) for size in sizes], axis=0) for name in (variant, "a")
        )
        difference = None if variant == "a" else statistics.difference(own - base, labels)
        check_row(row, statistics.accuracy(own, labels), difference, tests)
        per_size = [correct(tmp_path, variant, size) for size in sizes]
        assert row["accuracy"] == pytest.approx(np.mean([values.mean() for values in per_size]))
        recalls = [[values[np.array(LABELS) == label].mean() for label in (0, 1, 3)] for values in per_size]
        assert row["balanced_accuracy"] == pytest.approx(np.mean(recalls))
        assert row["gap"] == pytest.approx(row["train_accuracy"] - row["accuracy"])
        failed = int(variant == "b" and 10 in sizes)
        runs = (row["n_runs"], row["n_failed"], row["n_planned"])
        assert runs == (3 * len(sizes) - failed, failed, 3 * len(sizes))
        assert row["seconds"] == 12.5
    for table in (summary.table, summary.overall):
        tested = table[table["p"].notna()]
        assert tested["p_adjusted"].tolist() == pytest.approx(statistics.holm(tested["p"].tolist()))


def test_one_size_has_no_average(tmp_path):
    summary = Summary(make_comparison(tmp_path, {"a": 0.8, "b": 0.8}))
    assert summary.overall is summary.table
    assert (summary.sizes, summary.variants, summary.baseline, summary.metric) == ([None], ["a", "b"], "a", "accuracy")


def test_a_planted_difference_is_found_and_a_planted_tie_is_not(tmp_path):
    summary = Summary(make_comparison(tmp_path, {"base": 0.75, "tie": 0.75, "better": 0.85}, seeds=range(5)))
    table = summary.table.set_index("variant")
    assert table.loc["better", "p_adjusted"] <= 0.05 < table.loc["tie", "p_adjusted"]
    assert table.loc["tie", "difference_low"] < 0 < table.loc["tie", "difference_high"]


def test_one_seed_has_accuracies_alone(tmp_path):
    table = Summary(make_comparison(tmp_path, {"a": 0.8, "b": 0.9}, seeds=(3,))).table
    assert table["method"].tolist() == ["one_repetition"] * 2
    assert table["difference"].notna().tolist() == [False, True]
    assert (
        table[["low", "high", "std", "difference_low", "p", "p_adjusted", "minimum_detectable"]].isna().all(axis=None)
    )


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_folds_are_repetitions_with_their_seeds_averaged(tmp_path, seeds):
    folder = make_comparison(tmp_path, {"a": 0.7, "b": 0.8}, seeds=seeds, folds=4, images=90)
    store, row = Store(folder), Summary(folder).table.iloc[1]
    values = np.full((90, 4), np.nan)
    for fold in range(4):
        shares = {"a": [], "b": []}
        for key, run in store.results().items():
            if run["fold"] == fold:
                found = store.predictions(key)
                shares[run["variant"]].append(found.probabilities.argmax(axis=1) == found.labels)
        places = [int(name.split()[1]) for name in found.names]
        values[places, fold] = np.mean(shares["b"], axis=0) - np.mean(shares["a"], axis=0)
    expected = statistics.difference(values, test_share=1 / 3)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(expected.interval)
    assert (row["p"], row["method"]) == (pytest.approx(expected.p), "corrected_resampled_t")
    assert row["n_runs"] == 4 * len(seeds)


def test_splits_are_repetitions_with_their_seeds_averaged(tmp_path):
    folder = make_comparison(tmp_path, {"a": 0.7, "b": 0.8}, (10,), seeds=(0, 1), splits=3)
    store, tables = Store(folder), {"a": np.zeros((300, 3)), "b": np.zeros((300, 3))}
    for key, run in store.results().items():
        found = store.predictions(key)
        tables[run["variant"]][:, run["split"]] += (found.probabilities.argmax(axis=1) == found.labels) / 2
    row = Summary(folder).table.iloc[1]
    expected = statistics.difference(tables["b"] - tables["a"])
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(expected.interval)
    assert row["std"] == pytest.approx(tables["b"].mean(axis=0).std(ddof=1))


def test_test_sets_that_differ_by_seed(tmp_path):
    """A datamodule may draw its test set by the seed."""
    folder, store = make_comparison(tmp_path, {"a": 0.7, "b": 0.8}, images=80), Store(tmp_path)
    for key, run in store.results().items():
        found, half = store.predictions(key), np.random.default_rng(run["seed"]).permutation(80)[:40]
        images = {"train": 100, "val": 20, "test": 40}
        store.write_result({**run, "images": images}, type(found)(*(values[half] for values in found[:3])))
    row = Summary(folder).table.iloc[1]
    assert row["method"] == "corrected_resampled_t"
    values = np.full((80, 3), np.nan)
    for seed in range(3):
        base, own = (finals(folder, name, None, (seed,))[0] for name in "ab")
        places = [int(name.split()[1]) for name in own.names]
        values[places, seed] = (own.probabilities.argmax(1) == own.labels) * 1.0 - (
            base.probabilities.argmax(1) == base.labels
        )
    values = values[~np.isnan(values).all(axis=1)]
    expected = statistics.difference(values, test_share=40 / 120)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(expected.interval)


def test_a_run_without_partner_is_in_no_difference(tmp_path):
    folder = make_comparison(
        tmp_path, {"a": 0.7, "b": 0.8}, seeds=range(4),
        missing=lambda run: (run["variant"], run["seed"]) in [("a", 0), ("b", 3)],
    )  # fmt: skip
    row = Summary(folder).table.iloc[1]
    expected = correct(folder, "b", None, (1, 2)) - correct(folder, "a", None, (1, 2))
    assert row["difference"] == pytest.approx(expected.mean())
    assert row["accuracy"] == pytest.approx(correct(folder, "b", None, (0, 1, 2)).mean())


@pytest.mark.parametrize("size", [10, None])
def test_a_run_that_is_missing_at_one_size_is_in_no_mean_over_sizes(tmp_path, size):
    folder = make_comparison(
        tmp_path, {"a": 0.7, "b": 0.8}, (10, None), seeds=range(3),
        missing=lambda run: (run["variant"], run["size"], run["seed"]) == ("b", size, 1),
    )  # fmt: skip
    own, base = (np.mean([correct(folder, name, n, (0, 2)) for n in (10, None)], axis=0) for name in "ba")
    row = Summary(folder).overall.iloc[1]
    assert (row["difference"], row["p"]) == pytest.approx((np.mean(own - base), statistics.difference(own - base).p))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("only", [None, "b"])
def test_a_comparison_that_has_just_begun(tmp_path, only):
    summary = Summary(
        make_comparison(
            tmp_path, {"a": 0.7, "b": 0.8}, (10, None), trials=1, missing=lambda run: run["variant"] != only
        )
    )
    assert summary.table["n_runs"].tolist() == [0, 3 * (only == "b")] * 2
    assert summary.table["method"].tolist() == [None, None if only is None else "obuchowski_rockette"] * 2
    assert summary.overall[["difference", "p"]].isna().all(axis=None)
    assert summary.per_class("a", None)[["recall", "low", "precision"]].isna().all(axis=None)
    assert summary.calibration("a", None) is None
    assert not summary.confusion("a", None).any()
    assert summary.disagreements(None, 5) == []
    assert len(summary.searches) <= 2 * (only == "b")
    assert summary.best_run is None


def test_a_folder_without_a_plan(tmp_path):
    with pytest.raises(UserError, match=r"plan\.json"):
        Summary(tmp_path)


def test_classes_beside_scikit_learn(tmp_path):
    summary = Summary(make(tmp_path))
    runs, hits = finals(tmp_path, "b", None), correct(tmp_path, "b", None)
    labels = np.concatenate([run.labels for run in runs])
    predicted = np.concatenate([run.probabilities for run in runs]).argmax(axis=1)
    table = summary.per_class("b", None)
    assert (table["class"].tolist(), table["n"].tolist()) == (list("wxyz"), [2, 20, 0, 38])
    for label, row in enumerate(table.to_dict("records")):
        own = hits[np.array(LABELS) == label]
        assert row["f1"] == pytest.approx(metrics.f1_score(labels == label, predicted == label))
        assert row["precision"] == pytest.approx(metrics.precision_score(labels == label, predicted == label))
        if len(own):
            assert row["recall"] == pytest.approx(own.mean())
            assert (row["low"], row["high"]) == pytest.approx(statistics.accuracy(own).interval)
        else:
            assert np.isnan([row["recall"], row["low"], row["high"]]).all()
    confusion = summary.confusion("b", None)
    for label in range(4):
        for other in range(4):
            rate = (predicted[labels == label] == other).mean() if label != 2 else 0
            assert confusion[label, other] == pytest.approx(rate)


def test_calibration_beside_loops(tmp_path):
    found = Summary(make(tmp_path)).calibration("b", None)
    runs = finals(tmp_path, "b", None)
    labels = np.concatenate([run.labels for run in runs])
    p = np.concatenate([run.probabilities for run in runs]).astype(float)
    images = range(len(labels))
    assert found.n == 3 * len(LABELS)
    assert found.brier == pytest.approx(
        np.mean([sum((p[i, c] - (c == labels[i])) ** 2 for c in range(4)) for i in images])
    )
    assert found.nll == pytest.approx(np.mean([-np.log(p[i, labels[i]]) for i in images]), abs=1e-5)
    ece, bins = 0.0, []
    for k in range(10):
        inside = [i for i in images if k / 10 < p[i].max() <= (k + 1) / 10]
        if inside:
            confidence = np.mean([p[i].max() for i in inside])
            accuracy = np.mean([p[i].argmax() == labels[i] for i in inside])
            bins.append([confidence, accuracy, len(inside)])
            ece += len(inside) / len(labels) * abs(confidence - accuracy)
    np.testing.assert_allclose(found.bins[["confidence", "accuracy", "n"]], bins, rtol=1e-5)
    assert found.ece == pytest.approx(ece, abs=1e-5)


def test_a_perfect_variant_has_a_calibration(tmp_path):
    found = Summary(make_comparison(tmp_path, {"a": 1.0 - 1e-12, "b": 0.5}, images=20)).calibration("a", None)
    assert found.bins["accuracy"].tolist() == [1.0] * len(found.bins)


def test_area_under_the_curve_of_two_classes(tmp_path):
    summary = Summary(make_comparison(tmp_path / "two", {"a": 0.7, "b": 0.8}, class_names=["no", "yes"]))
    areas = []
    for run in finals(tmp_path / "two", "b", None):
        positive = run.probabilities[:, 1]
        pairs = positive[run.labels == 1][:, None] - positive[run.labels == 0]
        areas.append(np.mean((pairs > 0) + 0.5 * (pairs == 0)))
    assert summary.auc("b", None) == pytest.approx(np.mean(areas))
    one = make_comparison(tmp_path / "one", {"a": 0.7, "b": 0.8}, class_names=["no", "yes"], labels=[1] * 20)
    assert np.isnan(Summary(one).auc("b", None))
    assert np.isnan(Summary(make(tmp_path / "four")).auc("b", None))


def test_trivial_baselines_are_in_no_test_and_in_no_disagreement(tmp_path):
    summary = Summary(
        make_comparison(tmp_path, {"a": 0.8, "b": 0.9, "majority": 0.1}, kinds={"majority": "trivial"}, seeds=range(5))
    )
    table = summary.table.set_index("variant")
    assert table.loc["majority", "difference_high"] < 0
    assert table.loc["majority", ["p", "p_adjusted", "minimum_detectable"]].isna().all()
    assert table.loc["b", "p_adjusted"] == table.loc["b", "p"]  # the only test
    assert list(summary.disagreements(None, 1)[0]["variants"]) == ["a", "b"]


def test_disagreements_beside_loops(tmp_path):
    summary = Summary(make(tmp_path))
    tables = {variant: correct(tmp_path, variant, None) for variant in "abc"}
    spread = np.ptp([values.mean(axis=1) for values in tables.values()], axis=0)
    seen = Counter()  # images of that spread and class
    places = []
    for k in range(60):
        places.append((-spread[k], seen[spread[k], LABELS[k]]))  # of equal ones each class in its turn
        seen[spread[k], LABELS[k]] += 1
    order = [k for k in sorted(range(60), key=places.__getitem__) if spread[k] > 0]
    assert 10 < len(order) < 60
    found = summary.disagreements(None, 10)
    assert [row["name"] for row in found] == [f"{k // 2}.png" for k in order[:10]]
    for k, row in zip(order, found, strict=False):
        assert row["label"] == "wxyz"[LABELS[k]]
        for variant, values in tables.items():
            own = row["variants"][variant]
            assert (own["right"], own["runs"]) == (values[k].sum(), 3)
            predicted = ["wxyz"[run.probabilities[k].argmax()] for run in finals(tmp_path, variant, None)]
            assert own["predicted"] == {name: predicted.count(name) for name in predicted}
            assert list(own["predicted"].values()) == sorted(own["predicted"].values(), reverse=True)
    assert len(summary.disagreements(None, 100)) == len(order)


def test_searches_have_their_successful_trials_the_best_first(tmp_path):
    summary, stored = Summary(make(tmp_path)), Store(tmp_path).results().values()
    assert {(found.variant, found.size) for found in summary.searches} == {(v, n) for v in "abc" for n in (10, None)}
    for found in summary.searches:
        own = [
            run for run in stored if (run["kind"], run["variant"], run["size"]) == ("trial", found.variant, found.size)
        ]
        scores = sorted((run["metrics"]["val/accuracy"] for run in own if run["status"] == "ok"), reverse=True)
        assert [score for score, _ in found.trials] == scores
        assert found.best["metrics"]["val/accuracy"] == scores[0]


def test_the_best_run_is_that_of_validation(tmp_path):
    """Not of the test set, and with the most training images."""
    store = Store(make(tmp_path))
    for run in store.results().values():
        if run["kind"] == "trial" and run["status"] == "ok":
            run["metrics"]["val/accuracy"] = {"a": 0.5, "b": 0.6, "c": 0.7}[run["variant"]] + (run["size"] == 10) * (
                run["variant"] == "a"
            )
            store.write_result(run)
    assert Summary(tmp_path).best_run is None  # no checkpoint is kept
    for run in store.results().values():
        if run["kind"] == "final":
            store.write_result(
                {**run, "checkpoint": "last.ckpt"}, store.predictions(run["key"]) if run["predictions"] else None
            )
    best = Summary(tmp_path).best_run
    assert (best["variant"], best["size"], best["seed"], best["checkpoint"]) == ("c", None, 0, "last.ckpt")
