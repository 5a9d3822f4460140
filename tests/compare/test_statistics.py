"""The tests of the comparison keep their level and find what is there; everything beside an independent reference."""

import math

import numpy as np
import pytest
from scipy import stats

from metricloss_pl.compare import statistics
from metricloss_pl.compare.statistics import LEVEL
from tests.compare.simulated import correctness

REPEATS = 500
MOST_ALARMS = LEVEL + 2.6 * math.sqrt(LEVEL * (1 - LEVEL) / REPEATS)


def slow_estimate(values):
    """Mean, standard error and degrees of freedom by loops over repetitions and images."""
    images, repetitions = values.shape
    columns = [{i: values[i, u] for i in range(images) if not math.isnan(values[i, u])} for u in range(repetitions)]
    means = [sum(column.values()) / len(column) for column in columns]
    mean = sum(means) / repetitions
    between = sum((value - mean) ** 2 for value in means) / (repetitions - 1)

    def shared(u, v):
        both = sorted(columns[u].keys() & columns[v].keys())
        if len(both) < 2:
            return 0.0
        x, y = [columns[u][i] for i in both], [columns[v][i] for i in both]
        covariance = sum((a - sum(x) / len(x)) * (b - sum(y) / len(y)) for a, b in zip(x, y, strict=True)) / (
            len(x) - 1
        )
        return covariance * len(both) / (len(columns[u]) * len(columns[v]))

    own = sum(shared(u, u) for u in range(repetitions)) / repetitions
    pairs = [(u, v) for u in range(repetitions) for v in range(repetitions) if u != v]
    common = max(0.0, sum(shared(u, v) for u, v in pairs) / len(pairs))
    training = max(between, own - common) / repetitions
    degrees = (training + common) / (training / (repetitions - 1) + common / (images - 1))
    return mean, math.sqrt(training + common), degrees


@pytest.mark.parametrize("tested", [1.0, 0.4])
def test_estimate_is_that_of_the_slow_reference(tested):
    generator = np.random.default_rng(3)
    values = generator.normal(size=(40, 1)) + generator.normal(size=(40, 4)) + generator.normal(size=(1, 4))
    values[generator.random((40, 4)) > tested] = np.nan
    values = values[~np.isnan(values).all(axis=1)]
    found = statistics.estimate(values)
    mean, error, degrees = slow_estimate(values)
    low, high = stats.t.interval(0.95, degrees, mean, error)
    assert (found.mean, found.low, found.high) == pytest.approx((mean, low, high))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(mean) / error, degrees))
    assert found.spread == pytest.approx(np.nanmean(values, axis=0).std(ddof=1))
    assert (found.repetitions, found.images) == (4, len(values))


@pytest.mark.parametrize(
    "values",
    [[[1.0, 0.8], [0.0, 0.5]], [[1.0, 0.0], [0.0, 1.0], [0.9, 0.0]], [[1.0, 0.0, math.nan], [0.5, math.nan, 0.0]]],
)
def test_estimate_of_hardly_any_images(values):
    """Two of them; trainings that are right where the others are wrong; two trainings without an image in common."""
    found = statistics.estimate(np.array(values))
    mean, error, degrees = slow_estimate(np.array(values))
    assert (found.mean, found.error, found.degrees) == pytest.approx((mean, error, degrees))


def test_estimate_of_one_image_is_the_t_test_over_trainings():
    found, expected = statistics.estimate(np.array([[1.0, 0.4, 0.3]])), stats.ttest_1samp([1.0, 0.4, 0.3], 0)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


@pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (0.5, 0.0), (-0.5, 0.0)])
def test_estimate_of_what_never_varies_is_a_point(value, p):
    found = statistics.estimate(np.full((4, 3), value))
    assert (found.mean, found.spread, found.low, found.high, found.p) == (value, 0.0, value, value, p)


