"""Results of a run: recorded, logged, printed, and written as one line of JSON."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from metricloss_pl.callbacks.run_folder import run_folder
from metricloss_pl.checkpoints import is_trusted_run
from metricloss_pl.cli.console import print_table, relative_path
from metricloss_pl.cli.run_folder import CONFIG, LastCheckpoint, run_of
from metricloss_pl.data import ImageDataModule
from metricloss_pl.data.samples import SET_NAMES, Split
from metricloss_pl.environment import versions
from metricloss_pl.errors import plural, shell_command
from metricloss_pl.files import replacing, stem_of_result

__all__ = ["RunRecord", "SettingsLog", "report_results"]

_OF_TRAINER = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")


class RunRecord(Callback):
    """Facts about a training or prediction, also for a process that has started others to do it, as with `ddp_spawn`.

    They are the time of the training over all stretches, its length, its best checkpoint, and images of a prediction
    that can't be read.

    Args:
        best: Callback of the best checkpoint. None: checkpoints are disabled.
    """

    def __init__(self, best: ModelCheckpoint | None) -> None:
        self.best = best
        self.earlier_seconds = 0.0  # of training, before the run was resumed
        self._start = monotonic()
        self._process = os.getpid()
        self.training: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        self.checkpoint = ""
        self.unreadable = ""

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.earlier_seconds = state_dict["seconds"]

    def _seconds(self) -> float:
        return self.earlier_seconds + monotonic() - self._start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = monotonic()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = round(self._seconds(), 1)
        self.training = {"epochs": trainer.current_epoch, "steps": trainer.global_step, "seconds": seconds}
        last = next((c.path for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), None)
        self.checkpoint = str(last) if last and last.is_file() else ""
        if self.best is not None and self.best.monitor and self.best.best_model_score is not None:
            self.checkpoint = self.best.best_model_path
            self.metrics = {f"best {self.best.monitor}": self.best.best_model_score.item()}
        self._hand_over(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.unreadable = str(trainer.datamodule.unreadable or "")  # type: ignore[attr-defined]
        self._hand_over(trainer)

    def _hand_over(self, trainer: Trainer) -> None:
        if os.getpid() != self._process and trainer.is_global_zero:
            names = ("training", "metrics", "checkpoint", "unreadable")
            self._file(trainer).write_text(json.dumps({name: getattr(self, name) for name in names}), encoding="utf-8")

    def take_over(self, trainer: Trainer) -> None:
        """Take the facts from a process that this one has started, if there is one."""
        if (file := self._file(trainer)).is_file():
            vars(self).update(json.loads(file.read_text(encoding="utf-8")))
            file.unlink()

    def _file(self, trainer: Trainer) -> Path:
        return run_folder(trainer) / f".record-{self._process}.json"


class SettingsLog(Callback):
    """Log the settings of data, model and training under the names of their flags, and at the end the final metrics.

    Lightning would log the model's arguments alone, with an entry of its own among them. TensorBoard's tab HPARAMS
    stays empty without metrics beside the settings.

    Args:
        config: Parsed config of the run.
    """

    def __init__(self, config: Namespace) -> None:
        parts = {name: config[name] for name in ("seed_everything", "data", "model")}
        parts["trainer"] = {name: config.trainer.get(name) for name in _OF_TRAINER}
        self.settings = {name: value for part in parts for name, value in _flatten(part, parts[part])}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.settings, metrics={})  # without, it makes up a metric of -1
            else:
                logger.log_hyperparams(self.settings)
            logger.log_graph(pl_module)  # as Lightning does beside it
            logger.save()

    def log_metrics(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Log the final metrics beside the settings, once a fit has ended.

        Args:
            trainer: Trainer of the fit.
            metrics: Values by name, such as `best val/accuracy` and `test/accuracy`. Empty: those of training count.
        """
        # TensorBoard would change a name with a space in it.
        final = {name.replace(" ", "/"): float(value) for name, value in (metrics or trainer.callback_metrics).items()}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.settings, metrics=final, step=trainer.global_step)
                logger.finalize("success")


