"""Loss modules whose own tensors never become half precision.

The one touch of a private name in this package: a parent casts its children by their private `_apply`; there is no
public way for a module to stay as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class FullPrecisionModule(nn.Module):
    """Module whose tensors follow every move except a cast to half precision.

    `module.half()`, `.bfloat16()` and Lightning's `16-true` and `bf16-true` cast whole networks. Centers would then
    lose their small steps, and class embeddings their digits.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        super()._apply(keep_precision, recurse)
        return self
