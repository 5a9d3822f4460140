import numpy as np
import pytest

from metricloss_pl.check.wrong_labels import find_wrong_labels, read_out_of_fold
from metricloss_pl.compare.store import Store
from metricloss_pl.errors import UserError
from tests.compare.synthetic import make_comparison


def simulated(seed, images=400, classes=5, share=0.1, sharpness=3.0):
    """Return true labels, labels of which some are wrong, and probabilities that favor the true ones."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, classes, images)
    labels = truth.copy()
    wrong = generator.permutation(images)[: round(share * images)]
    labels[wrong] = (truth[wrong] + generator.integers(1, classes, len(wrong))) % classes
    scores = generator.normal(size=(images, classes)) + sharpness * np.eye(classes)[truth]
    return truth, labels, np.exp(scores) / np.exp(scores).sum(1, keepdims=True)


def by_loops(labels, probabilities):
    """Return the rule of the paper, image by image."""
    classes = range(probabilities.shape[1])
    members = {label: [n for n in range(len(labels)) if labels[n] == label] for label in classes}
    threshold = {c: sum(probabilities[n][c] for n in own) / len(own) for c, own in members.items() if own}
    number = 0
    for label, row in zip(labels, probabilities, strict=True):
        confident = [c for c in threshold if row[c] >= threshold[c]]
        number += bool(confident) and max(confident, key=lambda c: row[c]) != label
    ranked = sorted(range(len(labels)), key=lambda n: probabilities[n][labels[n]])[:number]
    return [n for n in ranked if max(classes, key=lambda c: probabilities[n][c]) != labels[n]]


@pytest.mark.parametrize("seed", range(3))
def test_the_rule_is_that_of_the_paper(seed):
    _, labels, probabilities = simulated(seed, classes=3 + seed, sharpness=1 + seed)
    assert find_wrong_labels(labels, probabilities).tolist() == by_loops(labels, probabilities)


def test_cleanlab_finds_the_same():
    cleanlab = pytest.importorskip("cleanlab.filter")
    for seed in range(3):
        _, labels, probabilities = simulated(seed, sharpness=4)
        found = cleanlab.find_label_issues(labels, probabilities, filter_by="low_self_confidence", n_jobs=1)
        assert sorted(find_wrong_labels(labels, probabilities)) == np.flatnonzero(found).tolist()


def test_wrong_labels_are_found_where_probabilities_are_good():
    truth, labels, probabilities = simulated(0, sharpness=9)
    assert sorted(find_wrong_labels(labels, probabilities)) == np.flatnonzero(truth != labels).tolist()
    assert len(find_wrong_labels(truth, probabilities)) == 0


def test_classes_without_images_and_equal_probabilities():
    probabilities = np.array([[0.7, 0.1, 0.2], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7]])
    assert find_wrong_labels(np.array([0, 0, 1, 1]), probabilities).size == 0  # class 2 has no threshold
    assert find_wrong_labels(np.array([0, 1, 1]), np.full((3, 2), 0.5)).size == 0


def test_predictions_are_those_of_the_best_variant_averaged_over_its_runs(tmp_path):
    folder = make_comparison(
        tmp_path, {"majority": 0.95, "softmax": 0.6, "cosine": 0.9}, folds=3, seeds=(0, 1), sizes=(5, None), images=60,
        kinds={"majority": "trivial"},
    )  # fmt: skip
    found = read_out_of_fold(folder)
    assert found.variant == "cosine"
    assert len(found.predictions) == 60
    store, rows = Store(folder), []
    for key, run in store.results().items():
        if (run["kind"], run["variant"], run["size"]) == ("final", "cosine", None):
            predictions = store.predictions(key)
            rows += [
                p for name, p in zip(predictions.names, predictions.probabilities, strict=True) if name == "test 7"
            ]
    assert len(rows) == 2
    label, mean = found.predictions["test 7"]
    assert label == 7
    np.testing.assert_allclose(mean, (rows[0] + rows[1]) / 2, rtol=1e-6)


def test_an_unfinished_comparison_ranks_variants_on_the_same_images(tmp_path):
    def begun(run):
        return run["variant"] == "cosine" and run["fold"] != 0

    ahead = make_comparison(tmp_path / "ahead", {"softmax": 0.5, "cosine": 0.99}, folds=3, images=60, missing=begun)
    found = read_out_of_fold(ahead)
    assert (found.variant, len(found.predictions)) == ("softmax", 60)

    right = {("softmax", 0): 10, ("softmax", 1): 0, ("cosine", 0): 0, ("cosine", 2): 20}  # of 20 images per fold
    both = make_comparison(
        tmp_path / "both", {"softmax": 0.5, "cosine": 0.5}, folds=3, images=60, seeds=(0,),
        missing=lambda run: (run["variant"], run["fold"]) not in right,
    )  # fmt: skip
    store = Store(both)
    for key, run in store.results().items():
        old = store.predictions(key)
        shift = np.arange(len(old.labels)) >= right[run["variant"], run["fold"]]
        store.write_result(run, old._replace(probabilities=np.eye(10)[(old.labels + shift) % 10]))
    assert read_out_of_fold(both).variant == "softmax"


def test_comparisons_that_say_nothing(tmp_path):
    with pytest.raises(UserError, match="--folds"):
        read_out_of_fold(make_comparison(tmp_path / "whole"))
    with pytest.raises(UserError, match="no finished"):
        read_out_of_fold(make_comparison(tmp_path / "begun", folds=3, missing=lambda run: True))
    with pytest.raises(UserError, match=r"plan\.json"):
        read_out_of_fold(tmp_path / "none")
