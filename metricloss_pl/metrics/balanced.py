"""Accuracy in which every class counts alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["BalancedAccuracy"]


class BalancedAccuracy(Metric):
    """Mean recall over the classes seen, in [0, 1].

    A class without images is left out, as may happen in small or grouped validation sets; a macro average would count
    it as wrong as soon as it is predicted. NaN without images.

    Args:
        num_classes: C.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    right: Tensor
    images: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("right", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add scores (B, C), whose largest is the prediction, and labels (B,) int64 in [0, C)."""
        num_classes = len(self.images)
        self.images += torch.bincount(labels, minlength=num_classes)
        self.right += torch.bincount(labels[scores.argmax(1) == labels], minlength=num_classes)

    def compute(self) -> Tensor:
        """Return the scalar, float32."""
        seen = self.images > 0
        return (self.right[seen].float() / self.images[seen].float()).mean()
