from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from metricloss_pl.compare import Range, Tuning, Variant
from metricloss_pl.compare.plan import Plan
from metricloss_pl.errors import UserError
from tests.compare.tiny import RATES, tiny

SETTINGS = {"softmax": {"model": "a"}, "cosine": {"model": "b"}, "center": {"model": "c"}}


def planned(data: str = "images", settings=SETTINGS, **changes):
    return Plan.of(tiny(**changes).checked(), settings, data)


def keys(plan: Plan) -> set[str]:
    assert len({run.key for run in plan.runs}) == len(plan.runs)
    return {run.key for run in plan.runs}


def test_every_variant_has_the_same_runs():
    plan = planned(samples_per_class=[5, None], seeds=[3, 4, 5], trials=4)
    assert len(plan.runs) == 2 * 2 * (4 + 3)
    runs = {
        variant: [
            (run.kind, run.samples_per_class, run.split, run.fold, run.seed, run.trial)
            for run in plan.runs
            if run.variant == variant
        ]
        for variant in ("softmax", "cosine")
    }
    assert runs["softmax"] == runs["cosine"]
    assert {(run.seed, run.split) for run in plan.runs if run.kind == "final"} == {(3, 3), (4, 4), (5, 5)}
    assert {(run.seed, run.split) for run in plan.runs if run.kind == "trial"} == {(3, 3)}
    for run in plan.runs:
        trials = [other.trial for other in plan.awaited(run) if other.study == run.study]
        assert trials == list(range(4 if run.kind == "final" else run.trial))


def test_final_runs_come_seed_by_seed_and_fold_by_fold():
    plan = planned(seeds=[7, 0], folds=2, splits=2, trials=1, samples_per_class=[5, None])
    assert [run.kind for run in plan.runs] == ["trial"] * 16 + ["final"] * 32
    finals = [(run.seed, run.fold) for run in plan.runs[16:]]
    assert finals == [(seed, fold) for seed in (7, 0) for fold in (0, 1) for _ in range(8)]
    assert (plan.runs[0].title, plan.runs[-1].title) == (
        "softmax, 5 images a class, fold 0, trial 0",
        "cosine, all images, fold 1, seed 0",
    )
    assert planned().runs[-1].title == "cosine, 5 images a class, seed 0"


def test_splits_are_crossed_with_seeds():
    plan = planned(seeds=[0, 7], splits=3, trials=0, samples_per_class=[5, None])
    pairs = [(run.seed, run.split) for run in plan.runs if run.variant == "cosine" and run.samples_per_class == 5]
    assert sorted(pairs) == [(seed, split) for seed in (0, 7) for split in range(3)]
    every_image = [run.split for run in plan.runs if run.variant == "cosine" and run.samples_per_class is None]
    assert every_image == [0, 0]


def test_each_fold_is_tuned_on_its_own():
    plan = planned(folds=3, seeds=[0, 1], trials=2, splits=2)
    finals = [run for run in plan.runs if run.kind == "final"]
    assert Counter(run.fold for run in finals) == dict.fromkeys(range(3), 2 * 2 * 2)
    for run in finals:
        assert (run.study.fold, run.study.split) == (run.fold, run.split)
        assert [(trial.fold, trial.split, trial.trial) for trial in plan.awaited(run)] == [
            (run.fold, run.split, 0),
            (run.fold, run.split, 1),
        ]


def test_trials_wait_for_those_of_earlier_rounds():
    plan = planned(tuning=Tuning(trials=5, space=RATES, at_once=2))
    trials = plan.trials_of(plan.runs[0].study)
    assert [run.trial for run in trials] == [0, 1, 2, 3, 4]
    assert [[before.trial for before in plan.awaited(run)] for run in trials] == [[], [], [0, 1], [0, 1], [0, 1, 2, 3]]


