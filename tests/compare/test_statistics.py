"""Intervals and tests beside slow references and published closed forms, and their error rates."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from metricloss_pl.compare import statistics
from metricloss_pl.compare.statistics import LEVEL, accuracy, difference
from results.comparison_statistics import (
    ACCURACIES,
    IMAGES,
    REPETITIONS,
    RESULTS,
    SCENARIOS,
    fixed_test_set,
    simulate_fixed,
    simulate_folds,
    tables,
)


def with_rows(values, *rows):
    return np.vstack([values, *(np.full(values.shape[1], float(row)) for row in rows)])


def slow_error(values):
    """Return mean, squared error of repetitions and of images, by loops over pairs of repetitions."""
    images, repetitions = values.shape
    means = [sum(values[:, u]) / images for u in range(repetitions)]
    mean = sum(means) / repetitions
    between = sum((m - mean) ** 2 for m in means) / (repetitions - 1)
    covariances = [
        sum((values[i, u] - means[u]) * (values[i, v] - means[v]) for i in range(images)) / (images - 1)
        for u in range(repetitions)
        for v in range(repetitions)
        if u != v
    ]
    return mean, between / repetitions, sum(covariances) / len(covariances) / images


def cochran_cox(by_repetitions, by_images, repetitions, images, tail=LEVEL / 2):
    """Return the standard error and the mean of both critical values, weighted by their parts of its square."""
    squared = by_repetitions + by_images
    values = stats.t.isf(tail, [repetitions - 1, images - 1])
    return math.sqrt(squared), float(np.dot([by_repetitions, by_images], values) / squared)


@pytest.mark.parametrize("repetitions", [2, 3, 6])
def test_interval_is_that_of_the_slow_reference(repetitions):
    generator = np.random.default_rng(repetitions)
    values = generator.normal(0.3, 1, (40, 1)) + generator.normal(size=(40, repetitions))
    values += generator.normal(size=(1, repetitions))
    values /= 20
    found = difference(values)
    mean, by_repetitions, by_images = slow_error(with_rows(values, 1, -1))
    error, critical = cochran_cox(by_repetitions, by_images, repetitions, 42)
    ends = (mean - critical * error, mean + critical * error)
    assert found.interval == pytest.approx(ends, abs=3e-5)  # the added images covary with the mean of all repetitions
    assert found.value == pytest.approx(values.mean())
    assert found.std == pytest.approx(values.mean(axis=0).std(ddof=1))
    assert (found.method, found.n_repetitions, found.n_images) == ("obuchowski_rockette", repetitions, 40)
    correct = np.abs(values)
    mean, by_repetitions, by_images = slow_error(with_rows(correct, 0, 0, 1, 1))
    error, critical = cochran_cox(by_repetitions, by_images, repetitions, 44)
    ends = (mean - critical * error, mean + critical * error)
    assert accuracy(correct).interval == pytest.approx(ends, abs=3e-5)
    # The p-value is the level at which the interval ends at 0, the detectable difference has the power.
    tail = found.p / 2
    assert abs(found.center) == pytest.approx(found.error * cochran_cox(
        found.share, 1 - found.share, repetitions, 42, tail)[1])  # fmt: skip
    factor = [cochran_cox(found.share, 1 - found.share, repetitions, 42, tail)[1] for tail in (LEVEL / 2 / 3, 0.2)]
    assert found.minimum_detectable(3) == pytest.approx(min(1, sum(factor) * found.error * 42 / 40))


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (3, 0), (5, 0), (6, 0), (9, 2), (5, 5), (14, 2), (2, 14)])
def test_difference_of_trainings_that_decide_alike_is_that_of_bonett_and_price(better, worse):
    """Five images that all speak for one side show nothing, as in the sign test; six do."""
    differences = np.array([1.0] * better + [-1.0] * worse + [0.0] * (40 - better - worse))
    found = difference(np.repeat(differences[:, None], 3, axis=1))
    first, second = (better + 1) / 42, (worse + 1) / 42
    error = math.sqrt((first + second - (first - second) ** 2) / 41)
    assert found.interval == pytest.approx(stats.t.interval(0.95, 41, first - second, error))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(first - second) / error, 41))
    assert (found.p <= LEVEL) == (stats.binomtest(better, max(better + worse, 1)).pvalue <= LEVEL)
    assert found.value == pytest.approx((better - worse) / 40)


@pytest.mark.parametrize("right", [0, 3, 17, 20])
def test_accuracy_of_trainings_that_decide_alike_is_that_of_agresti_and_coull(right):
    correct = np.repeat((np.arange(20) < right).astype(float)[:, None], 3, axis=1)
    center = (right + 2) / 24
    low, high = stats.t.interval(0.95, 23, center, math.sqrt(center * (1 - center) / 23))
    assert accuracy(correct).interval == pytest.approx((max(low, 0), min(high, 1)))
    assert accuracy(correct).value == right / 20


@pytest.mark.parametrize("right", [(2, 25), (6, 30), (0, 30)])
def test_balanced_accuracy_of_trainings_that_decide_alike_is_that_of_price_and_bonett(right):
    counts = np.array([6, 30])
    labels = np.repeat([0, 1], counts)
    correct = np.concatenate([np.arange(n) < k for n, k in zip(counts, right, strict=True)]).astype(float)
    found = accuracy(np.repeat(correct[:, None], 4, axis=1), labels)
    shares = (np.array(right) + 1) / (counts + 2)
    variances = shares * (1 - shares) / (counts + 1) / 4
    degrees = variances.sum() ** 2 / (variances**2 / (counts + 1)).sum()
    low, high = stats.t.interval(0.95, degrees, shares.mean(), math.sqrt(variances.sum()))
    assert found.interval == pytest.approx((max(low, 0), min(high, 1)))
    assert found.value == pytest.approx((np.array(right) / counts).mean())


def test_balanced_difference_of_equal_classes_is_about_the_difference():
    """Classes are strata: what differs between them does not widen the interval."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 200)
    values = np.repeat(generator.choice([-1.0, 0.0, 1.0], (400, 1), p=[0.1, 0.7, 0.2]), 3, axis=1)
    plain, balanced = difference(values), difference(values, labels)
    assert balanced.value == pytest.approx(plain.value)
    assert balanced.interval == pytest.approx(plain.interval, abs=2e-3)
    shifted = np.where(labels[:, None] == 0, 0.3, -0.3) + values
    assert np.diff(difference(shifted, labels).interval) == pytest.approx(np.diff(balanced.interval), rel=0.02)
    assert np.diff(difference(shifted).interval) > 1.05 * np.diff(balanced.interval)


