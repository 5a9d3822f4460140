"""Weights of the classes in the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from metricloss_pl.errors import UserError

__all__ = ["ClassWeights", "balanced_weights", "given_weights"]

ClassWeights = Literal["balanced"] | dict[str, float] | list[float]


def given_weights(weights: Mapping[str, float] | Sequence[float], class_names: Sequence[str]) -> Tensor:
    """Return weights (C,) that are given in the order of the labels, or by name with 1 for the other classes.

    Raises:
        UserError: A name is unknown, or the weights are not one number of at least 0 per class.
    """
    if isinstance(weights, str):
        raise UserError(f"class_weights is {weights!r}; it must be 'balanced', a mapping, a list or null")
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in class_names:
                raise UserError(f"class_weights names {name!r}, which is not a class; one is {class_names[0]!r}")
        weights = [weights.get(name, 1.0) for name in class_names]
    if len(weights) != len(class_names) or not all(0 <= weight < math.inf for weight in weights):
        raise UserError(
            f"class_weights is {list(weights)}; it must be {len(class_names)} numbers of at least 0, one per class"
        )
    return torch.tensor(weights, dtype=torch.float32)


def balanced_weights(data: object) -> Tensor:
    """Return N / (C * N_class) per class (C,), whose mean over the training images is 1.

    Args:
        data: Data module with `class_counts` (C,) of the training set.

    Raises:
        UserError: The data module does not count its classes, or balances them itself.
    """
    for setting in ("balanced_sampling", "samples_per_class_in_batch"):
        if getattr(data, setting, None):
            raise UserError(f"class_weights and {setting} both balance the classes: choose one of them")
    if not hasattr(data, "class_counts"):
        raise UserError("class_weights is 'balanced', which needs an ImageDataModule that counts the classes")
    counts: Tensor = data.class_counts
    return counts.sum() / (len(counts) * counts.float())
