"""A run: its saved config, last state and results, and what the screen says as it begins and ends."""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, Timer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

from metricloss_pl._compat import started_processes
from metricloss_pl.callbacks.run_folder import run_folder
from metricloss_pl.cli.console import print_table, relative_path
from metricloss_pl.cli.run_folder import LAST
from metricloss_pl.data import ImageDataModule
from metricloss_pl.environment import versions
from metricloss_pl.errors import shell_command
from metricloss_pl.files import replacing
from metricloss_pl.run_files import with_absolute_paths

REFUSED = 3  # status of a process after a user's mistake, where it is not the first one
_FEW_STEPS = 200
_FEW_IMAGES = 50  # for validation: each makes two points or more
_NOISE = (
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    "torch.distributed.nn.functional.all_gather is deprecated",
    "The number of training batches .* is smaller than the logging interval",
    "The '\\w+_dataloader' does not have many workers",  # for images in memory none is the fastest; see _announce
    "Total length of `list` across ranks is zero",  # val_fraction 0 means it
    "You're using the WeightAveraging callback, but loading a checkpoint outside the 'fit' stage",
    "You're resuming from a checkpoint that ended before the epoch ended and your dataloader is not resumable",  # it is
)
_LOGGED_NOISE = (
    "Tip: For seamless cloud",
    "Loading `train_dataloader`",
    "TPU available",
    "`Trainer.fit` stopped: `max_epochs",  # as it was meant to
)


def limit_waiting(minutes: float) -> None:
    """How long a process waits for the others before it gives up; torch's own default is half an hour."""
    for name in StrategyRegistry.available_strategies():
        entry = StrategyRegistry[name]
        if issubclass(entry["strategy"], DDPStrategy):
            entry["init_params"]["timeout"] = timedelta(minutes=minutes)


# --------------------------------------------------------------------------------------------------------- callbacks