def test_keys_stay_where_a_plan_grows_and_change_with_what_decides_a_run():
    plan = planned()
    assert keys(plan) == keys(planned())
    assert keys(plan) < keys(planned(seeds=[0, 1], samples_per_class=[10, 5], regimes=("softmax", "cosine", "center")))
    trials = {run.key for run in plan.runs if run.kind == "trial"}
    assert keys(plan) & keys(planned(trials=3)) == trials  # the choice may fall on the third
    for other in (
        planned("other images"),
        planned(seeds=[1]),
        planned(folds=2),
        planned(tuning=Tuning(2, space={"model.optimizer.lr": Range(0.005, 0.6)})),
    ):
        assert not keys(plan) & keys(other)
    untuned = planned(tuning=Tuning())
    assert keys(untuned) == keys(planned(tuning=Tuning(preset="gem", pruner="none"), metric="balanced_accuracy"))
    assert not keys(untuned) & keys(plan)
    changed = planned(settings={**SETTINGS, "cosine": {"model": "d"}})
    assert keys(plan) & keys(changed) == {run.key for run in plan.runs if run.variant == "softmax"}


def test_preset_is_overridden_by_the_space_and_common_settings_come_first():
    own = {"model.ce_weight": Range(0.1, 1.0), "model.init_args.optimizer.init_args.lr": Range(0.2, 0.3)}
    variants = {"a": Variant("a.yaml"), "b": Variant("b.yaml", space=own)}
    tuning = Tuning(1, "gem", {"data.batch_size": Range(choices=[4])})
    comparison = tiny(variants=variants, tuning=tuning, overrides={}).checked()
    assert list(comparison.space("b")) == [*comparison.space("a"), "model.ce_weight"]  # each setting once
    assert comparison.space("b")["model.optimizer.lr"] == Range(0.2, 0.3)
    assert comparison.space("a")["model.optimizer.lr"] == Range(1e-4, 0.1, log=True)
    assert comparison.space("a")["data.batch_size"].choices == [4]


@pytest.mark.parametrize(("preset", "batch_sizes"), [("gem", [8, 16, 32]), ("gem-small", [10, 25, 50])])
def test_presets_are_those_of_gem(preset, batch_sizes):
    """Both logarithmic, and batches after the size of the images."""
    assert tiny(tuning=Tuning(1, preset), overrides={}).checked().space("softmax") == {
        "model.optimizer.lr": Range(1e-4, 1e-1, log=True),
        "model.optimizer.weight_decay": Range(1e-5, 1e-1, log=True),
        "data.batch_size": Range(choices=batch_sizes),
    }


