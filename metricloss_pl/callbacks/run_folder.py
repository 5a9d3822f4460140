"""Folder of a run."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

__all__ = ["RunFolderCallback", "run_folder"]


class RunFolderCallback(Callback):
    """Callback that knows the folder of the run, once it has one."""

    run_folder: Path | None = None


def run_folder(trainer: Trainer) -> Path:
    """Return the folder of a run; a collective call, for every process.

    On the command line a `RunFolderCallback` knows it. Elsewhere it is the folder in which Lightning saves checkpoints:
    that of the first logger's run, or the Trainer's `default_root_dir`.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunFolderCallback) and callback.run_folder is not None:
            return callback.run_folder
    logger = trainer.logger
    if logger is None:
        path = trainer.default_root_dir
    elif isinstance(logger, (TensorBoardLogger, CSVLogger)):
        path = logger.log_dir
    else:
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        path = os.path.join(logger.save_dir or trainer.default_root_dir, str(logger.name), version)
    return Path(trainer.strategy.broadcast(path))
