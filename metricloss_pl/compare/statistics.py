"""What repeated runs say: means with intervals, paired tests corrected for their number, calibration.

scipy and scikit-learn are imported at the first use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = [
    "LEVEL",
    "Calibration",
    "Estimate",
    "accuracy_estimate",
    "brier",
    "calibration",
    "confusion",
    "difference_estimate",
    "estimate",
    "fewest_differing",
    "holm",
    "least_shown",
    "mean_line",
    "two_class_rates",
]

LEVEL = 0.05


@dataclass(frozen=True)
class Estimate:
    """A mean over repetitions and images, and what is known of its error: None where there is one repetition alone.

    Attributes:
        mean: Mean over the repetitions of each one's mean over its images.
        spread: Standard deviation between repetitions.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p: Two-sided p-value of a mean of 0.
        repetitions: U.
        images: Different images N.
        error: Standard error from which the interval is made.
        degrees: Degrees of freedom of that error.
    """

    mean: float
    spread: float | None
    low: float | None
    high: float | None
    p: float | None
    repetitions: int
    images: int
    error: float | None = None
    degrees: float | None = None


def estimate(values: Array, pseudo: Sequence[float] = ()) -> Estimate:
    """Mean of values over images and repetitions, both random, with its interval and its t test against 0.

    With D_u the mean of repetition u over its n_u images, s^2 the variance of the U means, and cov_uv the covariance
    of the values of u and v over their m_uv common images, the squared standard error is T + I of::

        I = mean over u != v of cov_uv m_uv / (n_u n_v), at least 0
        T = s^2 / U, at least (mean over u of var_u / n_u - I) / U

    T is what training again changes, and can't be less than what chance among the images makes of it; I is what other
    images would change in all repetitions alike, which s^2 can't see. Where each repetition has tested all images, this
    is the two-way random-effects analysis that is usual for several readers of the same cases (Obuchowski & Rockette
    1995; Hillis 2007); where no two have an image in common, it is the t test over repetitions. The degrees of freedom,
    (T + I) / (T / (U - 1) + I / (N - 1)), are fewer than Satterthwaite's, with which two or three repetitions give more
    false alarms than they should.

    Args:
        values: (N, U), a row an image, a column a repetition; NaN where a repetition has not tested an image.
        pseudo: Values of P images to add for interval and test, not for the mean, the same in all repetitions: without
            them images that are all alike would pass for certainty. They are added to I and N; of folds each then has
            its share of them.

    Returns:
        The estimate; without interval and p-value for U = 1.
    """
    from scipy import stats

    values = np.asarray(values, dtype=np.float64)
    images, repetitions = values.shape
    means = np.nanmean(values, axis=0)
    mean = float(means.mean())
    if repetitions < 2:
        return Estimate(mean, None, None, None, None, repetitions, images)
    spread = float(means.std(ddof=1))
    own, common = _image_terms(values)
    training = max(spread**2, own - common) / repetitions
    added = np.asarray(pseudo, dtype=np.float64)
    total = images + len(added)
    centre = (images * mean + float(added.sum())) / total
    squares = images * (images - 1) * common + images * (mean - centre) ** 2 + float(((added - centre) ** 2).sum())
    common = squares / (total * max(total - 1, 1))
    variance = training + common
    if variance == 0:
        return Estimate(mean, spread, centre, centre, 1.0 if centre == 0 else 0.0, repetitions, images)
    degrees = variance / (training / (repetitions - 1) + common / max(total - 1, 1))
    error = math.sqrt(variance)
    half = float(stats.t.ppf(1 - LEVEL / 2, degrees)) * error
    p = float(2 * stats.t.sf(abs(centre) / error, degrees))
    return Estimate(mean, spread, centre - half, centre + half, p, repetitions, images, error, degrees)


def _image_terms(values: Array) -> tuple[float, float]:
    """Mean over repetitions of var_u / n_u, and over pairs of them of cov_uv m_uv / (n_u n_v), at least 0."""
    tested = ~np.isnan(values)
    numbers = tested.astype(np.float64)
    filled = np.where(tested, values - np.nanmean(values), 0.0)
    common = numbers.T @ numbers
    sums = filled.T @ numbers  # [u, v]: the sum of u's values over the images common to u and v
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = (filled.T @ filled - sums * sums.T / common) / (common - 1)
    counts = np.diag(common)
    terms = np.where(common > 1, covariance, 0.0) * common / np.outer(counts, counts)
    pairs = ~np.eye(len(counts), dtype=bool)
    return float(np.diag(terms).mean()), max(float(terms[pairs].mean()), 0.0)


def accuracy_estimate(correct: Array, rarest: int | None = None, classes: int = 1) -> Estimate:
    """Accuracy with its interval, which stays within [0, 1] and is never a point.

    For the interval two images that are right and two that are wrong are added (Agresti & Coull 1998).

    Args:
        correct: (N, U), 1 where repetition u is right about image i, 0 where it is wrong, NaN where it has not tested
            it; or means of such numbers.
        rarest: Images of the rarest class, where ``correct`` is weighted by class so that its mean is balanced
            accuracy: the added images are then of that class.
        classes: Classes C among the images, of which each counts 1 / C.
    """
    mean = float(np.nanmean(correct, axis=0).mean())
    weight = _added_weight(len(correct), 4, rarest, classes)
    wrong, right = mean - weight * mean, mean + weight * (1 - mean)
    return replace(_within(estimate(correct, (wrong, wrong, right, right)), 0.0), p=None)


def difference_estimate(differences: Array, rarest: int | None = None, classes: int = 1) -> Estimate:
    """Difference in accuracy with its interval, which is never a point, and its paired test.

    Two images are added for both, on which either variant alone is right (Bonett & Price 2012): where no image of N
    tells the variants apart, the interval is about 0 plus or minus 2.8 / (N + 2). With k images on which they ever
    differ, p is at least 2^(1 - k), as in the sign test: fewer than six such images show nothing, however alike they
    are; the interval then holds 0.

    Args:
        differences: (N, U), correct of one variant minus correct of the other, perhaps weighted by class; NaN where an
            image is not tested.
        rarest: As of :func:`accuracy_estimate`.
        classes: As of :func:`accuracy_estimate`.
    """
    weight = _added_weight(len(differences), 2, rarest, classes)
    found = _within(estimate(differences, (weight, -weight)), -1.0)
    if found.p is None or found.low is None or found.high is None:
        return found
    discordant = int((np.nan_to_num(differences) != 0).any(axis=1).sum())
    p = max(found.p, min(1.0, 2.0 ** (1 - discordant)))
    low, high = (found.low, found.high) if p <= LEVEL else (min(found.low, 0.0), max(found.high, 0.0))
    return replace(found, p=p, low=low, high=high)


def least_shown(found: Estimate, tests: int = 1) -> float | None:
    """The smallest difference that would have been shown with an error as it was found; None for one repetition.

    Args:
        found: A difference, of :func:`difference_estimate`.
        tests: Tests for which p is corrected; the smallest p of all has to be below the level by this factor.
    """
    from scipy import stats

    if found.error is None:
        return None
    half = float(stats.t.ppf(1 - LEVEL / (2 * tests), found.degrees)) * found.error
    return max(half * (found.images + 2) / found.images, fewest_differing(tests) / found.images)


def fewest_differing(tests: int = 1) -> int:
    """Images k on which two variants have to differ for a difference to be shown: 2^(1 - k) of fewer is too large a p.

    Args:
        tests: As of :func:`least_shown`.
    """
    return math.ceil(1 + math.log2(tests / LEVEL))


def _added_weight(images: int, added: int, rarest: int | None, classes: int) -> float:
    """What an added image counts beside the others, of which each counts 1 on average."""
    if rarest is None:
        return 1.0
    return max(1.0, (images + added) / (classes * (rarest + added)))


def _within(found: Estimate, least: float) -> Estimate:
    """With an interval that holds the mean and lies within [least, 1]."""
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(least, min(found.low, found.mean)), high=min(1.0, max(found.high, found.mean)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) p-values, corrected for their number: the chance of any false alarm among all stays at the level.

    Args:
        p_values: P-values of several tests, in any order.

    Returns:
        The corrected ones in the same order, in [0, 1].
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def mean_line(curves: Sequence[tuple[Sequence[float], Sequence[float | None]]]) -> tuple[Array, Array]:
    """Mean of curves over all their places; between its own a curve is interpolated, beyond them it counts no more.

    Args:
        curves: Rising places and values of each; None and NaN are left out.

    Returns:
        (P,) places and (P,) means; empty for no values at all.
    """
    known = []
    for places, values in curves:
        x, y = np.array(places, dtype=np.float64), np.array(values, dtype=np.float64)
        sound = np.isfinite(y)
        if sound.any():
            known.append((x[sound], y[sound]))
    grid = np.unique(np.concatenate([x for x, _ in known])) if known else np.empty(0)
    table = [np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in known]
    mean: Array = np.nanmean(table, axis=0) if known else np.empty(0)
    return grid, mean


# ------------------------------------------------------------------------------------------------------ one set of runs


@dataclass(frozen=True)
class Calibration:
    """How far predicted probabilities are from what comes true.

    Attributes:
        confidence: (K,) mean probability of the predicted class, a bin each; bins without images are left out.
        accuracy: (K,) share of right predictions.
        count: (K,) images.
        error: Expected calibration error, the mean of |confidence - accuracy| weighted by the images.
    """

    confidence: Array
    accuracy: Array
    count: Array
    error: float


def calibration(confidence: Array, correct: Array, bins: int = 10) -> Calibration:
    """The reliability diagram's points and the expected calibration error (Guo et al. 2017), in bins of equal width.

    Args:
        confidence: (N,) probability of the predicted class, in [0, 1].
        correct: (N,) whether the prediction is right.
        bins: Number of bins, at least 1.
    """
    of_bin = np.clip(np.ceil(np.asarray(confidence, dtype=np.float64) * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(of_bin, minlength=bins)
    seen = count > 0
    mean = np.bincount(of_bin, confidence, minlength=bins)[seen] / count[seen]
    right = np.bincount(of_bin, correct, minlength=bins)[seen] / count[seen]
    error = float((np.abs(mean - right) * count[seen]).sum() / max(count.sum(), 1))
    return Calibration(mean, right, count[seen], error)


def brier(probabilities: Array, labels: Array) -> Array:
    """Squared errors of predicted probabilities, summed over the classes (Brier 1950).

    Their mean is the least, in expectation, where the probabilities are the true ones: unlike the calibration error it
    is not flattered by a network that gives every image the frequencies of the classes.

    Args:
        probabilities: (N, C).
        labels: (N,) int64 in [0, C).

    Returns:
        (N,) in [0, 2].
    """
    truth = np.eye(probabilities.shape[1])[labels]
    errors: Array = ((probabilities.astype(np.float64) - truth) ** 2).sum(axis=1)
    return errors


def confusion(labels: Array, predicted: Array, num_classes: int) -> Array:
    """(C, C) counts of images, [true, predicted]."""
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def two_class_rates(labels: Array, positive: Array) -> dict[str, float]:
    """Sensitivity, specificity and area under the curve where there are two classes; NaN where one has no image.

    Args:
        labels: (N,) 0 or 1; 1 is the positive class.
        positive: (N,) probability of class 1.
    """
    from sklearn.metrics import roc_auc_score

    truth, found = np.asarray(labels) == 1, np.asarray(positive) > 0.5
    both = bool(truth.any() and not truth.all())
    return {
        "sensitivity": float(found[truth].mean()) if truth.any() else math.nan,
        "specificity": float((~found[~truth]).mean()) if not truth.all() else math.nan,
        "auc": float(roc_auc_score(truth, positive)) if both else math.nan,
    }
