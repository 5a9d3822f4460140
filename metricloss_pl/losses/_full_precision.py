"""Loss modules whose own tensors never become half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class FullPrecisionModule(nn.Module):
    """A module whose tensors follow every move but a cast to half precision.

    ``module.half()``, ``.bfloat16()`` and Lightning's ``16-true`` and ``bf16-true`` cast whole networks; centers and
    class embeddings would lose the small steps they are made of.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        super()._apply(keep_precision, recurse)
        return self
