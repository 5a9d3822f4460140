"""Images of noise, and stores of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from metricloss_pl.data.samples import Samples
from metricloss_pl.data.store import ImageStore


def pixels(height: int = 6, width: int = 9, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def file_samples(paths: list[Path]) -> Samples:
    return Samples(images=paths, labels=torch.arange(len(paths)) % 2, names=[path.name for path in paths])


def store_of(paths: list[Path], **changes: object) -> ImageStore:
    arguments = {"in_channels": 3, "resize": None, "cache_gb": 1.0} | changes
    return ImageStore(file_samples(paths), **arguments)  # type: ignore[arg-type]