@pytest.mark.parametrize("repetitions", [2, 5])
def test_trainings_that_contradict_each_other_do_not_narrow_the_interval(repetitions):
    values = np.ones((40, repetitions))
    values[:, ::2] = -1
    values[::2] *= -1  # repetitions have the same mean, 0, and covary negatively
    nothing = difference(np.zeros((40, repetitions)))
    assert difference(values).interval == pytest.approx(nothing.interval)
    assert nothing.p == pytest.approx(1)
    assert 2.5 / 40 < nothing.interval[1] < 3 / 40  # about the rule of three


def test_folds_beside_loops():
    """Nadeau & Bengio: the variance of the folds' means, times 1 / J + test images / training images."""
    generator = np.random.default_rng(2)
    fold = np.arange(60) % 5
    known = generator.choice([-1.0, 0.0, 1.0], 60, p=[0.1, 0.5, 0.4])
    values = np.where(fold[:, None] == np.arange(5), known[:, None], np.nan)
    found = difference(values, test_share=1 / 4)
    means = [known[fold == k].mean() for k in range(5)]
    error = math.sqrt((1 / 5 + 1 / 4) * np.var(means, ddof=1))
    assert (found.method, found.n_repetitions, found.n_images) == ("corrected_resampled_t", 5, 60)
    assert found.value == pytest.approx(np.mean(means))
    center = known.sum() / 62
    half = stats.t.isf(0.025, 4) * error
    assert found.interval == pytest.approx((center - half, center + half))
    assert found.p == pytest.approx(2 * stats.t.sf(center / error, 4))
    low, high = difference(np.where(np.isnan(values), np.nan, 0.0), test_share=1 / 4).interval
    assert 3 / 60 < high == -low < 5 / 60  # folds without any difference are no certainty