def test_ranges_are_drawn_evenly():
    assert np.allclose([Range(1e-3, 10.0, log=True).at(share) for share in (0, 0.25, 0.5)], [1e-3, 1e-2, 1e-1])
    assert Range(2.0, 4.0).at(0.75) == 3.5
    assert [Range(choices=[8, 16, 32]).at(share) for share in (0.0, 0.34, 0.99)] == [8, 16, 32]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {}}, "there is no variant"),
        ({"only": ["softmax", "triplet"]}, "triplet: there is no such variant, but softmax, cosine"),
        ({"baseline": "center"}, "baseline is center: it must be one of the variants, softmax, cosine"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [2**32]}, "seeds holds 4294967296"),
        ({"steps": 5}, "epochs is 1 and steps 5"),
        ({"seeds": [1, 1]}, "seeds holds 1 twice"),
        ({"samples_per_class": [0]}, "samples_per_class holds 0: at least 1"),
        ({"folds": 1}, "folds is 1: at least 2"),
        ({"splits": 2, "samples_per_class": [None]}, "all splits would be the same"),
        ({"metric": "f1"}, "metric is 'f1'"),
        ({"tuning": Tuning(2)}, "variant softmax: tuning.trials is 2, and nothing is named to tune"),
        ({"seeds": [-1]}, "seeds holds -1: at least 0"),
        ({"samples_per_class": []}, "samples_per_class is empty"),
        ({"splits": 0}, "^splits is 0: at least 1"),
        ({"epochs": 0}, "^epochs is 0: at least 1"),
        ({"steps": 0, "epochs": None}, "^steps is 0: at least 1"),
        ({"steps": 5, "epochs": None, "tuning": Tuning(2, space=RATES, epochs=1)}, "tuning.epochs is 1 and steps 5"),
        ({"tuning": Tuning(-1)}, "tuning.trials is -1: at least 0"),
        ({"tuning": Tuning(1, "gem-large")}, "tuning.preset is 'gem-large'"),
        ({"tuning": Tuning(1, space=RATES, pruner="best")}, "tuning.pruner is 'best'"),
        ({"tuning": Tuning(1, space=RATES, epochs=0)}, "tuning.epochs is 0: at least 1"),
        ({"tuning": Tuning(1, space=RATES, startup=0)}, "tuning.startup is 0: at least 1"),
        ({"tuning": Tuning(1, space=RATES, at_once=0)}, "tuning.at_once is 0: at least 1"),
        ({"tuning": Tuning(1, space=RATES, val_fraction=0.0)}, "tuning.val_fraction is 0.0"),
        (
            {"tuning": Tuning(1, space={f"model.x{k}": Range(0.0, 1.0) for k in range(17)})},
            "variant softmax has 17 settings to tune: at most 16",
        ),
        ({"tuning": Tuning(1, space=RATES, val_fraction=1.0)}, "tuning.val_fraction is 1.0"),
        (
            {"overrides": {"data.samples_per_class": 5}},
            "^overrides has data.samples_per_class, .*: give samples_per",
        ),
        ({"overrides": {"data": {"init_args": {"seed": 5}}}}, "^overrides has data.seed, .*: give seeds or splits"),
        ({"overrides": {"seed_everything": 5}}, "^overrides has seed_everything, .*: give seeds instead"),
        ({"overrides": {"trainer.max_epochs": 5}}, "^overrides has trainer.max_epochs, .*: give epochs instead"),
        (
            {"variants": {"a": Variant("a.yaml", {"data.init_args.val_fraction": 0.5})}},
            "^variant a: overrides has data.val_fraction, .*: give tuning.val_fraction instead",
        ),
        (
            {"variants": {"a": Variant("a.yaml", {"trainer.max_epochs": 9})}, "steps": 50, "epochs": None},
            "^variant a: overrides has trainer.max_epochs, and steps is 50",
        ),
        (
            {"variants": {"a": Variant("a.yaml", space={"trainer.max_epochs": Range(choices=[1, 40])})}},
            "^variant a: space has trainer.max_epochs, .*: give epochs instead",
        ),
        (
            {"variants": {"a": Variant("a.yaml", space={"data.samples_per_class": Range(choices=[60])})}},
            "^variant a: space has data.samples_per_class",
        ),
        (
            {"tuning": Tuning(1, space={"data.repeat": Range(choices=[1, 9])})},
            "^tuning.space has data.repeat, .* same in",
        ),
        ({"tuning": Tuning(1, space={"data": Range(choices=["a.yaml"])})}, "^tuning.space has data, which has to be"),
        (
            {"overrides": {"model.init_args.optimizer.init_args.lr": 0.1}},
            "^variant softmax: overrides give model.init_args.optimizer.init_args.lr, and tuning chooses it",
        ),
        (
            {"variants": {"a": Variant("a.yaml", {"model.optimizer.lr": 0.1})}},
            "^variant a: overrides give model.optimizer.lr, and tuning chooses it",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        tiny(**changes).checked()


INFINITE = float("inf")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (Range(), "is None to None: low below high"),
        (Range(low=1.0), "is 1.0 to None"),
        (Range(high=1.0), "is None to 1.0"),
        (Range(1.0, 0.5), "is 1.0 to 0.5"),
        (Range(1.0, 1.0), "is 1.0 to 1.0"),
        (Range(-INFINITE, 1.0), "is -inf to 1.0"),
        (Range(1.0, INFINITE), "is 1.0 to inf"),
        (Range(float("nan"), 1.0), "is nan to 1.0"),
        (Range(0.0, 0.5, log=True), "begins at 0.0: above 0"),
        (Range(choices=[]), "either low and high, or choices with a value"),
        (Range(low=0.0, choices=[1]), "either low and high, or choices"),
        (Range(high=0.0, choices=[1]), "either low and high, or choices"),
    ],
)
def test_a_range_with_nothing_to_choose_from_is_refused(values, message):
    with pytest.raises(UserError, match=f"^the range of x .*{message}"):
        tiny(variants={"a": Variant("a.yaml", space={"x": values})}).checked()


