"""Running statistics of batch norms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["BatchNorm", "frozen_batch_statistics", "updating_batch_norms"]

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def updating_batch_norms(module: nn.Module) -> list[BatchNorm]:
    """Return the batch norms whose running statistics a forward pass changes."""
    norms = [layer for layer in module.modules() if isinstance(layer, BatchNorm)]
    return [norm for norm in norms if norm.training and norm.track_running_stats]


@contextmanager
def frozen_batch_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms in training mode, so that a second forward pass leaves no trace."""
    updating = updating_batch_norms(module)
    for norm in updating:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in updating:
            norm.track_running_stats = True
