"""Configuration of comparisons, and the runs that follow from it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from metricloss_pl.compare.config import ComparisonConfig, Range, Tuning, Variant
from metricloss_pl.compare.dataset import DatasetSummary
from metricloss_pl.compare.driver import _few
from metricloss_pl.compare.plan import Run, expand
from metricloss_pl.errors import UserError
from tests.compare.small import RATES, small

DECISIVE = {"softmax": {"model": "a"}, "cosine": {"model": "b"}, "center": {"model": "c"}}


def factory(settings):
    raise NotImplementedError


def planned(data: str = "images", decisive=DECISIVE, **changes) -> list[Run]:
    return expand(small(**changes).checked(), decisive, data)


def keys(runs: list[Run]) -> set[str]:
    assert len({run.key for run in runs}) == len(runs)
    return {run.key for run in runs}


def trials_before(runs: list[Run], run: Run) -> list[Run]:
    return [other for other in runs if other.key in run.needs]


def test_every_variant_has_the_same_runs():
    runs = planned(sizes=[None, 5], seeds=[3, 4, 5], trials=4)
    assert len(runs) == 2 * 2 * (4 + 3)
    described = {name: [replace(run, variant="", key="", needs=()) for run in runs if run.variant == name]
                 for name in ("softmax", "cosine")}  # fmt: skip
    assert described["softmax"] == described["cosine"]
    assert {(run.seed, run.split) for run in runs if run.kind == "final"} == {(3, 3), (4, 4), (5, 5)}
    assert {(run.seed, run.split) for run in runs if run.kind == "trial"} == {(3, 3)}
    for run in runs:
        before = trials_before(runs, run)
        assert [other.trial for other in before] == list(range(4 if run.kind == "final" else run.trial))
        assert {(other.variant, other.size) for other in before} <= {(run.variant, run.size)}


def test_final_runs_come_seed_by_seed_and_fold_by_fold():
    runs = planned(seeds=[7, 0], folds=2, splits=2, trials=1, sizes=[5, None])
    assert [run.kind for run in runs] == ["trial"] * 16 + ["final"] * 32
    finals = [(run.seed, run.fold) for run in runs[16:]]
    assert finals == [(seed, fold) for seed in (7, 0) for fold in (0, 1) for _ in range(8)]
    assert (runs[0].label, runs[-1].label) == (
        "softmax, 5 images per class, fold 0, trial 0",
        "cosine, all images, fold 1, seed 0",
    )


def test_splits_are_crossed_with_seeds():
    runs = planned(seeds=[0, 7], splits=3, trials=0, sizes=[5, None])
    pairs = [(run.seed, run.split) for run in runs if run.variant == "cosine" and run.size == 5]
    assert sorted(pairs) == [(seed, split) for seed in (0, 7) for split in range(3)]
    assert [run.split for run in runs if run.variant == "cosine" and run.size is None] == [0, 0]


def test_each_fold_is_tuned_separately():
    runs = planned(folds=3, seeds=[0, 1], trials=2, splits=2)
    finals = [run for run in runs if run.kind == "final"]
    assert Counter(run.fold for run in finals) == dict.fromkeys(range(3), 2 * 2 * 2)
    for run in finals:
        before = [(trial.fold, trial.split, trial.trial) for trial in trials_before(runs, run)]
        assert before == [(run.fold, run.split, 0), (run.fold, run.split, 1)]


def test_trials_wait_for_those_of_earlier_rounds():
    runs = planned(tuning=Tuning(trials=5, space=RATES, n_parallel=2), names=("softmax",))
    waits = [[before.trial for before in trials_before(runs, run)] for run in runs if run.kind == "trial"]
    assert waits == [[], [], [0, 1], [0, 1], [0, 1, 2, 3]]


def test_keys_stay_when_a_plan_grows_and_change_with_all_that_decides_a_result():
    runs = planned()
    assert keys(runs) == keys(planned())
    assert keys(runs) < keys(planned(seeds=[0, 1], sizes=[10, 5], names=("softmax", "cosine", "center")))
    trials = {run.key for run in runs if run.kind == "trial"}
    assert keys(runs) & keys(planned(trials=3)) == trials  # the third may be chosen
    for other in (
        planned("other images"),
        planned(seeds=[1]),
        planned(folds=2),
        planned(epochs=2),
        planned(epochs=None, steps=5),
        planned(tuning=Tuning(2, space={"model.optimizer.lr": Range(0.005, 0.6)})),
    ):
        assert not keys(runs) & keys(other)
    untuned = planned(tuning=Tuning())
    assert keys(untuned) == keys(planned(tuning=Tuning(space=RATES, pruner="none"), metric="balanced_accuracy"))
    assert not keys(untuned) & keys(runs)
    changed = planned(decisive={**DECISIVE, "cosine": {"model": "d"}})
    assert keys(runs) & keys(changed) == {run.key for run in runs if run.variant == "softmax"}


def test_kinds_that_are_not_trained_from_scratch_have_a_plan_of_their_own():
    variants = {
        "softmax": Variant("a.yaml"),
        "probe": Variant("b.yaml", space={"model.C": Range(1.0, 10.0)}, kind="linear_probe"),
        "tuned": Variant("c.yaml", space={"model.optimizer.lr": Range(1e-4, 1e-3)}, kind="fine_tuned"),
        "majority": Variant(factory=factory, kind="trivial"),
    }
    overrides = {"data.batch_size": 8, "model.embedding_dim": 4}
    config = small(variants=variants, trials=2, overrides=overrides, epochs=3).checked()
    assert list(config.space("softmax")) == list(RATES)
    assert config.space("probe") == {"model.C": Range(1.0, 10.0)}
    assert config.space("tuned") == {"model.optimizer.lr": Range(1e-4, 1e-3)}
    of_data = {"data.batch_size": 8}
    assert config.resolved_overrides("softmax") == {**overrides, "trainer.max_epochs": 3}
    assert config.resolved_overrides("probe") == of_data
    assert config.resolved_overrides("tuned") == {**of_data, "trainer.max_epochs": 3}
    assert config.resolved_overrides("majority") == {}
    runs = expand(config, dict.fromkeys(variants), "images")
    assert Counter((run.variant, run.kind) for run in runs) == {
        **{(name, "trial"): 2 for name in ("softmax", "probe", "tuned")},
        **{(name, "final"): 1 for name in variants},
    }
    longer = expand(replace(config, epochs=4), dict.fromkeys(variants), "images")
    shared = {run.variant for run in runs if run.key in keys(longer)}
    assert shared == {"probe", "majority"}


def test_a_range_of_a_variant_replaces_that_for_all_and_shared_settings_come_first():
    own = {"model.ce_weight": Range(0.1, 1.0), "model.init_args.optimizer.init_args.lr": Range(0.2, 0.3)}
    variants = {"a": Variant("a.yaml"), "b": Variant("b.yaml", space=own)}
    tuning = Tuning(1, {"model.optimizer.lr": Range(0.1, 0.2), "data.batch_size": Range(choices=[4])})
    config = small(variants=variants, tuning=tuning, overrides={}).checked()
    assert list(config.space("b")) == [*config.space("a"), "model.ce_weight"]  # each setting once
    assert config.space("b")["model.optimizer.lr"] == Range(0.2, 0.3)
    assert config.space("a") == tuning.space


def test_ranges_are_drawn_uniformly():
    assert np.allclose([Range(1e-3, 10.0, log=True).at(share) for share in (0, 0.25, 0.5)], [1e-3, 1e-2, 1e-1])
    assert Range(2.0, 4.0).at(0.75) == 3.5
    assert [Range(choices=[8, 16, 32]).at(share) for share in (0.0, 0.34, 0.99)] == [8, 16, 32]


LENGTH = "trainer.max_epochs"


def of_a(overrides=(), **settings):
    return {"variants": {"a": Variant("a.yaml", dict(overrides), **settings)}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {}}, "there is no variant"),
        ({"include": ["softmax", "triplet"]}, "triplet: there is no such variant, but softmax, cosine"),
        ({"baseline": "center"}, "baseline is center: it must be one of the variants, softmax, cosine"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [-1]}, "seeds holds -1: at least 0"),
        ({"seeds": [1, 1]}, "seeds holds 1 twice"),
        ({"steps": 5}, "epochs is 1 and steps 5"),
        ({"sizes": [0]}, "sizes holds 0: at least 1"),
        ({"sizes": []}, "sizes is empty"),
        ({"folds": 1}, "folds is 1: at least 2"),
        ({"splits": 0}, "^splits is 0: at least 1"),
        ({"splits": 2, "sizes": [None]}, "splits is 2, and all would hold all training images"),
        ({"epochs": 0}, "^epochs is 0: at least 1"),
        ({"steps": 0, "epochs": None}, "^steps is 0: at least 1"),
        ({"metric": "f1"}, "metric is 'f1'"),
        ({"tuning": Tuning(2)}, "variant softmax: tuning.trials is 2, and tuning.space names nothing"),
        ({"steps": 5, "epochs": None, "tuning": Tuning(2, space=RATES, epochs=1)}, "tuning.epochs is 1 and steps 5"),
        ({"tuning": Tuning(-1)}, "tuning.trials is -1: at least 0"),
        ({"tuning": Tuning(1, space=RATES, pruner="best")}, "tuning.pruner is 'best'"),
        ({"tuning": Tuning(1, space=RATES, epochs=0)}, "tuning.epochs is 0: at least 1"),
        ({"tuning": Tuning(1, space=RATES, n_startup_trials=0)}, "tuning.n_startup_trials is 0: at least 1"),
        ({"tuning": Tuning(1, space=RATES, n_parallel=0)}, "tuning.n_parallel is 0: at least 1"),
        ({"tuning": Tuning(1, space=RATES, val_fraction=0.0)}, "tuning.val_fraction is 0.0"),
        ({"tuning": Tuning(1, space=RATES, val_fraction=1.0)}, "tuning.val_fraction is 1.0"),
        ({"overrides": {"data.samples_per_class": 5}}, "^overrides has data.samples_per_class, .*: give sizes"),
        ({"overrides": {"data": {"init_args": {"seed": 5}}}}, "^overrides has data.seed, .*: give seeds or splits"),
        ({"overrides": {"seed_everything": 5}}, "^overrides has seed_everything, .*: give seeds instead"),
        ({"overrides": {"trainer.max_epochs": 5}}, "^overrides has trainer.max_epochs, .*: give epochs instead"),
        (
            of_a({"data.init_args.val_fraction": 0.5}),
            "^variant a: overrides has data.val_fraction, .*: give tuning.val",
        ),
        ({**of_a({LENGTH: 9}), "steps": 50, "epochs": None}, f"^variant a: overrides has {LENGTH}, and steps is 50"),
        (of_a(space={LENGTH: Range(choices=[1, 40])}), f"^variant a: space has {LENGTH}, .*: give epochs instead"),
        ({"overrides": {"model.init_args.optimizer.lr": 0.1}}, "^variant softmax: overrides give model.init_args.opti"),
        (of_a({"model.optimizer.lr": 0.1}), "^variant a: overrides give model.optimizer.lr, and tuning chooses it"),
        ({"variants": {"a": Variant()}}, "^variant a needs either config, a run file, or factory"),
        ({"variants": {"a": Variant("a.yaml", factory=factory)}}, "^variant a needs either config"),
        ({"variants": {"a": Variant(factory=factory, overrides={"x": 1})}}, "^variant a has overrides"),
        ({"variants": {"a": Variant("a.yaml", kind="rival")}}, "^variant a: kind is 'rival'"),
    ],
)
def test_what_cannot_be_planned_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        small(**changes).checked()


INFINITE = float("inf")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (Range(), "is None to None: low below high"),
        (Range(low=1.0), "is 1.0 to None"),
        (Range(1.0, 1.0), "is 1.0 to 1.0"),
        (Range(-INFINITE, 1.0), "is -inf to 1.0"),
        (Range(1.0, INFINITE), "is 1.0 to inf"),
        (Range(float("nan"), 1.0), "is nan to 1.0"),
        (Range(0.0, 0.5, log=True), "begins at 0.0: above 0"),
        (Range(choices=[]), "either low and high, or choices with at least one"),
        (Range(high=0.0, choices=[1]), "either low and high, or choices"),
    ],
)
def test_a_range_with_nothing_to_choose_from_is_refused(values, message):
    with pytest.raises(UserError, match=f"^the range of x .*{message}"):
        small(variants={"a": Variant("a.yaml", space={"x": values})}).checked()


@pytest.mark.parametrize("name", ["data.repeat", "data.oversample_to", "data.root", "data", "trainer.max_steps"])
def test_settings_that_decide_the_images_or_the_length_are_not_tuned(name):
    for changes, where in (
        ({"tuning": Tuning(1, space={name: Range(choices=["a"])})}, "tuning.space"),
        ({"variants": {"a": Variant("a.yaml", space={name: Range(choices=["a"])})}}, "variant a: space"),
    ):
        with pytest.raises(UserError, match=f"^{where} has {name}, which must be the same in all trials"):
            small(**changes).checked()
    assert small(overrides={name: "a"}).checked()  # for all alike it may be anything


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": [1, None]},
        {"splits": 2, "sizes": [5, None]},
        {"splits": 2, "sizes": [None], "folds": 2},
        {"steps": 1, "epochs": None},
        {"tuning": Tuning(1, RATES, epochs=1, pruner="successive_halving", n_startup_trials=1), "overrides": {}},
    ],
)
def test_what_is_just_possible_is_planned(changes):
    config = small(**changes).checked()
    assert {name: getattr(config, name) for name in changes} == changes


def test_overrides_of_a_variant_replace_those_for_all():
    variants = {"a": Variant("a.yaml", {"data.batch_size": 5}), "b": Variant("b.yaml")}
    config = small(variants=variants, data_root="images", epochs=2, overrides={"data.batch_size": 4}).checked()
    assert config.resolved_overrides("a") == {"data.root": "images", "trainer.max_epochs": 2, "data.batch_size": 5}
    assert config.resolved_overrides("b") == {"data.root": "images", "trainer.max_epochs": 2, "data.batch_size": 4}
    assert ComparisonConfig({"a": Variant("a.yaml")}).checked().resolved_overrides("a") == {}


@pytest.mark.parametrize(
    ("root", "settings"),
    [
        ("my_images", {"data.root": "my_images"}),
        ("my.images", {"data.root": "my.images"}),
        ("a/List.CSV", {"data": "ImageListDataModule", "data.csv": "a/List.CSV"}),
        ("a.npz", {"data": "NpzDataModule", "data.path": "a.npz"}),
    ],
)
def test_images_may_be_a_folder_a_list_or_arrays(root, settings):
    assert small(data_root=root, overrides={}, epochs=None).checked().resolved_overrides("cosine") == settings


def test_a_variant_may_have_its_own_epochs_and_values_of_what_is_not_tuned():
    longer = Variant("a.yaml", {"trainer.max_epochs": 9, "model.optimizer.lr": 0.1})
    config = small(variants={"longer": longer}, trials=0).checked()
    assert config.resolved_overrides("longer")["trainer.max_epochs"] == 9


def test_include_keeps_the_order_and_the_first_is_the_baseline():
    config = small(("softmax", "cosine", "center"), include=["center", "cosine"], sizes=[None, 7, 5]).checked()
    assert list(config.variants) == ["cosine", "center"]
    assert config.baseline == "cosine"
    assert config.sizes == [5, 7, None]
    assert replace(config, include=None).checked() == replace(config, include=None)


def test_few_images_are_told():
    """One image of 49 is 2.04 percentage points, one of 50 is 2."""
    summary = DatasetSummary("", None, [], 0, 49, "", {}, subsets=[{"kind": "trial", "val": n} for n in (1000, 10)])
    assert [line.split()[1::3] for line in _few(summary)] == [["test", "2"], ["validation", "10"]]
    assert not list(_few(replace(summary, n_tested=50, subsets=[{"kind": "final", "val": 0}])))
