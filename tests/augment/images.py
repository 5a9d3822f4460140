"""Images of noise."""

from __future__ import annotations

import torch


def batch(size: int = 64, channels: int = 3, height: int = 12, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 256, (size, channels, height, width), dtype=torch.uint8, generator=generator)
