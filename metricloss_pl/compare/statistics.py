"""Accuracies and paired differences over test images and repeated trainings: intervals, tests, detectable differences.

`docs/comparison.md` names the sources of the methods and shows their simulated false claims, coverage and power.
scipy is imported at the first use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEVEL", "POWER", "Estimate", "accuracy", "difference", "holm"]

Array = NDArray[Any]
Method = Literal["obuchowski_rockette", "corrected_resampled_t", "one_repetition"]

LEVEL = 0.05
POWER = 0.8
SMALLEST_P = 1e-15


@dataclass(frozen=True)
class Estimate:
    """Mean over repetitions and test images, with its sampling error.

    Attributes:
        value: Mean over the repetitions of the mean over each one's test images.
        std: Standard deviation across repetitions; NaN for one repetition.
        n_repetitions: Number of trainings, or of pairs of trainings.
        n_images: Number of different test images.
        method: Source of the error; `one_repetition` has none, and neither interval nor p-value.
        bounds: Smallest and largest possible value.
        center: Middle of the interval, which images added to the test set have moved towards the middle of the bounds.
        error: Standard error of the center.
        share: Share of the repetitions in the squared error; the rest is that of the test images.
        degrees: Degrees of freedom of the repetitions and of the test images.
        shrinkage: Factor by which the added images shrink a difference.
    """

    value: float
    std: float
    n_repetitions: int
    n_images: int
    method: Method
    bounds: tuple[float, float]
    center: float = math.nan
    error: float = math.nan
    share: float = math.nan
    degrees: tuple[float, float] = (math.nan, math.nan)
    shrinkage: float = 1.0

    def _critical(self, tail: float) -> float:
        """Return the Cochran & Cox (1950) critical value for a probability in one tail."""
        from scipy.special import stdtrit

        repetitions, images = -stdtrit(self.degrees, tail)
        return float(self.share * repetitions + (1 - self.share) * images)

    @property
    def interval(self) -> tuple[float, float]:
        """Both ends of the 95 % confidence interval; NaN for one repetition."""
        half = self._critical(LEVEL / 2) * self.error
        low, high = np.clip([self.center - half, self.center + half], *self.bounds).tolist()
        return low, high

    @property
    def p(self) -> float:
        """Two-sided p-value of a value of 0: the level at which the interval ends at 0; NaN for one repetition."""
        from scipy.optimize import brentq

        statistic = abs(self.center) / self.error
        if math.isnan(statistic):
            return math.nan
        if self._critical(SMALLEST_P / 2) <= statistic:
            return SMALLEST_P
        tail = brentq(lambda log: self._critical(math.exp(log)) - statistic, math.log(SMALLEST_P / 2), math.log(0.6))
        return min(2 * math.exp(tail), 1.0)

    def minimum_detectable(self, tests: int = 1) -> float:
        """Return the difference that is found with a power of 80 % (Bloom 1995); NaN for one repetition.

        Args:
            tests: Number of tests for which p-values are adjusted.
        """
        factor = self._critical(LEVEL / 2 / tests) + self._critical(1 - POWER)
        return min(factor * self.error / self.shrinkage, self.bounds[1])


def accuracy(correct: Array, labels: Array | None = None, test_share: float = math.nan) -> Estimate:
    """Estimate an accuracy; its interval adds two correct and two wrong images (Agresti & Coull 1998).

    Args:
        correct: (N, U), 1 where repetition u is correct on image i, 0 where it is wrong, or a mean of such values; NaN
            where it has not tested the image.
        labels: (N,) labels for balanced accuracy, in which the added images are shared by all classes (Price & Bonett
            2004). None: accuracy.
        test_share: Test images per training image, needed where repetitions differ in their test images.
    """
    return _estimate(correct, labels, test_share, np.array([0.0, 0.0, 1.0, 1.0]), (0.0, 1.0))


def difference(differences: Array, labels: Array | None = None, test_share: float = math.nan) -> Estimate:
    """Estimate a paired difference; two images are added, each in favor of one side (Bonett & Price 2012).

    Args:
        differences: (N, U), `correct` of one variant minus that of the other, as for `accuracy`.
        labels: (N,) labels for balanced accuracy. None: accuracy.
        test_share: Test images per training image, needed where repetitions differ in their test images.
    """
    return _estimate(differences, labels, test_share, np.array([1.0, -1.0]), (-1.0, 1.0))


def _estimate(
    values: Array, labels: Array | None, test_share: float, added: Array, bounds: tuple[float, float]
) -> Estimate:
    """Estimate by the method that fits the design: a fixed test set, or test sets that differ by repetition."""
    values = np.asarray(values, dtype=np.float64)
    labels = np.zeros(len(values), dtype=int) if labels is None else labels
    tested = ~np.isnan(values)
    means = np.array([_mean(column[known], labels[known]) for column, known in zip(values.T, tested.T, strict=True)])
    n_images, n_repetitions = values.shape
    value = float(means.mean())
    if n_repetitions < 2:
        return Estimate(value, math.nan, n_repetitions, n_images, "one_repetition", bounds)
    std = float(means.std(ddof=1))
    if tested.all():
        parts = _parts(values, labels, added)
        method: Method = "obuchowski_rockette"
        by_repetitions, by_images = parts.repetitions, max(parts.images, 0.0) + parts.added
    else:  # Nadeau & Bengio (2003), for repeated folds Bouckaert & Frank (2004)
        parts = _parts(np.nanmean(values, axis=1, keepdims=True), labels, added)
        method = "corrected_resampled_t"
        by_repetitions, by_images = max((1 / n_repetitions + test_share) * std**2, parts.added), 0.0
    squared = by_repetitions + by_images
    error, share = math.sqrt(squared), by_repetitions / squared
    degrees = (n_repetitions - 1, parts.degrees)
    return Estimate(
        value, std, n_repetitions, n_images, method, bounds, parts.center, error, share, degrees, parts.shrinkage
    )


def _mean(values: Array, labels: Array) -> float:
    """Return the mean over classes of the means over their images."""
    counts = np.bincount(labels)
    return float((np.bincount(labels, values)[counts > 0] / counts[counts > 0]).mean())


class _Parts(NamedTuple):
    """Mean with added images and the parts of its squared error where all repetitions have tested all images.

    By Obuchowski & Rockette (1995) these are the variance of the repetitions' means divided by their number, and the
    covariance of two repetitions' means due to their common images. Images are sampled within classes, whose degrees of
    freedom are combined by Satterthwaite (Cochran 1977, section 5.4).
    """

    center: float
    shrinkage: float
    repetitions: float
    images: float
    added: float  # part of the covariance that is due to the added images
    degrees: float  # of the covariance


def _parts(values: Array, labels: Array, added: Array) -> _Parts:
    n_repetitions = values.shape[1]
    classes = np.unique(labels)
    n_added = len(added) / len(classes)
    means, shrinkage, by_images, by_added = np.zeros(n_repetitions), 0.0, 0.0, 0.0
    variances, degrees = [], []
    for label in classes:
        own = values[labels == label]
        n = len(own) + n_added
        mean = own.mean(axis=0)
        products = (own - mean).T @ (own - mean)
        variance = float(np.trace(products)) / n_repetitions
        pairs = n_repetitions * (n_repetitions - 1)
        covariance = (float(products.sum()) - n_repetitions * variance) / pairs if pairs else variance
        shift = len(own) * n_added / n * (float(mean.mean()) - added.mean()) ** 2
        scale = 1 / (n * (n - 1) * len(classes) ** 2)
        means += (len(own) * mean + n_added * added.mean()) / n / len(classes)
        shrinkage += len(own) / n / len(classes)
        by_images += scale * covariance
        by_added += scale * (n_added * added.var() + shift)
        variances.append(scale * (variance + n_added * added.var() + shift))
        degrees.append(n - 1)
    by_repetitions = float(means.var(ddof=1)) / n_repetitions if n_repetitions > 1 else 0.0
    effective = sum(variances) ** 2 / sum(v**2 / d for v, d in zip(variances, degrees, strict=True))
    return _Parts(float(means.mean()), shrinkage, by_repetitions, by_images, by_added, effective)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979), in the same order."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]), 1.0)
    return adjusted.tolist()
