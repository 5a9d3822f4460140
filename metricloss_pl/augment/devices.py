"""Differences between the CPU and other devices, where looking at a value waits for all earlier work."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def on_cpu(tensor: Tensor) -> bool:
    """Return whether a tensor is on the CPU."""
    return tensor.device.type == "cpu"


def change_some(images: Tensor, chosen: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return images (B, C, H, W) with `change` applied to the chosen ones, (B,) bool."""
    if not on_cpu(images):
        return torch.where(chosen[:, None, None, None], change(images), images)
    rows = chosen.nonzero()[:, 0]
    return images.index_copy(0, rows, change(images.index_select(0, rows)))
