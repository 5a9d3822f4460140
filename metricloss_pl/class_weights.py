"""Weights of the classes in the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import UserError, is_it

__all__ = ["ClassWeights", "balanced_weights", "given_weights"]

_MOST = 1e30  # far from overflow in float32
_SHOWN = 10  # class names, of many

ClassWeights = Literal["balanced"] | dict[str, float] | list[float]


def given_weights(weights: Mapping[str, float] | Sequence[float], class_names: Sequence[str]) -> Tensor:
    """Return weights (C,) that are given in the order of the labels, or by name with 1 for the other classes.

    Raises:
        UserError: A name is unknown, or the weights are not one number of at least 0 per class.
    """
    if isinstance(weights, str):
        raise UserError(f"class_weights is {weights!r}; it must be 'balanced', a mapping, a list or null")
    if isinstance(weights, Mapping):
        by_name = {str(name): weight for name, weight in weights.items()}  # YAML reads the name 3 as a number
        for name in by_name:
            if name not in class_names:
                some = ", ".join(map(repr, class_names[:_SHOWN])) + (", ..." if len(class_names) > _SHOWN else "")
                raise UserError(
                    f"class_weights names {name!r}, which is no class{is_it(name, class_names)}; the classes are {some}"
                )
        weights = [by_name.get(name, 1.0) for name in class_names]
    right = isinstance(weights, (list, tuple)) and len(weights) == len(class_names)
    if not right or not all(isinstance(weight, (int, float)) and 0 <= weight < _MOST for weight in weights):
        raise UserError(f"class_weights is {weights}; it must be a list of {len(class_names)} numbers of at least 0")
    return torch.tensor([float(weight) for weight in weights])


def balanced_weights(data: object) -> Tensor:
    """Return N / (C * N_class) per class (C,) of the training set of an `ImageDataModule`; the mean over images is 1.

    Raises:
        UserError: `data` is no `ImageDataModule`, or balances the classes itself.
    """
    if not isinstance(data, ImageDataModule):
        raise UserError("class_weights is 'balanced', which needs an ImageDataModule that counts the classes")
    for setting in ("balanced_sampling", "samples_per_class_in_batch"):
        if getattr(data, setting):
            raise UserError(f"class_weights and {setting} both balance the classes: choose one of them")
    counts = data.class_counts
    return counts.sum() / (len(counts) * counts.float())
