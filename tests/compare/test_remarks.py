"""Each warning where it begins and where it ends, on findings that are made up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metricloss_pl.compare import remarks
from metricloss_pl.compare.statistics import Estimate
from metricloss_pl.compare.summary import Findings, Row


def row(variant, mean=None, difference=None, p=None, train=None, repetitions=3):
    accuracy = None if mean is None else Estimate(mean, None, None, None, None, repetitions, 100)
    return Row(variant, (10,), 1, 0, 1, accuracy, difference, p, None, train, None, None)


def findings(rows=(), test_images=(50, 50), finals=(), failed=(), trials=(), **plan):
    """Of the variants a, b, ... with so many test images of each class."""
    plan = {"variants": dict.fromkeys("abcde"), "baseline": "a", "samples_per_class": [10], "keys": {}, **plan}
    names = [f"class {label}" for label in range(len(test_images))]
    made = Findings(Path(), {**plan, "class_names": names}, dict(enumerate(finals)), list(failed), list(trials))
    made.test_images = np.array(test_images)
    made.rows = made.overall = list(rows)
    return made


def run(variant, kind="final", size=10, split=0, seed=0, fold=None, **facts):
    place = {"variant": variant, "kind": kind, "samples_per_class": size, "split": split, "seed": seed, "fold": fold}
    return {"key": "", **place, "metrics": {}, **facts}


SURELY, PERHAPS = "Nothing has been learned: no", "Perhaps nothing has been learned: no"
BALANCED = {"metric": "balanced_accuracy"}


@pytest.mark.parametrize(
    ("test_images", "mean", "plan", "beginning"),
    [
        # Guessing 50 % has a standard error of 5 points; a tenth of the way to no mistake is another 5.
        ((50, 50), 0.55, {}, SURELY),
        ((50, 50), 0.56, {}, None),
        # One of 2.5 points: what lies between one and two of them is no certainty.
        ((200, 200), 0.525, {}, SURELY),
        ((200, 200), 0.53, {}, PERHAPS),
        ((200, 200), 0.56, {}, None),
        # One of 0.5 points: two of them are less than the tenth.
        ((5000, 5000), 0.51, {}, PERHAPS),
        ((5000, 5000), 0.511, {}, None),
        # Two standard errors reach half of the way to no mistake, which would be learning: with 16 images, not with 18.
        ((8, 8), 0.5, {}, PERHAPS),
        ((9, 9), 0.5, {}, SURELY),
        # Of the frequent class, whose share is 80 %, or of either one, of which the rare one decides the error.
        ((80, 20), 0.82, {}, SURELY),
        ((80, 20), 0.83, {}, None),
        ((400, 100), 0.527, BALANCED, SURELY),
        ((400, 100), 0.529, BALANCED, PERHAPS),
        ((400, 100), 0.55, BALANCED, PERHAPS),
        ((400, 100), 0.56, BALANCED, None),
        ((50, 50, 50), 0.371, BALANCED, SURELY),
        ((50, 50, 50), 0.373, BALANCED, PERHAPS),
        # A class without a test image is none to guess; one with a single one is.
        ((50, 50, 0), 0.55, BALANCED, SURELY),
        ((5000, 1), 0.56, BALANCED, None),
        ((0, 0), 0.0, {}, None),
    ],
)
def test_nothing_learned(test_images, mean, plan, beginning):
    said = remarks._nothing_learned(findings([row("a", mean), row("b")], test_images, **plan))
    assert len(said) == (beginning is not None)
    assert beginning is None or said[0].startswith(beginning)


@pytest.mark.parametrize(
    ("low", "names"),
    [
        ("b", "b at 10 images a class is not"),
        ("bcd", "b at 10 images a class, c at 10 images a class and d at 10 images a class are not"),
        ("bcde", "b at 10 images a class, c at 10 images a class and 2 more in the tables are not"),
    ],
)
def test_which_variants_have_learned_nothing(low, names):
    (said,) = remarks._nothing_learned(findings([row(name, 0.5 if name in low else 0.9) for name in "abcde"]))
    assert said.startswith(f"{names} shown to be better than naming one class for every image (50.0 % accuracy)")


@pytest.mark.parametrize(
    ("train", "plan", "help_"),
    [
        ((0.76, 0.9), {}, "The training images were learned (76.0 %)"),
        ((0.75, 0.9), {}, "More epochs (--epochs)"),
        ((0.75, 0.9), {"steps": 50}, "More steps (--steps)"),
        ((None, None), {}, "More epochs (--epochs)"),
    ],
)
def test_what_helps_where_nothing_was_learned(train, plan, help_):
    """Training images count as learned from half of the way between guessing and no mistake."""
    rows = [row("a", 0.5, train=train[0]), row("b", 0.5, train=train[1])]
    assert help_ in remarks._nothing_learned(findings(rows, **plan))[0]


def differing(images, error=1e-9, degrees=10.0, repetitions=3):
    """A difference; with so small an error the least that could be shown is that of six images."""
    return Estimate(0.0, 0.0, 0.0, 0.0, 1.0, repetitions, images, error, degrees)


@pytest.mark.parametrize(
    ("images", "said", "small"),
    [
        (6, "no difference could have been shown with 6", True),
        (7, "differences below about 86 points could not have been shown with 7", True),
        (60, "differences below about 10 points could not", True),
        (61, "differences below about 10 points could not", False),
        (300, "differences below about 2 points could not", False),
        (301, "differences below about 2.0 points could not", False),
    ],
)
def test_the_least_difference_in_words(images, said, small):
    made = findings([row("a", 0.9), row("b", 0.9, differing(images), 0.051)])
    assert remarks.least_difference(made).startswith(said)
    assert remarks.is_small(made) == small
    assert len(remarks._small_test_part(made)) == small


def test_the_least_difference_is_looked_for_where_none_was_shown():
    shown, open_ = row("b", 0.9, differing(6), 0.05), row("c", 0.9, differing(60), 0.06)
    assert remarks.least_difference(findings([row("a", 0.9), shown])) is None
    assert not remarks.is_small(findings([row("a", 0.9), shown]))
    assert "with 60 test images" in remarks.least_difference(findings([row("a"), shown, open_]))
    certain = row("b", 0.9, Estimate(0.0, 0.0, 0.0, 0.0, 1.0, 3, 9), 1.0)  # without an error
    assert remarks.least_difference(findings([row("a"), certain])) is None
    # Of two the smaller, each at the level of two tests, whose six images are seven.
    worse = row("b", 0.9, differing(35), 0.5)
    assert "below about 12 points could not have been shown with 60 test" in remarks.least_difference(
        findings([row("a"), worse, open_])
    )


@pytest.mark.parametrize(
    ("degrees", "plan", "more"),
    [
        (3.9, {}, "More seeds help most."),
        (4.0, {}, "What helps most: --folds 5, which tests every image once, in about 5 times as many runs."),
        (4.0, {"folds": 5}, "More images help most."),
    ],
)
def test_what_makes_a_comparison_larger(degrees, plan, more):
    """Of three repetitions: fewer than twice their two degrees of freedom are left where trainings differ most."""
    (said,) = remarks._small_test_part(findings([row("b", 0.9, differing(50, 0.1, degrees), 0.5)], **plan))
    assert said.startswith("This comparison is too small to tell much: differences below about ")
    assert said.endswith(more)


@pytest.mark.parametrize(
    ("test_images", "said"),
    [
        ((5, 5), None),
        ((4, 5), "1 class has fewer than 5 test images (class 0 4): "),
        ((4, 0, 2, 9), "3 classes have fewer than 5 test images (class 0 4, class 1 0, class 2 2): "),
        ((4, 1, 2, 3), "4 classes have fewer than 5 test images (class 0 4, class 1 1, class 2 2 and 1 more): "),
        ((0, 0), None),  # nothing is there yet
    ],
)
def test_small_classes(test_images, said):
    found = remarks._small_classes(findings(test_images=test_images))
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)


def test_a_failure_is_given_with_a_reason_of_one_line():
    for reason, said in (("x" * 100, "x" * 100), ("x" * 101, "x" * 100 + "..."), (None, "unknown")):
        failed = [run("b", reason="final"), *(run(name, "trial", reason=reason) for name in "bbc")]
        found = remarks._failed_trials(findings(failed=failed, trials=[run("b", "trial"), run("c", "trial")]))
        assert found[0].startswith(f"b: 2 of 3 trials failed ({said}), so")
        assert found[1].startswith(f"c: 1 of 2 trials failed ({said}), so")
        assert len(found) == 2


def test_each_variant_has_its_own_reason():
    failed = [run("a", "trial", reason="tuning"), run("a", reason="one"), run("b", reason="two"), run("b")]
    rows = [replace(row("a", 0.9), failed=1, planned=2), replace(row("b"), failed=2, planned=2, done=0), row("c")]
    assert remarks._failed_finals(findings(rows, failed=failed)) == [
        "a: 1 of 2 final runs failed (one); it is judged by those that did not.",
        "b: 2 of 2 final runs failed (two); it is not judged.",
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "warned"),
    [
        ({"epochs": 5, "steps": 50}, {"epochs": 5, "steps": 50}, False),
        ({"epochs": 5, "steps": 50}, {"epochs": 5, "steps": 49}, True),
        ({"epochs": 5, "steps": 50}, {"epochs": 6, "steps": 50}, True),
        ({"epochs": 5, "steps": 50, "size": 20}, {"epochs": 6, "steps": 60}, False),
        ({"epochs": 5, "steps": 50, "seed": 1}, {"epochs": 6, "steps": 60}, False),
        ({"epochs": 5, "steps": 50, "split": 1}, {"epochs": 6, "steps": 60}, False),
        ({"epochs": 5, "steps": 50, "fold": 1}, {"epochs": 6, "steps": 60}, False),
    ],
)
def test_training_of_unequal_length_is_told_where_all_else_is_the_same(ours, theirs, warned):
    made = findings(finals=[run("a", **ours), run("b", **theirs)], samples_per_class=[10, 20])
    assert len(remarks._unequal_training(made)) == warned


def test_epochs_and_steps_have_their_number():
    made = findings(finals=[run("a", epochs=1, steps=1), run("a", seed=1, epochs=1, steps=2)])
    assert remarks.trainings(made) == [("Training", "1 epoch, 1 to 2 steps")]
    made = findings(finals=[run("a", epochs=None, steps=1)])
    assert remarks.trainings(made) == [("Training", "1 step")]


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (["x", "y"], ["y", "x"], None),
        (["x"], [None], "a with git x; b with git unknown."),
        (["x", "x"], ["x", "y"], "a with git x; b with git x or y."),
        (["x"], [], None),  # one that has no run at all was not run elsewhere
        ([None], [None], None),
    ],
)
def test_where_variants_were_run(ours, theirs, said):
    finals = [run(name, seed=k, git=git) for name, of in (("a", ours), ("b", theirs)) for k, git in enumerate(of)]
    found = remarks._unlike_surroundings(findings(finals=finals))
    assert len(found) == (said is not None)
    assert said is None or found[0].endswith(said)


@pytest.mark.parametrize("number", [1, 2])
def test_how_much_is_explained_depends_on_the_repetitions(number):
    made = findings([row("a"), row("b", 0.9, repetitions=number)])
    assert ("no interval and no test" in remarks.in_plain_words(made)) == (number == 1)
    assert ("p" in dict(remarks.how_to_read(made))) == (number > 1)
    terms = remarks.technical_terms(made)
    assert bool(terms) == (number > 1)
