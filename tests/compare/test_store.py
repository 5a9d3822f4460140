from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import norm

from metricloss_pl.compare.store import Predictions, Store
from metricloss_pl.errors import UserError
from tests.compare.synthetic import correctness, make_comparison


@pytest.fixture
def folder(tmp_path):
    return make_comparison(tmp_path / "digits", sizes=(5, None), seeds=(3, 4), trials=2, images=30)


def test_a_comparison_is_read_as_it_was_written(folder):
    store = Store(folder)
    plan, results = store.plan(), store.results()
    assert list(results) == list(plan["runs"])
    assert len(results) == 3 * 2 * (2 + 2)
    for key, result in results.items():
        assert plan["runs"][key].items() <= result.items()
        assert (result["predictions"] is None) == (result["kind"] == "trial")
    final = next(key for key, result in results.items() if result["kind"] == "final")
    predictions = store.predictions(final)
    right = predictions.probabilities.argmax(1) == predictions.labels
    assert right.mean() == pytest.approx(results[final]["metrics"]["test/accuracy"])
    assert predictions.embeddings.dtype == np.float16
    assert predictions.names[0] == "test 0"


@pytest.mark.parametrize("damage", ["empty", "half", "other key", "other plan", "no predictions", "list"])
def test_an_incomplete_result_is_ignored(folder, damage):
    store = Store(folder)
    key = next(key for key, run in store.plan()["runs"].items() if run["kind"] == "final")
    file = folder / "runs" / f"{key}.json"
    result = json.loads(file.read_text())
    changed = {
        "empty": "",
        "half": file.read_text()[:-20],
        "other key": json.dumps(result | {"key": "x"}),
        "other plan": json.dumps(result | {"seed": 77}),
        "list": "[1]",
    }
    if damage == "no predictions":
        (folder / "predictions" / f"{key}.npz").unlink()
    else:
        file.write_text(changed[damage])
    assert set(store.plan()["runs"]) - set(store.results()) == {key}


def test_a_number_that_is_not_finite_becomes_null(folder):
    store = Store(folder)
    key, result = next(iter(store.results().items()))
    store.write_result(result | {"metrics": {"val/nll": float("nan")}, "history": {"train/loss": [float("inf"), 1.0]}})
    read = store.results()[key]
    assert read["metrics"] == {"val/nll": None}
    assert read["history"] == {"train/loss": [None, 1.0]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read"),
        ("{", "no plan of a comparison"),
        ("[]", "no plan of a comparison"),
        ('{"format": 1}', "is of format 1, not 2"),
    ],
)
def test_a_folder_without_a_sound_plan_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Store(tmp_path).plan()


def test_damaged_predictions_are_named(folder):
    store = Store(folder)
    store.folder.joinpath("predictions", "x.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"x\.npz can't be read"):
        store.predictions("x")


def test_predictions_without_embeddings(tmp_path):
    stored = Predictions(np.array(["ä.png"]), np.array([1]), np.array([[0.25, 0.75]], dtype=np.float32))
    Store(tmp_path).write_result({"key": "k"}, stored)
    read = Store(tmp_path).predictions("k")
    assert read.embeddings is None
    assert read.names.tolist() == ["ä.png"]
    assert not list(tmp_path.rglob("*.part*"))


def test_simulated_runs_have_the_given_accuracy_and_correlation():
    generator = np.random.default_rng(0)
    common, own = generator.normal(size=(2, 100_000))
    same = [correctness(generator, 0.8, common, own, 0.5, 0.2, 0.0) for _ in range(2)]
    assert np.mean(same) == pytest.approx(0.8, abs=0.005)
    # The tetrachoric correlation of two trainings is that of their latent variables, 0.7.
    pairs = generator.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], 100_000) < norm.ppf(0.8)
    assert np.mean(same[0] & same[1]) == pytest.approx(np.mean(pairs.all(axis=1)), abs=0.005)
    spread = [correctness(generator, 0.8, common[:5000], own[:5000], 0.0, 0.0, 0.3).mean() for _ in range(500)]
    assert np.mean(spread) == pytest.approx(0.8, abs=0.01)


def test_each_image_is_tested_once_per_seed_in_folds(tmp_path):
    folder = make_comparison(tmp_path, {"a": 0.5}, seeds=(0, 1), folds=3, images=20, failing=lambda run: run["seed"])
    store = Store(folder)
    results = store.results()
    tested = [key for key, result in results.items() if result["status"] == "ok"]
    assert sorted(name for key in tested for name in store.predictions(key).names) == sorted(
        f"test {number}" for number in range(20)
    )
    assert [result["status"] for result in results.values()].count("failed") == 3
