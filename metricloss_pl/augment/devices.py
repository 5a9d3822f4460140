"""Operations that differ between the CPU and a GPU.

Reading a value from a GPU waits until all its earlier work is done. On a GPU, operations therefore compute all images
and select by masks, where on the CPU they compute only the chosen images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def on_cpu(tensor: Tensor) -> bool:
    """Return whether a tensor is on the CPU."""
    return tensor.device.type == "cpu"


def change_some(images: Tensor, chosen: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return images (B, C, H, W) with `change` applied to those where `chosen` (B,) is true."""
    if not on_cpu(images):
        return torch.where(chosen[:, None, None, None], change(images), images)
    rows = chosen.nonzero()[:, 0]
    return images.index_copy(0, rows, change(images.index_select(0, rows)))
