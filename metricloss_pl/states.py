"""States of networks: finite, and with the tensors and classes that are expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from metricloss_pl.errors import UserError

__all__ = ["check_finite", "where_classes_differ", "where_states_differ"]


def check_finite(state: Mapping[str, Tensor], place: str) -> None:
    """Check the tensors of a state.

    Args:
        state: Tensors by name.
        place: Place and consequence for the message, such as "at step 100, so no checkpoint is written".

    Raises:
        UserError: A tensor has a nan or an infinity.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"{name} is not finite {place}; if training diverged, lower the learning rate or set "
                "trainer.gradient_clip_val"
            )


def where_classes_differ(trained: list[str], given: list[str]) -> str:
    """Return a description of the first difference between two lists of class names."""
    if len(trained) != len(given):
        return f"was trained on {len(trained)} classes and the data have {len(given)}: they must be the same"
    label = next(i for i, (a, b) in enumerate(zip(trained, given, strict=True)) if a != b)
    return f"calls class {label} {trained[label]!r} and the data call it {given[label]!r}: they must be the same"


def where_states_differ(saved: Mapping[str, Any], expected: Mapping[str, Tensor]) -> str | None:
    """Return a description of the first tensor whose name or shape differs between a checkpoint and a network."""
    for name, tensor in expected.items():
        if name not in saved:
            return f"has no tensor {name}, which the network has"
        shape = tuple(getattr(saved[name], "shape", ()))
        if shape != tuple(tensor.shape):
            return f"has {name} of shape {shape}, and the network of shape {tuple(tensor.shape)}"
    unknown = next((name for name in saved if name not in expected), None)
    return None if unknown is None else f"has a tensor {unknown}, which the network lacks"
