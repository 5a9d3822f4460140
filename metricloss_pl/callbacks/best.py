"""Checkpoint of the best epoch."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from metricloss_pl.checkpoints import read_checkpoint
from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import UserError
from metricloss_pl.files import replacing

__all__ = ["BALANCED", "BestCheckpoint", "callback_states", "recorded_id", "resumed_state"]

BALANCED = "val/balanced_accuracy"  # chooses the best epoch if classes are unequal


class BestCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, but the latest of equally good epochs is kept instead of the first.

    On few validation images many epochs tie, and the first of them has hardly been trained.

    Args:
        dirpath: Folder of the checkpoints. None: `checkpoints` in the folder of the run.
        filename: Name of the file without `.ckpt`. It may contain metrics, as in `{epoch}-{val/loss:.2f}`.
        monitor: Metric that chooses the epoch. `auto`: `val/balanced_accuracy` if the largest class has at least twice
            as many training images as the smallest, else `val/accuracy`. None: the last epoch is kept.
        mode: Whether the `max` or the `min` of the metric is best.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = "best",
        monitor: str | None = "auto",
        mode: str = "max",
        **kwargs: Any,
    ) -> None:
        super().__init__(dirpath, filename, monitor, mode=mode, **kwargs)
        self._state_key = super().state_key  # the same before and after `auto` is resolved

    @property
    def state_key(self) -> str:
        return self._state_key

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.monitor == "auto":
            data = getattr(trainer, "datamodule", None)
            is_imbalanced = isinstance(data, ImageDataModule) and data.is_imbalanced
            self.monitor = BALANCED if is_imbalanced else "val/accuracy"

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        worst_kept = self.best_k_models.get(self.kth_best_model_path)
        level = current is not None and worst_kept is not None and bool(current == worst_kept)
        # Both are decided by all processes together, since to save takes them all.
        return super().check_monitor_top_k(trainer, current) or trainer.strategy.reduce_boolean_decision(level)


def resumed_state(callback: ModelCheckpoint, state: dict[str, Any], run_id: str | None) -> dict[str, Any] | None:
    """Return the state of a checkpoint callback for a run that resumes.

    A run that was stopped between two checkpoints may have kept a better epoch than the one it resumes from, and the
    folder of a run may have been moved or copied. Checkpoints of other runs in the folder are ignored. Checkpoints of
    this run in other folders are copied into it.

    Args:
        callback: Callback to restore; its `dirpath` is set.
        state: State of the callback in the checkpoint to resume from.
        run_id: Id of the run, as recorded in its checkpoints.

    Returns:
        The state with paths of existing files, from the newest checkpoint in the folder if that one is better and the
        callback keeps only one. None if the files are gone, so that the callback starts from nothing.
    """
    relocated = _relocated(callback, state, run_id)
    newest = _newest_state(callback, run_id) if callback.monitor and callback.save_top_k == 1 else None
    if newest is not None and (relocated is None or _is_better(callback, newest, relocated)):
        return newest
    if relocated is None:
        rank_zero_warn(
            f"{state['best_model_path']}, the best checkpoint so far, is missing: the best of the later epochs is kept"
        )
    return relocated


def _newest_state(callback: ModelCheckpoint, run_id: str | None) -> dict[str, Any] | None:
    """Return the state of the callback in the newest checkpoint of the run in its folder."""
    files = [file for file in Path(str(callback.dirpath)).rglob("[!.]*.ckpt") if file.name != "last.ckpt"]
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        states = callback_states(file)
        if run_id is not None and recorded_id(states) == run_id and callback.state_key in states:
            return _relocated(callback, states[callback.state_key], run_id)
    return None


def callback_states(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Return the states of the callbacks in a checkpoint, or none if it is no checkpoint."""
    try:
        states: dict[str, dict[str, Any]] = read_checkpoint(checkpoint).get("callbacks", {})
    except UserError:  # a file of something else
        return {}
    return states


def recorded_id(states: dict[str, Any]) -> str | None:
    """Return the id of the run that is recorded in the states of the callbacks, if any."""
    run_id: str | None = states.get("RunFolder", {}).get("id")
    return run_id


def _is_better(callback: ModelCheckpoint, state: dict[str, Any], than: dict[str, Any]) -> bool:
    score, other = state["best_model_score"], than["best_model_score"]
    if score is None or other is None:
        return score is not None
    return bool(score > other if callback.mode == "max" else score < other)


def _relocated(callback: ModelCheckpoint, state: dict[str, Any], run_id: str | None) -> dict[str, Any] | None:
    """Return the state with the present paths of its files; None if it had files and all are gone."""
    before, now = str(state["dirpath"]), str(callback.dirpath)
    if "://" in before or "://" in now:
        return state

    known = state["best_k_models"]

    def is_of_run(states: dict[str, Any]) -> bool:
        return recorded_id(states) in (None, run_id)  # weights alone record no run

    @cache
    def locate(file: str) -> str:
        if not file:
            return ""
        here = Path(now) / (Path(file).relative_to(before) if Path(file).is_relative_to(before) else Path(file).name)
        if here.is_file() and is_of_run(callback_states(here)):
            return str(here)
        states = callback_states(Path(file)) if Path(file).is_file() else {}
        scores = states.get(callback.state_key, {}).get("best_k_models", {})
        # A copy of this run that was trained further may have replaced the file.
        if not Path(file).is_file() or not is_of_run(states) or scores.get(file) not in (None, known.get(file)):
            return ""
        return file if here.exists() else str(_copy(Path(file), here))

    scores = {locate(file): score for file, score in known.items() if locate(file)}
    if known and not scores:
        return None
    state = {**state, "dirpath": callback.dirpath, "best_k_models": scores}
    state |= {name: locate(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
    if not state["best_model_path"] and scores:
        choose = max if callback.mode == "max" else min
        state["best_model_path"] = choose(scores, key=lambda file: float(scores[file]))
        state["best_model_score"] = scores[state["best_model_path"]]
    return state


def _copy(file: Path, target: Path) -> Path:
    with replacing(target) as beside:
        shutil.copyfile(file, beside)
    return target
