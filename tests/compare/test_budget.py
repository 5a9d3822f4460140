"""Time and memory of plans, from costs that are given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metricloss_pl.compare import budget
from metricloss_pl.compare.budget import Cost, check_memory, measure, shorter, total_seconds
from metricloss_pl.compare.config import Tuning, Variant
from metricloss_pl.compare.plan import expand
from metricloss_pl.compare.runner import Task
from metricloss_pl.errors import UserError
from tests.compare.small import RATES, small
from tests.compare.stranger import my_factory

COST = Cost(10.0, 0.01, 2.0, 100, 20, 1.5, accelerator=False)


def planned(**changes):
    config = small(**{"epochs": 20, **changes}).checked()
    runs = expand(config, dict.fromkeys(config.variants), "images")
    costs = {(name, size): COST for name in config.variants for size in config.sizes}
    subsets = [
        {"kind": kind, "size": size, "split": 0, "seed": 0, "fold": None, "train": train, "val": val, "test": 100}
        for size in config.sizes
        for kind, train, val in (("trial", 30, 20), ("final", 50, 0))
    ]
    return config, runs, costs, subsets


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 2.0 + 0.6 * 10 + 10 * 20 * 0.01),  # a trial has 30 of 50 images, and is validated ten times
        ({"epochs": None, "steps": 100}, 2.0 + 10 + 10 * 20 * 0.01),
        ({"tuning": Tuning(1, space=RATES, epochs=5)}, 2.0 + 0.6 * 10 / 4 + 10 * 20 * 0.01),
    ],
)
def test_the_time_of_a_trial(changes, expected):
    config, runs, costs, subsets = planned(**changes)
    assert total_seconds(config, runs[:1], costs, subsets, 1) == pytest.approx(expected)


def test_the_time_of_a_final_run_and_of_several_at_a_time(monkeypatch):
    config, runs, costs, subsets = planned(trials=0, tuning=Tuning(), seeds=[0, 1])
    one = 2.0 + 10 + (100 + 50) * 0.01
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for n_parallel, expected in ((1, 4 * one), (2, 2 * one), (8, 2 * one)):
        assert total_seconds(config, runs, costs, subsets, n_parallel) == pytest.approx(expected)
    on_gpu = {at: replace(COST, accelerator=True) for at in costs}
    assert total_seconds(config, runs, on_gpu, subsets, 4) == pytest.approx(one)
    assert total_seconds(config, runs, costs, subsets, 1, share=0.5) == pytest.approx(4 * (one - 5))


def test_what_would_shorten_a_plan_is_named_with_its_time():
    """Each by proportion: here all runs take a second."""
    config, runs, _, _ = planned(
        names=("softmax", "cosine", "center"), sizes=[5, None], seeds=[0, 1, 2], tuning=Tuning(4, space=RATES)
    )
    lines = shorter(config, runs, lambda kept, share: len(kept) * share)
    times = {line.partition(" with ")[2]: line.partition(" with ")[0] for line in lines}
    total = 3 * 2 * (4 + 3)
    assert times == {
        "--sizes \"[5]\"": f"about {total // 2} s",
        "--epochs 10": f"about {total // 2} s",
        '--include "[softmax,cosine]"': f"about {total * 2 // 3} s",
        "--tuning.trials 2": f"about {3 * 2 * 5} s",
        '--seeds "[0,1]"': f"about {3 * 2 * 6} s",
        "all of these": "about 4.0 s",  # 2 variants x 1 size x (2 trials + 2 seeds), of half as many epochs
    }  # fmt: skip
    assert [line.split()[1] for line in lines[:-1]] == sorted((line.split()[1] for line in lines[:-1]), key=float)


def test_nothing_is_named_that_would_not_shorten_the_plan():
    config, runs, _, _ = planned(names=("softmax",), trials=0, tuning=Tuning(), epochs=1)
    assert shorter(config, runs, lambda kept, share: len(kept) * share) == []


def test_more_memory_than_there_is_is_refused(monkeypatch):
    monkeypatch.setattr(budget, "_free_gigabytes", lambda: 3.1)
    check_memory({("a", None): COST}, 2)
    with pytest.raises(UserError, match=r"3 runs at a time need about 4.5 GB of memory, and there are 3.1"):
        check_memory({("a", None): COST}, 3)


@pytest.mark.parametrize("variant", ["softmax", "stranger"])
def test_a_few_steps_are_measured_and_nothing_is_tested(variant, monkeypatch):
    from metricloss_pl.data import DigitsDataModule
    from tests.compare.stranger import MyDigits

    own = {} if variant == "softmax" else {"variants": {"stranger": Variant(factory=my_factory, space=RATES_OF_LR)}}
    config = small((variant,), **{"sizes": [20], "tuning": Tuning(), "epochs": 3, **own}).checked()
    for data in (DigitsDataModule, MyDigits):
        monkeypatch.setattr(data, "test_dataloader", None)
    found = measure(Task(expand(config, {variant: 0}, "")[0], config))
    batches = 200 // 25 if variant == "softmax" else -(-200 // 16)
    assert (found.epochs, found.steps, found.accelerator) == (3, 3 * batches, False)
    assert 0 < found.training < 30
    assert found.gigabytes > 0


RATES_OF_LR = {"lr": RATES["model.optimizer.lr"]}
