"""Class embeddings that need only the number of classes."""

from __future__ import annotations

import torch
from torch import Tensor

from metricloss_pl.errors import UserError


def one_hot(num_classes: int) -> Tensor:
    """Return the identity matrix (C, C), float32: one axis per class, cosine 0 between any two classes.

    Args:
        num_classes: C, at least 2.

    Raises:
        UserError: Fewer than two classes.
    """
    _check(num_classes, "one_hot")
    return torch.eye(num_classes)


def simplex(num_classes: int) -> Tensor:
    """Return the C corners of a regular simplex in C - 1 dimensions: (C, C - 1), float32, rows of norm 1.

    The cosine between any two classes is -1 / (C - 1), the least that all pairs can have at once (Kasarla et al. 2022,
    "Maximum class separation as inductive bias in one matrix"). Their recursion
    P_1 = (1, -1), P_k = [[1, -1/k, ..., -1/k], [0, sqrt(1 - 1/k^2) P_{k-1}]] is solved here: class c has
    s_i = sqrt(k_i C / ((k_i + 1) (C - 1))), k_i = C - 1 - i, on its own axis i = c, -s_i / k_i on the axes i < c
    and 0 on the others.

    Args:
        num_classes: C, at least 2.

    Raises:
        UserError: Fewer than two classes.
    """
    _check(num_classes, "simplex")
    left = torch.arange(num_classes - 1, 0, -1, dtype=torch.float64)  # k_i
    diagonal = torch.sqrt(left * num_classes / ((left + 1) * (num_classes - 1)))
    earlier = (-diagonal / left).expand(num_classes, -1).tril(-1)
    return (earlier + torch.eye(num_classes, num_classes - 1, dtype=torch.float64) * diagonal).float()


def _check(num_classes: int, name: str) -> None:
    if num_classes < 2:
        raise UserError(f"num_classes: {num_classes} given, {name} class embeddings need at least 2")
