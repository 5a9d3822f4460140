"""The rows of the tables beside loops over the stored predictions."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from metricloss_pl.compare import statistics
from metricloss_pl.compare.summary import read
from tests.compare.simulated import make_results

LABELS = [0] + [1] * 20 + [3] * 39  # no test image of class 2


def make(folder, metric):
    """Two images of each name; one final run has failed, and every trial."""
    make_results(
        folder, {"a": 0.0, "b": 1.0}, (None, 10), range(3), class_names="wxyz", labels=LABELS, epochs=2, trials=2,
        metric=metric, name_image=lambda k: f"{k // 2}.png",
        failing=lambda run: (run["variant"], run["samples_per_class"], run["seed"]) == ("b", 10, 2),
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for line in [line for line in lines if line["kind"] == "trial"]:
        line |= {"status": "failed", "reason": "train/loss is nan at step 12"}
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
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
    assert found.test_images.tolist() == [1, 20, 0, 39]
    assert [row.sizes for row in found.rows] == [(10,), (10,), (None,), (None,)]
    assert len(found.planned) == 12
    assert found.notes == []
    for run in finals:
        with np.load(tmp_path / run["predictions"]) as stored:
            probabilities, prediction = stored["probabilities"], found.predictions[run["key"]]
        assert prediction.images.tolist() == list(range(60))
        assert prediction.confidence.tolist() == probabilities.max(1).tolist()
        assert prediction.positive.tolist() == probabilities[:, 1].tolist()
    rarest = {"rarest": 1, "classes": 3} if metric == "balanced_accuracy" else {}

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


def one_run(folder, accuracy, **arrays):
    """Findings on a single run whose predictions and accuracy are changed, and the accuracy that they have."""
    make_results(folder, {"a": 2.0}, (10,), (0,), class_names="wxyz", labels=LABELS, epochs=1, trials=0)
    (line,) = [json.loads(row) for row in (folder / "results.jsonl").read_text().splitlines()]
    with np.load(folder / line["predictions"]) as stored:
        np.savez(folder / line["predictions"], **{**stored, **arrays})
    before = line["metrics"].pop("test/accuracy")
    if accuracy is not None:
        line["metrics"]["test/accuracy"] = before + accuracy
    (folder / "results.jsonl").write_text(json.dumps(line) + "\n")
    return read(folder)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"probabilities": np.full((60, 5), 0.2)}, "shapes (60, 5), (60,) and (60,) do not go together"),
        ({"names": np.full(59, "x")}, "shapes (60, 4), (60,) and (59,) do not go together"),
        ({"labels": np.full(60, -1)}, "no images, or labels out of range"),
        ({"labels": np.full(60, 4)}, "no images, or labels out of range"),
        ({"labels": np.full(60, 0)}, None),
        ({"labels": np.full(60, 3)}, None),
        ({"probabilities": np.empty((0, 4)), "labels": np.empty(0), "names": np.empty(0, str)}, "no images, or"),
        ({"probabilities": np.full((60, 4), np.inf)}, "probabilities that are not finite"),
    ],
)
def test_predictions_that_can_not_be_are_left_out(tmp_path, arrays, reason):
    found = one_run(tmp_path, None, **arrays)
    assert len(found.predictions) == (reason is None)
    where = "a, 10 images a class, split 0, seed 0: its predictions can't be read"
    assert [note.startswith(f"{where} ({reason}") for note in found.notes] == [True] * (reason is not None)


@pytest.mark.parametrize(("change", "kept"), [(0.0009, True), (-0.0009, True), (0.0011, False), (-0.0011, False)])
def test_predictions_have_the_accuracy_of_the_run(tmp_path, change, kept):
    """But for one image on which rounding decides, and for the rounding of the accuracy itself."""
    found = one_run(tmp_path, change + np.sign(change) / 60)
    assert len(found.predictions) == kept


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_without_predictions_the_stored_accuracies_are_given(tmp_path, metric):
    name, finals = f"test/{metric}", make(tmp_path, metric)
    stored = [run | {"predictions": None} for run in finals]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(run) + "\n" for run in stored))
    found = read(tmp_path)
    assert "a, all images, split 0, seed 0: no predictions are stored, so that it is in no test" in found.notes
    accuracies = {(run["variant"], run["samples_per_class"], run["seed"]): run["metrics"] for run in finals}
    of_size = [accuracies["a", 10, seed][name] for seed in range(3)]
    row, overall = found.rows[0], found.overall[0]
    assert values(row.accuracy) == pytest.approx([np.mean(of_size), np.std(of_size, ddof=1), None, None, 3, 0])
    assert values(overall.accuracy)[1:4] == [None] * 3
    of_all = [accuracies["a", None, seed][name] for seed in range(3)]
    assert overall.accuracy.mean == pytest.approx(np.mean([*of_size, *of_all]))
    assert (found.rows[1].difference, found.test_images.tolist()) == (None, [0] * 4)
    first, second = stored[:2]
    first["metrics"][name] = 0.5
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(run) + "\n" for run in (first, second)))
    assert read(tmp_path).rows[2].accuracy.spread == pytest.approx(abs(0.5 - second["metrics"][name]) / 2**0.5)
    (tmp_path / "results.jsonl").write_text(json.dumps(first) + "\n")
    assert values(read(tmp_path).rows[2].accuracy) == [0.5, None, None, None, 1, 0]


@pytest.mark.parametrize("part", ["train", "test"])
def test_without_one_of_two_accuracies_there_is_no_gap(tmp_path, part):
    (run,) = one_run(tmp_path, 0.0).finals.values()
    assert read(tmp_path).rows[0].gap == run["metrics"]["train/accuracy"] - run["metrics"]["test/accuracy"]
    del run["metrics"][f"{part}/accuracy"]
    (tmp_path / "results.jsonl").write_text(json.dumps(run) + "\n")
    assert read(tmp_path).rows[0].gap is None


def test_images_of_no_common_repetition_do_not_count(tmp_path):
    """Of two draws of test images one variant has a single one."""
    found = read(
        make_results(
            tmp_path, {"a": 0.0, "b": 1.0}, (10,), (0, 1), splits=2, images=90, epochs=1, trials=0,
            without=lambda run: (run["variant"], run["split"]) == ("b", 1),
        )
    )  # fmt: skip
    a, b = found.rows
    assert (b.difference.images, b.difference.repetitions) == (30, 2)
    assert (a.accuracy.images, a.accuracy.repetitions) == (found.test_images.sum(), 2)
    assert 30 < a.accuracy.images <= 60


def test_repetitions_without_an_image_in_common_have_no_mean_over_images(tmp_path):
    make_results(tmp_path, {"a": 0.0}, (10, 20), range(3), images=30, epochs=1, trials=0)
    for seed in (0, 1):  # at one of the sizes
        file = tmp_path / "predictions" / f"final-a-20-0-None-{seed}.npz"
        with np.load(file) as stored:
            np.savez(file, **{**stored, "names": np.char.add("other ", stored["names"])})
        found = read(tmp_path)
        assert found.overall[0].accuracy.low is None
        assert found.overall[0].accuracy.mean == pytest.approx(np.mean([row.accuracy.mean for row in found.rows]))
