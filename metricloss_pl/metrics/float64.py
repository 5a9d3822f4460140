"""Base class of metrics whose sums need float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

__all__ = ["Float64Metric"]


class Float64Metric(Metric):
    """Metric whose states stay float64: a change of precision of the module around it changes only its device.

    A parent casts its children by their private `_apply`; there is no public way for a metric to stay as it is. Where
    the device has no float64 (Apple's MPS) the states stay where they are, so `update` has to move its input to them.
    """

    is_differentiable = False
    full_state_update = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        device = fn(torch.zeros(1)).device
        if device.type == "mps":
            return self
        return super()._apply(lambda tensor: tensor.to(device), exclude_state)