class SaveConfigAndSummary(SaveConfigCallback):
    """Save the whole config and say what is about to be trained: in ``fit`` alone, once the training really begins."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Look for broken, double and unused images, the test's too. A refused run leaves no trace."""
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, ImageDataModule):
            data.check_files()
            data.warn_of_left_out()
            data.warn_of_duplicates()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        config = with_absolute_paths(self.config)
        for name in ("ckpt_path", "resume"):  # what continued this run is no part of a run like it
            if name in config:
                config[name] = None
        with replacing(run_folder(trainer) / self.config_filename) as beside:
            self.parser.save(config, str(beside), skip_none=False, overwrite=True, multifile=False)
        self._announce(trainer, pl_module)

    def _announce(self, trainer: Trainer, module: LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        rows = [("data", data.describe())] if isinstance(data, ImageDataModule) else []
        if isinstance(data, ImageDataModule) and data.num_workers == 0 and not data.in_memory("train"):
            rows.append(("images", "decoded anew for each batch: raise --data.cache_gb or --data.num_workers"))
        weights = sum(parameter.numel() for parameter in module.parameters())
        rows.append(("network", f"{type(module.backbone).__name__}, {weights:,} parameters in all"))
        total = trainer.estimated_stepping_batches
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        few = "; few: lower --data.batch_size or raise --trainer.max_epochs" if total < _FEW_STEPS else ""
        size = f" of {_global_batch(data, trainer)} images" if isinstance(data, ImageDataModule) else ""
        rows.append(("training", f"{total} steps{size}, {per_epoch} per epoch{few}"))
        if isinstance(data, ImageDataModule) and data.has_validation:
            images = len(data.samples("val"))
            if images < _FEW_IMAGES:
                points = f"{100 / images:.0f} points"
                rows.append(("val set", f"{images} images; few: each makes {points} of what chooses the best epoch"))
        rows.append(("run", relative_path(run_folder(trainer))))
        print_table(rows)


def _global_batch(data: ImageDataModule, trainer: Trainer) -> int:
    """Images a step, of all processes and accumulated batches; a set smaller than a batch gives one of its size."""
    batch = min(data.batch_size * trainer.world_size, len(data.samples("train")))
    return batch * trainer.accumulate_grad_batches


class LastCheckpoint(Checkpoint):
    """The newest state, for `--resume`, written after all other callbacks have seen the epoch, since it holds theirs.

    Lightning's own `save_last` is that of the best epoch.

    Args:
        every_n_steps: Steps from one writing within an epoch to the next. None: at the end of each epoch alone.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        self.every_n_steps = every_n_steps
        self.dirpath: str | None = None
        self._saved_step = 0
        self._metrics: dict[str, float] = {}  # that schedules which wait for a plateau have yet to learn

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
        """Tell the schedules that wait for a plateau what a resumed epoch came to, which Lightning does not."""
        for config in trainer.lr_scheduler_configs:
            if config.reduce_on_plateau and config.monitor in self._metrics:
                config.scheduler.step(self._metrics[config.monitor])  # type: ignore[arg-type]
        self._metrics = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # From a state saved before a validation, Lightning would go on without it. What was accumulated is lost.
        steps = trainer.global_step - self._saved_step
        if self.every_n_steps is None or steps < self.every_n_steps or trainer.is_last_batch:
            return
        seen = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
        validates = trainer.val_check_batch and (seen + 1) % trainer.val_check_batch == 0
        if not validates and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning tells a schedule that waits for a plateau after this, and not at all if the epoch was resumed.
        epochs, metrics = trainer.current_epoch + 1, trainer.callback_metrics
        configs = [c for c in trainer.lr_scheduler_configs if c.reduce_on_plateau and c.interval == "epoch"]
        due = [c.monitor for c in configs if epochs % c.frequency == 0]
        self._metrics = {name: float(metrics[name]) for name in due if name is not None and name in metrics}
        if trainer.fit_loop.restarting:
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
            print(f"\nit goes on from {relative_path(self.path)} with: {command}")


class RunRecord(Callback):
    """Results of a training or prediction, for the process that started it, which may have spawned others to do it.

    Args:
        timer: Timer of the training.
        best: Callback of the best checkpoint. None: checkpoints are disabled.
    """

    def __init__(self, timer: Timer, best: ModelCheckpoint | None) -> None:
        self.timer = timer
        self.best = best
        self._process = os.getpid()
        self._facts: dict[str, Any] | None = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        checkpoints = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.best_model_path]
        checkpoints.sort(key=lambda callback: callback is not self.best)
        chosen = next((c for c in checkpoints if c.monitor), None)
        last = next((c.path for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), None)
        score = None if chosen is None or chosen.best_model_score is None else chosen.best_model_score.item()
        facts = {
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "seconds": round(self.timer.time_elapsed("train"), 1),  # testing loads the checkpoint's time into it
            "metrics": {} if chosen is None or score is None else {chosen.monitor: score},
            "checkpoint": chosen.best_model_path if chosen else str(last) if last and last.is_file() else "",
        }
        self._keep(trainer, facts)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        unreadable = trainer.datamodule.unreadable  # type: ignore[attr-defined]
        self._keep(trainer, {"unreadable": unreadable and str(unreadable)})

    def _keep(self, trainer: Trainer, facts: dict[str, Any]) -> None:
        self._facts = facts
        if os.getpid() != self._process and trainer.is_global_zero:  # one that Lightning has spawned or forked
            self._file(trainer).write_text(json.dumps(facts), encoding="utf-8")

    def facts(self, trainer: Trainer) -> dict[str, Any]:
        """Return the results.

        Of a training: epochs, steps, seconds, metrics of the best epoch and the checkpoint to test ("" if there is
        none). Of a prediction: the message on its unreadable images, or None.
        """
        if self._facts is None:
            # Another node than the first, whose Trainer has spawned its processes. All test what the first has loaded.
            if not trainer.is_global_zero:
                return {"metrics": {}, "checkpoint": ""}
            self._facts = json.loads(self._file(trainer).read_text(encoding="utf-8"))
            self._file(trainer).unlink()
        return dict(self._facts)

    def _file(self, trainer: Trainer) -> Path:
        return run_folder(trainer) / ".record.json"


def has_lost_a_process(trainer: Trainer) -> bool:
    """Return whether a process that this one has started was killed, or has refused to go on."""
    for process in started_processes(trainer):
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)  # its connections close before it ends
        if process.returncode is not None and (process.returncode < 0 or process.returncode == REFUSED):
            return True
    return False


class TerminateChildrenOnError(Callback):
    """When the first process fails, end those that it has started, however they hang, once its message is out."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        for process in started_processes(trainer):
            atexit.register(process.kill)


# ------------------------------------------------------------------------------------------------------------ screen


@contextmanager
def less_noise() -> Iterator[None]:
    """Keep off the screen what users can do nothing about: advertisements, and what Lightning does with torch.

    A warning to users is one line.
    """
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(_is_of_use)
    in_full = warnings.formatwarning

    def in_one_line(message: Warning | str, category: type[Warning], *where: Any, **line: Any) -> str:
        """What is said to users, without the place in the code that says it."""
        if issubclass(category, UserWarning):
            return f"warning: {' '.join(str(message).split())}\n"
        return in_full(message, category, *where, **line)

    warnings.formatwarning = in_one_line
    try:
        with warnings.catch_warnings():
            for message in _NOISE:
                warnings.filterwarnings("ignore", message=f".*{message}")
            yield
    finally:
        warnings.formatwarning = in_full
        logger.removeFilter(_is_of_use)


def _is_of_use(record: logging.LogRecord) -> bool:
    return not any(noise in record.getMessage() for noise in _LOGGED_NOISE)


def write_result(file: Path, trainer: Trainer, facts: dict[str, Any]) -> None:
    """Write one line of JSON: the facts, and what they were found with."""
    result = {
        **facts,
        "versions": versions(),
        "hardware": torch.cuda.get_device_name() if trainer.strategy.root_device.type == "cuda" else "CPU",
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
    }
    with replacing(file) as beside:
        beside.write_text(json.dumps(result) + "\n", encoding="utf-8")
