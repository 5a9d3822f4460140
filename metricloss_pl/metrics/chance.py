"""Accuracy of a classifier that has learned nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["chance_accuracy"]


def chance_accuracy(counts: Sequence[int], balanced: bool = False) -> tuple[float, float]:
    """Return the accuracy of predicting the most frequent class for every image, and the standard error of a guesser.

    Args:
        counts: Images per class; classes without images are left out. At least one image.
        balanced: Balanced accuracy instead: 1 / C, whichever class is predicted.
    """
    seen = [int(count) for count in counts if count > 0]
    if balanced:
        chance, variance = 1 / len(seen), sum(1 / count for count in seen) / len(seen) ** 2
    else:
        chance, variance = max(seen) / sum(seen), 1 / sum(seen)
    return chance, math.sqrt(chance * (1 - chance) * variance)