def test_balanced_folds_weigh_the_classes_of_each_fold():
    labels = np.array([0, 0, 2, 0, 2, 2])  # no image of class 1
    values = np.array([[1, np.nan], [0, np.nan], [1, np.nan], [np.nan, 0], [np.nan, 1], [np.nan, 1]])
    found = accuracy(values, labels, test_share=1.0)
    assert found.value == pytest.approx(np.mean([(0.5 + 1) / 2, (0 + 1) / 2]))


@pytest.mark.parametrize("labels", [None, np.array([0, 0, 1, 1])])
def test_one_repetition_has_no_interval(labels):
    found = difference(np.array([[1.0], [0.0], [-1.0], [1.0]]), labels)
    assert (found.value, found.method) == (0.25, "one_repetition")
    assert all(map(math.isnan, (found.std, *found.interval, found.p, found.minimum_detectable())))


@pytest.mark.parametrize("images", [1, 2, 4, 8])
def test_hardly_any_images_show_nothing(images):
    """Nearly everything is left open, also where all images speak for one side."""
    found = difference(np.zeros((images, 3)))
    assert found.interval[1] >= min(1, 2 / images)
    assert difference(np.ones((images, 3))).value == 1
    assert (difference(np.ones((images, 3))).p <= LEVEL) == (images >= 5)
    assert difference(np.ones((images, 3)), np.arange(images)).p > LEVEL  # one image per class


def test_a_clear_difference_of_many_images():
    found = difference(np.ones((5000, 3)))
    assert found.p == statistics.SMALLEST_P
    assert 0.99 < found.interval[0] < found.interval[1] == 1


# --------------------------------------------------------------------------------------------------------- error rates


def most(rate, count):
    """Return the largest share in `count` simulations that a true rate explains."""
    return rate + 2.6 * math.sqrt(rate * (1 - rate) / count)


def claims(simulated):
    return np.mean([difference(table).p <= LEVEL for table in simulated])


@pytest.mark.parametrize("scenario", ["one loss twice", "two losses"])
@pytest.mark.parametrize(("images", "repetitions"), [(20, 3), (400, 3), (400, 5)])
def test_a_tie_is_called_a_tie(images, repetitions, scenario):
    generator = np.random.default_rng(images + repetitions)
    simulated = fixed_test_set(generator, 500, images, repetitions, (0.9, 0.9), scenario)
    assert claims(simulated) <= most(LEVEL, 500)


def test_minimum_detectable_difference_is_found_in_80_percent():
    generator = np.random.default_rng(0)
    tie = fixed_test_set(generator, 200, 600, 8, (0.85, 0.85), "two losses")
    least = float(np.median([difference(table).minimum_detectable() for table in tie]))
    simulated = fixed_test_set(generator, 400, 600, 8, (0.85, 0.85 + least), "two losses")
    assert 0.72 < claims(simulated) < 0.9


@pytest.mark.parametrize(
    ("counts", "recalls"), [((6, 80), (0.8, 0.97)), ((20, 60), (0.6, 0.9)), ((3,) * 40, (0.7,) * 40)]
)
def test_balanced_accuracy_of_rare_classes_is_covered(counts, recalls):
    generator = np.random.default_rng(len(counts))
    labels = np.repeat(np.arange(len(counts)), counts)
    covered = alarms = 0
    for _ in range(300):
        first, second = generator.random((2, len(labels), 3)) < np.array(recalls)[labels][:, None]
        low, high = accuracy(first, labels).interval
        covered += low <= np.mean(recalls) <= high
        alarms += difference(second.astype(float) - first, labels).p <= LEVEL
    assert covered / 300 >= 1 - most(LEVEL, 300)
    assert alarms / 300 <= most(LEVEL, 300)


COMPARISONS = 1000