def test_an_accuracy_is_the_mean_over_repetitions_whatever_each_has_tested():
    values = np.array([[1.0, np.nan], [1.0, np.nan], [0.0, np.nan], [np.nan, 0.0]])
    assert statistics.accuracy_estimate(values).mean == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize(("rare", "common"), [(2, 30), (6, 80), (20, 20)])
def test_added_images_are_of_the_rarest_class(rare, common):
    """Of trainings that decide alike: the t interval over the images and those added, each as heavy as its class."""
    generator, images = np.random.default_rng(rare), rare + common
    (centred, first), (_, second) = (balanced(generator, rare, common, (0.5, 0.8)) for _ in range(2))
    mean, weight = centred[:, 0].mean(), max(1, (images + 4) / (2 * (rare + 4)))
    added = [mean - weight * mean] * 2 + [mean + weight * (1 - mean)] * 2
    low, high = stats.ttest_1samp([*centred[:, 0], *added], 0).confidence_interval(0.95)
    found = statistics.accuracy_estimate(centred, rare, 2)
    assert (found.low, found.high) == pytest.approx((max(0, min(low, mean)), min(1, max(high, mean))))
    centred[::2, 0] = np.nan  # that repetition has tested every other image
    mean = np.nanmean(centred, axis=0).mean()
    added = [mean - weight * mean] * 2 + [mean + weight * (1 - mean)] * 2
    assert statistics.accuracy_estimate(centred, rare, 2).error == statistics.estimate(centred, added).error
    weight, differences = max(1, (images + 2) / (2 * (rare + 2))), (second - first)[:, 0]
    expected = stats.ttest_1samp([*differences, weight, -weight], 0)
    found = statistics.difference_estimate(second - first, rare, 2)
    low, high = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((max(-1, low), min(1, high)))


def test_where_only_images_differ_it_is_the_t_test_over_images():
    values = np.random.default_rng(0).normal(0.2, 1, (30, 1))
    found, expected = statistics.estimate(np.repeat(values, 5, axis=1)), stats.ttest_1samp(values[:, 0], 0)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_where_only_trainings_differ_it_is_the_t_test_over_trainings():
    means = np.random.default_rng(0).normal(0.2, 1, 6)
    found, expected = statistics.estimate(np.repeat(means[None], 30, axis=0)), stats.ttest_1samp(means, 0)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_one_repetition_has_no_spread_and_no_test():
    found = statistics.difference_estimate(np.array([[1.0], [0.0], [-1.0], [1.0]]))
    assert found.mean == 0.25
    assert (found.spread, found.low, found.high, found.p) == (None,) * 4


def bonett_and_price(differences):
    """Their interval from the two counts of a paired 2 x 2 table, with Student's t for the normal distribution."""
    images = len(differences) + 2
    first, second = ((differences == 1).sum() + 1) / images, ((differences == -1).sum() + 1) / images
    error = math.sqrt((first + second - (first - second) ** 2) / (images - 1))
    return stats.t.interval(0.95, images - 1, first - second, error)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (3, 0), (9, 2), (5, 5), (14, 2), (2, 14)])
def test_the_interval_of_a_difference_is_that_of_bonett_and_price(better, worse):
    """Where each training decides alike; never a point, and with few images for certain around 0."""
    differences = np.array([1.0] * better + [-1.0] * worse + [0.0] * (40 - better - worse))
    found = statistics.difference_estimate(np.repeat(differences[:, None], 3, axis=1))
    assert (found.low, found.high) == pytest.approx(bonett_and_price(differences))
    assert found.mean == pytest.approx((better - worse) / 40)
    assert found.low < 0 < found.high or better + worse > 10
    assert (found.p <= LEVEL) == (found.low > 0 or found.high < 0)


