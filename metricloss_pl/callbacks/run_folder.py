"""Folder of a run, and which run and results belong to a checkpoint."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from metricloss_pl.callbacks.best import callback_states, recorded_id
from metricloss_pl.checkpoints import read_model

__all__ = ["CHECKPOINTS", "CONFIG", "LAST", "RunFolderCallback", "model_digest", "run_folder", "run_of"]

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
LAST = "last.ckpt"


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


def run_of(checkpoint: str | Path) -> Path | None:
    """Return the folder of the run that has written a checkpoint, if it is there.

    The checkpoint is in its `checkpoints`, or where `dirpath` told the run to write it.
    """
    path = Path(checkpoint)
    for file in (path.absolute(), path.resolve()):
        for folder in file.parents:
            if folder.name == CHECKPOINTS and (folder.parent / CONFIG).is_file():
                return folder.parent
    states = callback_states(path)
    named = Path(states.get("RunFolder", {}).get("folder", ""))
    folders = [Path(state["dirpath"]) for state in states.values() if state.get("dirpath")]
    if not (named / CONFIG).is_file() or not any(folder in path.resolve().parents for folder in folders):
        return None
    # Another run may have taken the place of the one that was there.
    return named if recorded_id(callback_states(named / CHECKPOINTS / LAST)) == recorded_id(states) else None


def model_digest(path: str | Path) -> str:
    """Return a digest of the weights and the temperature in a checkpoint, which decide its probabilities."""
    content = read_model(path)
    found = hashlib.blake2b(repr(content.get("temperature")).encode(), digest_size=20)
    for name, tensor in sorted(content["state_dict"].items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
