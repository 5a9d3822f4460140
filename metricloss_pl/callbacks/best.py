"""The checkpoint of the best epoch."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from metricloss_pl.checkpoints import read_checkpoint
from metricloss_pl.errors import UserError

__all__ = ["BestCheckpoint", "resumed_state"]


class BestCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, which of equally good epochs keeps the latest in place of the first.

    On few validation images many epochs are level, and the first of them has hardly trained.
    """

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        worst_kept = self.best_k_models.get(self.kth_best_model_path)
        level = current is not None and worst_kept is not None and bool(current == worst_kept)
        # Both are decided by all processes together, since to save takes them all.
        return super().check_monitor_top_k(trainer, current) or trainer.strategy.reduce_boolean_decision(level)


def resumed_state(callback: ModelCheckpoint, state: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state that a callback goes on with when a run is resumed.

    A run that is stopped between two checkpoints may have kept a better epoch than the one resumed from knows, and the
    folder of a run may have been moved or copied.

    Args:
        callback: Callback to restore; its `dirpath` is set.
        state: State of it in the checkpoint that is resumed from.

    Returns:
        The newer state, if the callback keeps one checkpoint and the newest one in its folder is better; with paths of
        existing files. None if the files are gone, so that the callback starts anew.
    """
    relocated = _relocated(callback, state)
    newest = _newest_state(callback) if callback.monitor and callback.save_top_k == 1 else None
    if newest is not None and (relocated is None or _is_better(callback, newest, relocated)):
        return newest
    if relocated is None:
        rank_zero_warn(
            f"{state['best_model_path']}, the best checkpoint so far, is missing: the best of the epochs from here on "
            "is kept"
        )
    return relocated


def _newest_state(callback: ModelCheckpoint) -> dict[str, Any] | None:
    """Return what the newest checkpoint in the callback's folder holds of it."""
    files = [file for file in Path(str(callback.dirpath)).rglob("[!.]*.ckpt") if file.name != "last.ckpt"]
    if files:
        with suppress(UserError):  # a file of something else
            checkpoint = read_checkpoint(max(files, key=lambda file: file.stat().st_mtime_ns))
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            return _relocated(callback, state) if state else None
    return None


def _is_better(callback: ModelCheckpoint, state: dict[str, Any], than: dict[str, Any]) -> bool:
    score, other = state["best_model_score"], than["best_model_score"]
    if score is None or other is None:
        return score is not None
    return bool(score > other if callback.mode == "max" else score < other)


def _relocated(callback: ModelCheckpoint, state: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state with the files that exist, where they are now; None if there were some and all are gone."""
    before, now = str(state["dirpath"]), str(callback.dirpath)
    if "://" in before or "://" in now:
        return state

    def locate(file: str) -> str:
        name = Path(file).relative_to(before) if Path(file).is_relative_to(before) else Path(file).name
        return next((str(path) for path in (Path(now) / name, Path(file)) if path.is_file()), "") if file else ""

    scores = {locate(file): score for file, score in state["best_k_models"].items() if locate(file)}
    if state["best_k_models"] and not scores:
        return None
    state = {**state, "dirpath": callback.dirpath, "best_k_models": scores}
    state |= {name: locate(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
    if not state["best_model_path"] and scores:
        choose = max if callback.mode == "max" else min
        state["best_model_path"] = choose(scores, key=lambda file: float(scores[file]))
        state["best_model_score"] = scores[state["best_model_path"]]
    return state