@pytest.mark.parametrize("folds", [1, 5])
def test_variants_that_predict_alike_may_differ_on_other_images(folds):
    """By no more than the rule of three says, 3 / N, and a little less; also of folds, each of which has its share."""
    values = np.zeros((60, 3))
    if folds > 1:
        values = np.where(np.arange(60)[:, None] % folds == np.arange(folds), 0.0, np.nan)
    found = statistics.difference_estimate(values)
    assert (found.mean, found.p) == (0.0, 1.0)
    assert 2.5 / 60 < found.high == -found.low < 3 / 60


@pytest.mark.parametrize("share", [0.2, 1.0, 3.2, 6.0])
def test_the_interval_of_a_difference_covers_it_where_few_images_differ(share):
    """So many of 40 images on average, all for one variant: where the interval of the counts themselves is a point."""
    generator = np.random.default_rng(int(10 * share))
    covered = 0
    for _ in range(REPEATS):
        differences = (generator.random((40, 1)) < share / 40).astype(float)
        found = statistics.difference_estimate(np.repeat(differences, 3, axis=1))
        covered += found.low <= share / 40 <= found.high
    assert covered / REPEATS > 0.94


def balanced(generator, rare, common, recalls):
    """Scores whose mean is balanced accuracy, of three trainings that decide alike."""
    labels = np.repeat([0, 1], [rare, common])
    weights = (rare + common) / (2 * np.array([rare, common])[labels])
    correct = (generator.random(rare + common) < np.array(recalls)[labels]).astype(float)
    mean = (weights * correct).mean()
    return np.repeat((weights * (correct - mean) + mean)[:, None], 3, axis=1), np.repeat(
        (weights * correct)[:, None], 3, axis=1
    )


@pytest.mark.parametrize(
    ("rare", "common", "recalls"), [(6, 80, (1.0, 1.0)), (6, 80, (0.8, 0.97)), (20, 60, (0.6, 0.9))]
)
def test_balanced_accuracy_of_a_rare_class(rare, common, recalls):
    """It is covered, its tie is a tie, and of no mistake the interval is about as wide as the rare class says alone."""
    generator = np.random.default_rng(rare)
    repeats, covered, alarms = 300, 0, 0
    for _ in range(repeats):
        (centred, first), (_, second) = (balanced(generator, rare, common, recalls) for _ in range(2))
        found = statistics.accuracy_estimate(centred, rare, 2)
        covered += found.low <= np.mean(recalls) <= found.high
        alarms += statistics.difference_estimate(second - first, rare, 2).p <= LEVEL
    assert covered / repeats > 0.94
    assert alarms / repeats <= LEVEL + 2.6 * math.sqrt(LEVEL * (1 - LEVEL) / repeats)
    perfect, values = balanced(generator, rare, common, (1.0, 1.0))
    exact = stats.binomtest(rare, rare).proportion_ci().low  # of the rare class; the other's share is about 1
    assert statistics.accuracy_estimate(perfect, rare, 2).low == pytest.approx((1 + exact) / 2, abs=0.06)
    assert 1 / (2 * rare) < statistics.difference_estimate(values - values, rare, 2).high < 3 / (2 * rare)


@pytest.mark.parametrize(("images", "tests"), [(30, 1), (400, 1), (400, 3)])
def test_the_least_difference_is_where_the_test_begins_to_show(images, tests):
    """With a spread as it is: of differences shifted to it the interval at the corrected level ends at 0."""
    generator = np.random.default_rng(images)
    baseline, variant = correctness(generator, images, 3)
    found = statistics.difference_estimate(variant - baseline)
    least = statistics.least_shown(found, tests)
    p = 2 * stats.t.sf(least * images / (images + 2) / found.error, found.degrees)
    assert p == pytest.approx(LEVEL / tests) or least == 6 / images
    # Of no image that differs, six are needed, as in the sign test.
    nothing = statistics.difference_estimate(np.zeros((images, 3)))
    assert statistics.least_shown(nothing) == pytest.approx(6 / images)
    assert statistics.least_shown(statistics.difference_estimate(np.zeros((images, 1)))) is None