@pytest.fixture(scope="module")
def trained():
    """Correctness of 150 trainings per classifier and number of training images: (test images, trainings) of digits."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import RidgeClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    training, test = order[:500], order[500:]
    classifiers = {"neighbor": KNeighborsClassifier(1), "ridge": RidgeClassifier(), "svm": SVC(kernel="linear")}
    found = {}
    for name, size in [("neighbor", 100), ("ridge", 100), ("ridge", 150), ("ridge", 200), ("svm", 180)]:
        columns = []
        for seed in range(150):
            own = np.random.default_rng(seed).permutation(training)[:size]
            model = classifiers[name].fit(images[own] / 16, labels[own])
            columns.append(model.predict(images[test] / 16) == labels[test])
        found[name, size] = np.array(columns, dtype=float).T
    return found


def resampled(first, second, images, repetitions, paired):
    """Yield comparisons of trainings and test images drawn from those of two classifiers, with replacement."""
    generator = np.random.default_rng(images + repetitions)
    for _ in range(COMPARISONS):
        rows = generator.integers(0, len(first), images)
        columns = generator.integers(0, first.shape[1], (2, repetitions))
        yield second[np.ix_(rows, columns[int(not paired)])] - first[np.ix_(rows, columns[0])]


@pytest.mark.slow
@pytest.mark.parametrize("classifier", [("neighbor", 100), ("ridge", 150)])
@pytest.mark.parametrize(("images", "repetitions"), [(50, 3), (500, 3), (500, 5), (1000, 10)])
def test_a_loss_is_rarely_found_better_than_itself(trained, classifier, images, repetitions):
    values = trained[classifier]
    assert claims(resampled(values, values, images, repetitions, paired=False)) <= most(LEVEL, COMPARISONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair", [(("ridge", 150), ("neighbor", 100)), (("ridge", 200), ("svm", 180)), (("ridge", 100), ("ridge", 150))]
)
@pytest.mark.parametrize(("images", "repetitions"), [(500, 3), (500, 5), (1000, 10)])
def test_intervals_cover_the_true_difference(trained, pair, images, repetitions):
    first, second = (trained[name] for name in pair)
    truth = second.mean() - first.mean()
    ends = [difference(table).interval for table in resampled(first, second, images, repetitions, paired=True)]
    covered = np.mean([low <= truth <= high for low, high in ends])
    assert 1 - most(0.07, COMPARISONS) <= covered <= most(0.97, COMPARISONS)


@pytest.mark.slow
def test_five_points_are_found_with_500_images_and_five_seeds(trained):
    first, second = trained["ridge", 200], trained["svm", 180]
    assert 0.045 < second.mean() - first.mean() <= 0.05
    assert claims(resampled(first, second, 500, 5, paired=True)) >= 0.8


# ---------------------------------------------------------------------------------------------------------------- Holm


def step_down(p_values, level):
    """Return which are rejected at a level, by Holm's procedure as he states it."""
    rejected = [False] * len(p_values)
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def test_holm_rejects_what_the_procedure_rejects():
    generator = np.random.default_rng(0)
    for _ in range(200):
        p_values = np.round(generator.random(generator.integers(1, 8)) ** 3, 2).tolist()
        adjusted = statistics.holm(p_values)
        assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
        for level in (0.0101, 0.0501, 0.2001, 0.7001):
            assert [a <= level for a in adjusted] == step_down(p_values, level)
    assert statistics.holm([]) == []


# ------------------------------------------------------------------------------------------------------------ the page


def test_page_has_the_tables_of_the_stored_simulation():
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    page = (RESULTS.parent.parent / "docs" / "comparison.md").read_text(encoding="utf-8")
    shown = tables(lines)
    assert len(shown) == 3
    assert all(f"\n\n{table}\n\n" in page for table in shown)
    assert len(lines) == len(IMAGES) * len(REPETITIONS) * len(ACCURACIES) * len(SCENARIOS) + 24


@pytest.mark.slow
def test_stored_simulation_is_that_of_the_script():
    """One setting of each design, whose rates agree within Monte Carlo error."""
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    fixed = simulate_fixed(100, 3, (0.85, 0.9), "two losses")
    folded = simulate_folds(100, 5, 1, "two learners")
    for found, names in [
        (fixed, ("images", "repetitions", "scenario")),
        (folded, ("images", "folds", "seeds", "learners")),
    ]:
        (stored,) = (
            line
            for line in lines
            if all(line.get(name) == found[name] for name in names)
            and line.get("accuracies") in (None, list(found.get("accuracies", ())))
        )
        for method in ("shipped", "student"):
            for rate in ("claimed", "covered"):
                assert found[method][rate] == pytest.approx(stored[method][rate], abs=0.04)