def _flatten(name: str, value: Any) -> Iterator[tuple[str, bool | int | float | str]]:
    """Yield the plain settings within a value, and the names of the classes in it."""
    if isinstance(value, Namespace) and "class_path" in value:
        yield name, value.class_path.rpartition(".")[2]
        value = value.get("init_args")
    if isinstance(value, Namespace):
        value = vars(value)
    elif isinstance(value, list) and any(isinstance(item, Namespace) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flatten(f"{name}.{key}", item)
    elif value is not None:
        yield name, value if isinstance(value, (bool, int, float, str)) else getattr(value, "__name__", str(value))


def report_results(
    trainer: Trainer,
    data: ImageDataModule,
    config: Namespace,
    arguments: Sequence[str],
    metrics: Mapping[str, float],
    checkpoint: str,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Print the closing lines of a run or an evaluation, and write them as one line of JSON into the run's folder.

    Args:
        trainer: Trainer of the run.
        data: Data of the run; the Trainer does not know them if it has started other processes.
        config: Parsed config of the subcommand.
        arguments: Arguments of the command, the subcommand first.
        metrics: Values by name, such as `best val/accuracy` and `test/accuracy`.
        checkpoint: Checkpoint that was tested or is to be tested; "" if there is none.
        training: Epochs, steps and seconds of a training. None: it was an evaluation.
    """
    folder = run_folder(trainer)
    if not trainer.is_global_zero:
        return
    subcommand = arguments[0]
    facts: dict[str, Any] = {
        "command": shell_command(*arguments),
        "model": config.model.class_path,
        "data": config.data.class_path,
        "seed": config.seed_everything,
    }
    if training is not None:
        facts |= training
        rows = [("time", "{seconds:.0f} s, {epochs} epochs, {steps} steps".format(**training))]
    else:
        subset: Split = "val" if subcommand == "validate" else "test"
        labels, number = data.samples(subset).labels, data.num_classes
        facts["images"] = len(labels)
        present = len(labels.unique())
        classes = f"{number} classes" if present == number else f"{present} of {number} classes"
        rows = [("images", f"{plural(len(labels), SET_NAMES[subset] + ' image')} of {classes}")]
    facts["metrics"] = {name.removeprefix("best "): value for name, value in metrics.items()}
    rows += [(name, f"{metrics[name]:.4f}") for name in sorted(metrics)]
    if checkpoint:
        facts["checkpoint"] = relative_path(checkpoint)
        rows.append(("checkpoint", relative_path(checkpoint)))
    if subcommand == "fit" and checkpoint and not any(name.startswith("test/") for name in metrics):
        settings = config.as_dict()
        needs_config = not is_trusted_run([settings[block] for block in ("data", "model", "trainer")])
        is_found = run_of(checkpoint) == folder  # not if it holds weights alone and is elsewhere
        given = ["--config", relative_path(folder / CONFIG)] if needs_config or not is_found else []
        rows.append(("test", shell_command("test", *given, "--ckpt_path", relative_path(checkpoint))))
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            view = shlex.join(["tensorboard", "--logdir", relative_path(logger.root_dir)])
            rows.append(("log", f"{relative_path(logger.log_dir)}  ({view})"))
    if (folder / "figures").is_dir():
        rows.append(("figures", relative_path(folder / "figures")))
    file = folder / "result.json"
    if subcommand != "fit":
        file = folder / f"{stem_of_result(folder, subcommand, facts['command'])}.json"
        rows.append(("result", relative_path(file)))
    facts |= {
        "versions": versions(),
        "hardware": torch.cuda.get_device_name() if trainer.strategy.root_device.type == "cuda" else "CPU",
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
    }
    with replacing(file) as beside:
        beside.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    print_table(rows)