def test_the_fewest_images_on_which_variants_differ_where_a_difference_is_shown():
    """As the sign test has it, whose smallest p is that of k images that all speak for one variant."""
    for tests in (1, 2, 3, 7):
        needed = statistics.fewest_differing(tests)
        assert (
            stats.binomtest(needed, needed).pvalue * tests
            <= LEVEL
            < stats.binomtest(needed - 1, needed - 1).pvalue * tests
        )


def test_brier_score():
    generator = np.random.default_rng(4)
    probabilities, labels = generator.dirichlet(np.ones(3), 20), generator.integers(0, 3, 20)
    slow = [
        sum((row[c] - (c == label)) ** 2 for c in range(3)) for row, label in zip(probabilities, labels, strict=True)
    ]
    assert statistics.brier(probabilities, labels) == pytest.approx(slow)
    assert statistics.brier(np.eye(2), np.array([0, 0])).tolist() == [0, 2]


def test_few_images_show_nothing():
    """Five of five on which one variant is always right and the other always wrong: p is 1 / 16, and 0 is left open."""
    found = statistics.difference_estimate(np.ones((5, 4)))
    assert (found.p, found.low, found.high) == (1 / 16, 0, 1)
    worse = statistics.difference_estimate(-np.ones((5, 4)))
    assert (worse.p, worse.low, worse.high) == (1 / 16, -1, 0)
    assert statistics.difference_estimate(np.ones((9, 4))).p == 1 / 256


def test_the_interval_of_an_accuracy_knows_its_bounds():
    everything = statistics.accuracy_estimate(np.ones((20, 3)))
    assert (everything.mean, everything.high) == (1.0, 1.0)
    assert 0.75 < everything.low < 0.95
    nothing = statistics.accuracy_estimate(np.zeros((20, 3)))
    assert (nothing.mean, nothing.low) == (0.0, 0.0)
    assert 0.05 < nothing.high < 0.25


def test_the_interval_of_an_accuracy_covers_it():
    generator = np.random.default_rng(1)
    covered = 0
    truth = correctness(np.random.default_rng(2), 200_000, 20)[0].mean()
    for _ in range(REPEATS):
        found = statistics.accuracy_estimate(correctness(generator, 100, 3)[0])
        covered += found.low <= truth <= found.high
    assert covered / REPEATS > 0.93


@pytest.mark.parametrize("repetitions", [2, 3, 5])
@pytest.mark.parametrize(("images", "training_spread"), [(8, 0.3), (60, 0.0), (400, 0.3), (400, 1.0)])
def test_a_planted_tie_is_called_a_tie(images, repetitions, training_spread):
    """False alarms at most at the level, with few images or many, and with trainings that vary little or much."""
    generator = np.random.default_rng(images + repetitions)
    alarms = 0
    for _ in range(REPEATS):
        baseline, variant = correctness(generator, images, repetitions, 0.0, training_spread)
        alarms += statistics.difference_estimate(variant - baseline).p <= LEVEL
    assert alarms / REPEATS <= MOST_ALARMS


def test_false_alarms_of_several_variants_together():
    generator = np.random.default_rng(5)
    alarms = 0
    for _ in range(REPEATS):
        (baseline, first), (_, second) = correctness(generator, 200, 3), correctness(generator, 200, 3)
        other = correctness(generator, 200, 3)[1]
        p_values = [statistics.difference_estimate(v - baseline).p for v in (first, second, other)]
        alarms += min(statistics.holm(p_values)) <= LEVEL
    assert alarms / REPEATS <= MOST_ALARMS


