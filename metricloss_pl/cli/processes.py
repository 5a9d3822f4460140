"""Several processes of one training: their ranks, exit status, and end when one of them is lost."""

from __future__ import annotations

import atexit
import os
import subprocess
from contextlib import suppress

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from metricloss_pl._compat import started_processes

__all__ = ["TerminateChildrenOnError", "exit_status", "has_lost_a_process", "settle_rank"]

_REFUSED = 3  # exit status after a user's mistake, of a process that is not the first one


def settle_rank(trainer: Trainer) -> None:
    """Make the rank that of the Trainer, since variables of the environment may be left from another job."""
    if trainer.world_size == 1 and not trainer.is_global_zero:  # DDP reads them for a single process, too
        for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"):
            os.environ.pop(name, None)
        trainer.strategy.set_world_ranks()  # type: ignore[attr-defined]
    rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]


def has_lost_a_process(trainer: Trainer) -> bool:
    """Return whether a process that this one has started was killed, or has ended after a user's mistake."""
    for process in started_processes(trainer):
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)  # its connections close before it ends
        if process.returncode is not None and (process.returncode < 0 or process.returncode == _REFUSED):
            return True
    return False


def exit_status() -> int:
    """Return the exit status of this process after a user's mistake."""
    distributed = torch.distributed
    is_first = not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0)
    return 1 if is_first else _REFUSED


class TerminateChildrenOnError(Callback):
    """End the processes that a failing first process has started, even if they hang, once its message is out."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        for process in started_processes(trainer):
            atexit.register(process.kill)
