"""Center loss with centers that move by a closed-form rule under an optimizer of their own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from metricloss_pl.losses import functional as F
from metricloss_pl.losses._full_precision import FullPrecisionModule

__all__ = ["CenterInit", "CenterLoss", "CenterRule", "initial_centers"]

CenterRule = Literal["wen", "gradient"]
CenterInit = Literal["normal", "zeros"]

_MANY_PENDING = 1024


def initial_centers(num_classes: int, embedding_dim: int, init: CenterInit) -> Tensor:
    """Return initial centers (C, D), float32: standard normal or zeros.

    Raises:
        ValueError: No class, no dimension, or an unknown name.
    """
    if num_classes < 1 or embedding_dim < 1:
        raise ValueError(f"centers of shape ({num_classes}, {embedding_dim}): both must be at least 1")
    if init == "normal":
        return torch.randn(num_classes, embedding_dim, dtype=torch.float32)
    if init == "zeros":
        return torch.zeros(num_classes, embedding_dim, dtype=torch.float32)
    raise ValueError(f"center_init is {init!r}; it must be 'normal' or 'zeros'")


class CenterLoss(FullPrecisionModule):
    """Center loss (Wen et al., ECCV 2016): the mean of 1/2 ||x - c_y||^2, with centers moved by a closed-form rule.

    The centers are a parameter without autograd: loss weight, gradient clipping and loss scaling do not affect them.
    In training, `forward` remembers the detached offsets of its embeddings to their centers. `assign_center_grad` turns
    them into a sparse gradient of the centers, for any optimizer that takes one:

        criterion = CenterLoss(num_classes, embedding_dim)
        center_optimizer = torch.optim.SGD(criterion.parameters(), lr=0.5)   # lr is alpha
        ...
        (cross_entropy + 0.01 * criterion(embeddings, labels)).backward()
        optimizer.step()
        criterion.assign_center_grad()
        center_optimizer.step()

    The cost of a step does not depend on the number of classes. Keep it out of activation checkpointing, which runs
    `forward` twice.

    Args:
        num_classes: C.
        embedding_dim: D.
        center_rule: `wen`: Eq. 4, delta_j = sum (c_j - x_i) / (1 + n_j). `gradient`: sum 2 (c_j - x_i) / B as in
            pytorch-center-loss, whose loss has no 1/2; the value is then without it, too, so that published weights
            keep their meaning.
        center_init: `normal` (standard normal) or `zeros`.
        reduction: Reduction over the batch: `mean`, `sum` or `none`.

    Raises:
        ValueError: An unknown option, or no class or dimension.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        center_rule: CenterRule = "wen",
        center_init: CenterInit = "normal",
        reduction: F.Reduction = "mean",
    ) -> None:
        super().__init__()
        F.check_options(center_rule=(center_rule, CenterRule), reduction=(reduction, F.Reduction))
        self.center_rule: CenterRule = center_rule
        self.reduction: F.Reduction = reduction
        self.centers = nn.Parameter(initial_centers(num_classes, embedding_dim, center_init), requires_grad=False)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of embeddings (B, D) and labels (B,): a scalar, or (B,) for `reduction="none"`."""
        offsets = F.center_offsets(embeddings, labels, self.centers)
        if self.training and torch.is_grad_enabled():
            self._remember(offsets.detach(), labels.detach())
        squared = F.reduced(offsets.square().sum(1), self.reduction)
        return 0.5 * squared if self.center_rule == "wen" else squared

    def _remember(self, offsets: Tensor, labels: Tensor) -> None:
        self._pending.append((offsets, labels))
        if len(self._pending) == _MANY_PENDING:
            warnings.warn(
                f"CenterLoss holds the embeddings of {_MANY_PENDING} batches: call assign_center_grad() after each "
                "optimizer step, or the centers never move and memory grows",
                stacklevel=3,
            )

    def forget(self) -> None:
        """Drop the remembered embeddings, such as after an optimizer step that a loss scaler skipped."""
        self._pending.clear()

    def assign_center_grad(self, gather: Callable[[Tensor], Tensor] | None = None) -> None:
        """Set `centers.grad` from the embeddings that `forward` has seen since the last call, and forget them.

        Args:
            gather: Function that joins the rows of all processes, (N, ...) to (N * processes, ...); None in a single
                process.

        Raises:
            RuntimeError: `forward` has seen no embeddings in training mode since the last call.
        """
        if not self._pending:
            raise RuntimeError("assign_center_grad() found no embeddings: call the loss in training mode before it")
        offsets, labels = self._pending[0]
        if len(self._pending) > 1:
            offsets, labels = (torch.cat(seen) for seen in zip(*self._pending, strict=True))
        self.forget()
        if gather is not None:
            offsets, labels = gather(offsets), gather(labels)
        rule = F.delta_of_offsets if self.center_rule == "wen" else F.gradient_of_offsets
        classes, gradient = rule(offsets, labels)
        # `unique` has sorted the classes, so the gradient is coalesced.
        self.centers.grad = torch.sparse_coo_tensor(
            classes[None],
            gradient.to(self.centers.dtype),
            self.centers.shape,
            dtype=self.centers.dtype,
            is_coalesced=True,
            check_invariants=False,
        )
