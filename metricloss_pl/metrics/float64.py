"""The base of metrics whose sums need float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric


class Float64Metric(Metric):
    """A metric whose states stay float64: a change of precision of the module around it changes its device alone.

    Where the device knows no float64 (Apple's MPS) they stay where they are, so `update` has to move its input to them.
    """

    is_differentiable = False
    full_state_update = False

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        device = fn(torch.zeros(1)).device
        if device.type == "mps":
            return self
        return super()._apply(lambda tensor: tensor.to(device), exclude_state)
