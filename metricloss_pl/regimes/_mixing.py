"""What mixed images ask of a regime: their second loss leaves no trace, and regimes of centers refuse them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from metricloss_pl.errors import UserError
from metricloss_pl.mixing import Mixing

__all__ = ["keep_statistics", "refuse_mixing"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextmanager
def keep_statistics(module: nn.Module) -> Iterator[None]:
    """Within it the batch norms of a module in training do not learn from what they see, so that it counts once."""
    norms = [part for part in module.modules() if isinstance(part, _BATCH_NORMS)]
    learning = [norm for norm in norms if norm.training and norm.track_running_stats]
    for norm in learning:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in learning:
            norm.track_running_stats = True


def refuse_mixing(batch_mixing: Mixing | None, regime: str) -> None:
    """For a regime of centers.

    Raises:
        UserError: There is a mixing.
    """
    if batch_mixing is not None:
        raise UserError(
            f"batch_mixing is {type(batch_mixing).__name__}, which {regime} can't take: an image mixed of two classes "
            f"has no one "
            "center to be drawn to or to move; take a regime without centers, or leave model.batch_mixing out"
        )