@pytest.mark.parametrize(
    ("images", "repetitions", "difference", "variants"), [(400, 5, 0.8, 3), (2000, 3, 0.9, 1), (60, 5, 2.0, 3)]
)
def test_a_planted_difference_is_found(images, repetitions, difference, variants):
    """Also where p is corrected for several variants; three repetitions then need more than that."""
    generator = np.random.default_rng(7)
    found = 0
    for _ in range(100):
        baseline, variant = correctness(generator, images, repetitions, difference, training_spread=0.15, level=1.0)
        p = statistics.difference_estimate(variant - baseline).p
        found += variants * p <= LEVEL and variant.mean() > baseline.mean()
    assert found > 80


def step_down(p_values, level):
    """Holm's procedure as he states it: which are rejected at a level."""
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
        corrected = statistics.holm(p_values)
        assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
        for level in (0.0101, 0.0501, 0.2001, 0.7001):
            assert [c <= level for c in corrected] == step_down(p_values, level)
    assert statistics.holm([]) == []


def test_calibration_beside_a_loop_over_the_bins():
    generator = np.random.default_rng(0)
    confidence = np.concatenate([generator.random(300), [0.0, 0.1, 1.0]])
    correct = generator.random(303) < confidence**2
    error, points = 0.0, []
    for k in range(10):
        inside = (confidence > k / 10) & (confidence <= (k + 1) / 10) | ((confidence == 0) & (k == 0))
        if inside.any():
            points.append((confidence[inside].mean(), correct[inside].mean(), inside.sum()))
            error += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    found = statistics.calibration(confidence, correct)
    assert found.error == pytest.approx(error)
    np.testing.assert_allclose(np.array(points).T, [found.confidence, found.accuracy, found.count])
    few = statistics.calibration(np.array([0.25, 1 + 1e-7]), np.array([1, 0]))  # of two bins, and a rounded one
    assert (few.confidence.tolist(), few.accuracy.tolist(), few.count.tolist()) == ([0.25, 1 + 1e-7], [1, 0], [1, 1])
    assert few.error == pytest.approx((0.75 + 1) / 2)
    assert statistics.calibration(np.array([0.8]), np.array([0])).error == pytest.approx(0.8)
    assert statistics.calibration(np.empty(0), np.empty(0)).error == 0


@pytest.mark.filterwarnings("error")
def test_rates_of_two_classes():
    labels = np.array([1, 1, 1, 1, 0, 0, 0])
    positive = np.array([0.9, 0.6, 0.5, 0.2, 0.7, 0.3, 0.2])
    rates = statistics.two_class_rates(labels, positive)
    assert (rates["sensitivity"], rates["specificity"]) == (0.5, pytest.approx(2 / 3))
    pairs = [(a > b) + 0.5 * (a == b) for a in positive[labels == 1] for b in positive[labels == 0]]
    assert rates["auc"] == pytest.approx(np.mean(pairs))
    alone = statistics.two_class_rates(np.ones(3, dtype=int), positive[:3])
    assert (alone["sensitivity"], math.isnan(alone["auc"]), math.isnan(alone["specificity"])) == (2 / 3, True, True)
    other = statistics.two_class_rates(np.zeros(3, dtype=int), positive[:3])
    assert (other["specificity"], math.isnan(other["auc"]), math.isnan(other["sensitivity"])) == (1 / 3, True, True)


def test_confusion_counts():
    counts = statistics.confusion(np.array([0, 0, 2, 2]), np.array([0, 1, 2, 2]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 2]]
    assert statistics.confusion(np.array([0]), np.array([0]), 3).tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_mean_of_curves_of_unequal_length():
    places, values = statistics.mean_line([([1, 2, 3], [1, 2, 3]), ([1, 3], [3, 7]), ([1, 2], [None, math.nan])])
    assert places.tolist() == [1, 2, 3]
    assert values.tolist() == [2, (2 + 5) / 2, 5]
    places, values = statistics.mean_line([([1, 2], [5, 6]), ([1, 2, 9], [7, None, 9])])
    assert (places.tolist(), values.tolist()) == ([1, 2, 9], [6, (6 + 7.25) / 2, 9])
    assert all(len(part) == 0 for part in statistics.mean_line([]))
