"""Comparisons from Python, of classifiers that are not this package's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from metricloss_pl.compare import Range, Store, Tuning, compare
from metricloss_pl.errors import UserError
from tests.compare.small import CONFIGS
from tests.compare.stranger import MyClassifier, MyDigits, my_factory, my_probabilities, softmax_factory

pytest.importorskip("optuna")
pytest.importorskip("pandas")

TUNING = Tuning(2, space={"lr": Range(0.01, 0.3, log=True)}, val_fraction=0.4)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    variants = {"softmax": softmax_factory, "mine": my_factory, "probabilities": my_probabilities}
    return compare(variants, folder, seeds=[0, 1], sizes=[10], tuning=TUNING, baseline="softmax")


def test_a_strangers_module_and_data_are_compared(comparison):
    table = comparison.table().set_index("variant")
    assert set(table.index) == {"softmax", "mine", "probabilities"}
    assert (table["n_runs"] == 2).all()
    assert comparison.report().is_file()


def test_factories_receive_the_settings_of_the_run(comparison):
    results = Store(comparison.folder).results()
    for found in results.values():
        assert found["status"] == "ok", found["reason"]
        trial = found["kind"] == "trial"
        assert found["images"] == {"train": 60 if trial else 100, "val": 40 * trial, "test": 297 * (not trial)}
        assert found["epochs"] == 3
        assert 0.01 <= found["settings"]["lr"] <= 0.3
        if trial and found["trial"] == 0:
            assert found["settings"]["lr"] == pytest.approx((0.01 * 0.3) ** 0.5)
    plan = Store(comparison.folder).plan()
    assert {name: variant["kind"] for name, variant in plan["variants"].items()} == dict.fromkeys(
        ("softmax", "mine", "probabilities"), "factory"
    )


def test_scores_are_those_of_forward_or_of_predict_step(comparison):
    """Probabilities of `predict_step` and scores of `forward` of the same network give the same result."""
    store = Store(comparison.folder)
    finals = {(found["variant"], found["seed"]): key for key, found in store.results().items()
              if found["kind"] == "final"}  # fmt: skip
    for seed in (0, 1):
        mine, other = (store.predictions(finals[name, seed]) for name in ("mine", "probabilities"))
        assert np.allclose(mine.probabilities, other.probabilities, atol=1e-4)
        assert mine.names.tolist() == list(map(str, range(297)))
        assert mine.embeddings is None
    assert store.predictions(finals["softmax", 0]).embeddings is not None


def test_a_final_run_is_what_the_stranger_would_train_alone(comparison):
    from lightning.pytorch import Trainer, seed_everything

    store = Store(comparison.folder)
    key, found = next((key, found) for key, found in store.results().items()
                      if found["kind"] == "final" and found["variant"] == "mine")  # fmt: skip
    seed_everything(0, verbose=False)
    model, data = MyClassifier(found["settings"]["lr"]), MyDigits(10, 0.0, 0)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    Trainer(max_epochs=3, accelerator="cpu", num_sanity_val_steps=0, **quiet).fit(model, data)
    data.setup("test")
    with torch.no_grad():
        scores = torch.cat([model(images) for images, _ in data.test_dataloader()])
    expected = torch.softmax(scores / found["metrics"]["temperature"], dim=1).numpy()
    assert np.allclose(store.predictions(key).probabilities, expected, atol=1e-6)


def test_a_run_file_beside_a_strangers_data_needs_the_same_labels(tmp_path):
    with pytest.raises(UserError, match="variant softmax has other images or classes than mine"):
        compare(
            {"mine": my_factory, "softmax": str(CONFIGS / "digits_softmax.yaml")},
            tmp_path,
            tuning=replace(TUNING, trials=0),
        )


class NoPairs(MyDigits):
    def test_dataloader(self):
        return DataLoader(self.test.tensors[0], batch_size=64)


def no_pairs(settings):
    return MyClassifier(0.1), NoPairs(5), {"max_epochs": 1, "accelerator": "cpu"}


def test_batches_without_labels_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"a batch is Tensor: \(inputs, labels\)"):
        compare({"mine": no_pairs}, tmp_path)


def make(width):
    def factory(settings):
        model = MyClassifier(0.1)
        model.network[1] = torch.nn.Linear(64, width)
        model.network[3] = torch.nn.Linear(width, 10)
        return model, MyDigits(5, settings["val_fraction"]), {"max_epochs": 1, "accelerator": "cpu"}

    return factory


def with_rate(settings, lr):
    return MyClassifier(lr), MyDigits(5), {"max_epochs": 1, "accelerator": "cpu"}


def test_factories_that_differ_by_a_value_are_different_variants(tmp_path):
    """Also for a second start, which repeats nothing else; without tuning no factory is asked for a validation set."""
    rates = {f"rate {lr}": partial(with_rate, lr=lr) for lr in (0.1, 0.2)}
    found = compare({"narrow": make(8), "wide": make(16), **rates}, tmp_path, seeds=[0])
    assert found.table()["n_runs"].tolist() == [1] * 4
    before = Store(tmp_path).results()
    compare({"narrow": make(8), "wide": make(24), **rates}, tmp_path, seeds=[0])
    after = Store(tmp_path).results()
    assert {run["variant"] for key, run in after.items() if before.get(key) != run} == {"wide"}