@pytest.mark.parametrize(
    "name",
    [
        *("data.repeat", "data.oversample_to", "data.test_fraction", "data.root", "data.csv", "data.path"),
        *("data.class_path", "config", "data", "trainer", "trainer.max_steps", "trainer.max_time"),
    ],
)
def test_what_is_no_matter_of_tuning_is_refused(name):
    for changes, where in (
        ({"tuning": Tuning(1, space={name: Range(choices=["a"])})}, "tuning.space"),
        ({"variants": {"a": Variant("a.yaml", space={name: Range(choices=["a"])})}}, "variant a: space"),
    ):
        with pytest.raises(UserError, match=f"^{where} has {name}, which has to be the same in all trials"):
            tiny(**changes).checked()
    assert tiny(overrides={name: "a"}).checked()  # for all alike it may be anything


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": [0, 2**32 - 1]},
        {"samples_per_class": [1, None]},
        {"splits": 1, "samples_per_class": [None]},
        {"splits": 2, "samples_per_class": [5, None]},
        {"splits": 2, "samples_per_class": [None], "folds": 2},
        {"steps": 1, "epochs": None},
        {"metric": "balanced_accuracy"},
        {"tuning": Tuning(1, "gem-small", epochs=1, pruner="halving", startup=1, at_once=1), "overrides": {}},
        {"tuning": Tuning(1, space={"model.shift": Range(-1.0, 0.0)}, pruner="none")},
        {"tuning": Tuning(1, space={f"model.x{k}": Range(0.0, 1.0) for k in range(16)})},
    ],
)
def test_what_is_just_possible_is_planned(changes):
    comparison = tiny(**changes).checked()
    assert {name: getattr(comparison, name) for name in changes} == changes


def test_a_variants_own_values_come_after_those_for_all():
    variants = {"a": Variant("a.yaml", {"data.batch_size": 5}), "b": Variant("b.yaml")}
    comparison = tiny(variants=variants, data_root="images", epochs=2, overrides={"data.batch_size": 4}).checked()
    assert comparison.overriding("a") == {"data.root": "images", "trainer.max_epochs": 2, "data.batch_size": 5}
    assert comparison.overriding("b") == {"data.root": "images", "trainer.max_epochs": 2, "data.batch_size": 4}
    assert tiny(epochs=None, steps=3, overrides={}).overriding("softmax") == {}


def test_a_variant_may_have_epochs_of_its_own_and_values_of_what_is_not_tuned():
    longer = Variant("a.yaml", {"trainer.max_epochs": 9, "model.optimizer.lr": 0.1})
    assert tiny(variants={"longer": longer}, trials=0).checked().overriding("longer")["trainer.max_epochs"] == 9


def test_only_keeps_the_order_and_the_first_is_the_baseline():
    comparison = tiny(("softmax", "cosine", "center"), only=["center", "cosine"]).checked()
    assert list(comparison.variants) == ["cosine", "center"]
    assert comparison.baseline == "cosine"
    assert replace(comparison, only=None).checked() == replace(comparison, only=None)
