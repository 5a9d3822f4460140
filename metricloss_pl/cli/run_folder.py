"""Folder of a run: reserved by the first process, known to the others, and with the newest state of the training."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from metricloss_pl._compat import is_in_resumed_epoch, validates_after
from metricloss_pl.callbacks.best import recorded_id, resumed_state
from metricloss_pl.callbacks.run_folder import CHECKPOINTS, CONFIG, LAST, RunFolderCallback, run_folder
from metricloss_pl.cli.console import relative_path
from metricloss_pl.errors import UserError, shell_command

__all__ = ["LastCheckpoint", "RunFolder", "follow_moved_run"]


class RunFolder(RunFolderCallback):
    """Folder of a run, the same in all processes.

    Args:
        path: Folder of a run that continues or is evaluated. None: a new one is reserved.
        runs_dir: Folder that holds the runs.
        name: Name of the run, the folder within `runs_dir`.
        tensorboard: Whether TensorBoard's files are written into it.
    """

    def __init__(self, path: Path | None, runs_dir: str, name: str, tensorboard: bool) -> None:
        self.run_folder = path
        self.parent = Path(runs_dir).absolute() / name
        self.tensorboard = tensorboard
        self.id = uuid4().hex
        self._is_reserved = False

    def attach(self, trainer: Trainer) -> None:
        """Reserve the folder in the first process, and let checkpoints and TensorBoard be written into it.

        To be called before the Trainer runs: with `ddp_spawn`, this process starts others and trains nothing itself.
        """
        if self.run_folder is None and trainer.is_global_zero:
            self.run_folder = _reserve(self.parent)
            self._is_reserved = True
        if (folder := self.run_folder) is None:
            return
        for callback in trainer.checkpoint_callbacks:
            if getattr(callback, "dirpath", "") is None:
                callback.dirpath = str(folder / CHECKPOINTS)  # type: ignore[attr-defined]
        if self.tensorboard and not trainer.loggers:
            dry_run = trainer.fast_dev_run  # type: ignore[attr-defined]
            trainer.logger = DummyLogger() if dry_run else TensorBoardLogger(folder.parent, "", folder.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the other processes the folder, which the first one has reserved."""
        self.attach(trainer)
        self.run_folder = Path(trainer.strategy.broadcast(str(self.run_folder)))
        self.attach(trainer)
        if stage == "fit" and trainer.is_global_zero:
            for file in (self.run_folder / CHECKPOINTS).rglob(".*.part.ckpt"):
                file.unlink(missing_ok=True)  # left by a process that was killed while it wrote

    def state_dict(self) -> dict[str, Any]:
        return {"id": self.id, "folder": str(self.run_folder)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.id = state_dict["id"]  # the same run continues

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Update the checkpoint's records of other checkpoints: their present paths, and those written later."""
        states = checkpoint["callbacks"]
        run_id = recorded_id(states)
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint) or callback.state_key not in states:
                continue
            state = states.pop(callback.state_key)
            if trainer.state.fn == TrainerFn.FITTING:  # an evaluation writes no checkpoint
                state = resumed_state(callback, state, run_id) if trainer.is_global_zero else None
                state = trainer.strategy.broadcast(state)
                states |= {callback.state_key: state} if state else {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove a folder that was reserved for a training that has not begun."""
        if self._is_reserved and self.run_folder and not (self.run_folder / CONFIG).exists():
            shutil.rmtree(self.run_folder, ignore_errors=True)  # also files of a logger
            self.remove_if_empty()

    def remove_if_empty(self) -> None:
        """Remove the folder if it was reserved and nothing was written, and the folders above if nothing else is there.

        A later result creates it again.
        """
        if self._is_reserved and self.run_folder:
            for folder in (self.run_folder, self.run_folder.parent, self.run_folder.parent.parent):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    continue
                except OSError:  # it is not empty
                    break


class LastCheckpoint(Checkpoint):
    """Newest state for `--resume`, written after all other callbacks have seen the epoch, since it holds their states.

    Lightning's own `save_last` is that of the best epoch.

    Args:
        every_n_steps: Steps between two writings within an epoch. None: at the end of each epoch alone.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        self.every_n_steps = every_n_steps
        self.dirpath: str | None = None
        self._saved_step = 0
        self._metrics: dict[str, float] = {}  # for plateau schedules that have not seen the epoch yet

    @property
    def path(self) -> Path:
        """File that the state is written to."""
        return Path(str(self.dirpath)) / LAST

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = sorted(callbacks, key=lambda callback: callback is self)  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self._metrics} if self._metrics else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._metrics = state_dict["metrics"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step
        self._step_on_plateau(trainer)

    def _step_on_plateau(self, trainer: Trainer) -> None:
        """Step plateau schedules with the metrics of a resumed epoch, which Lightning does not do."""
        for config in trainer.lr_scheduler_configs:
            if config.reduce_on_plateau and config.monitor in self._metrics:
                config.scheduler.step(self._metrics[config.monitor])  # type: ignore[arg-type]
        self._metrics = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps = trainer.global_step - self._saved_step
        if self.every_n_steps is None or steps < self.every_n_steps or trainer.is_last_batch:
            return
        # Resumed from a state before a validation, Lightning would skip it; accumulated gradients would be lost.
        if not validates_after(trainer, batch_idx) and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning steps a plateau schedule after this hook, and not at all if the epoch was resumed.
        epochs, metrics = trainer.current_epoch + 1, trainer.callback_metrics
        configs = [c for c in trainer.lr_scheduler_configs if c.reduce_on_plateau and c.interval == "epoch"]
        due = [c.monitor for c in configs if epochs % c.frequency == 0]
        self._metrics = {name: float(metrics[name]) for name in due if name is not None and name in metrics}
        if is_in_resumed_epoch(trainer):
            self._step_on_plateau(trainer)
        self._save(trainer)
        self._metrics = {}

    def _save(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path, weights_only=False)
            self._saved_step = trainer.global_step

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero and self.path.is_file():
            command = shell_command("fit", "--resume", relative_path(run_folder(trainer)))
            print(f"\ncontinue from {relative_path(self.path)} with: {command}")


def follow_moved_run(config: Namespace, checkpoint: Mapping[str, Any], given: Collection[str]) -> None:
    """Let a run that was moved or copied write no checkpoints where the original one writes them.

    Args:
        config: Parsed config of a `fit` that resumes the run, changed in place.
        checkpoint: Content of the checkpoint that it resumes from.
        given: Names of the options on the command line; they refer to the new place.
    """
    folder = Path(config.resume).absolute()
    before = Path(checkpoint["callbacks"].get(RunFolder.__name__, {}).get("folder", folder))
    if before.exists() and before.samefile(folder):
        return
    blocks = [] if "--checkpoint.dirpath" in given else [config.checkpoint]
    if not any(name.startswith("--trainer.callbacks") for name in given):
        callbacks = config.trainer.callbacks
        listed = callbacks if isinstance(callbacks, list) else [callbacks]
        blocks += [callback.get("init_args", {}) for callback in listed if callback]
    for block in blocks:
        if not (dirpath := block.get("dirpath")):
            continue
        is_within = Path(dirpath).is_relative_to(before)
        block.dirpath = str(folder / Path(dirpath).relative_to(before)) if is_within else None
        if not is_within:
            rank_zero_warn(
                f"{relative_path(folder)} was moved or copied from {before}: checkpoints are written into it and no "
                f"longer into {dirpath}; --checkpoint.dirpath names another folder"
            )


def _reserve(parent: Path) -> Path:
    """Create `parent/version_N` with the first free N.

    Raises:
        UserError: It can't be created.
    """
    for _ in range(100):
        taken = [int(number) for p in parent.glob("version_*") if (number := p.name.removeprefix("version_")).isdigit()]
        folder = parent / f"version_{max(taken, default=-1) + 1}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # taken by a run that started at the same moment
            continue
        except OSError as error:
            raise UserError(f"--runs_dir: {parent} can't hold a run ({error.strerror})") from error
    raise UserError(f"--runs_dir: found no free version in {parent}")
