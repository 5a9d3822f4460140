"""Results of a run: logged, printed, and written as one line of JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from metricloss_pl.callbacks.best import BALANCED
from metricloss_pl.callbacks.run_folder import CONFIG, model_digest, run_folder, run_of
from metricloss_pl.checkpoints import is_trusted_run
from metricloss_pl.cli.console import print_columns, print_table, relative_path
from metricloss_pl.cli.record import ClassScores, RunRecord
from metricloss_pl.cli.saved_config import describe_few
from metricloss_pl.data.samples import SET_NAMES, Split
from metricloss_pl.environment import versions
from metricloss_pl.errors import plural, shell_command
from metricloss_pl.files import replacing, stem_of_result
from metricloss_pl.metrics import chance_accuracy

__all__ = ["SettingsLog", "report_results"]

_OF_TRAINER = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")
_MOST_CLASSES = 20  # on the screen, each with its recall and F1


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
    class_names: Sequence[str],
    record: RunRecord,
    config: Namespace,
    arguments: Sequence[str],
    metrics: Mapping[str, float],
) -> None:
    """Print the closing lines of a run or an evaluation, and write them as one line of JSON into the run's folder.

    Args:
        trainer: Trainer of the run.
        class_names: Names of the classes in the order of the labels.
        record: Facts about the training or the evaluation, and the checkpoint that was tested or is to be tested.
        config: Parsed config of the subcommand.
        arguments: Arguments of the command, the subcommand first.
        metrics: Values by name, such as `best val/accuracy` and `test/accuracy`.
    """
    folder = run_folder(trainer)
    if not trainer.is_global_zero:
        return
    subcommand, checkpoint = arguments[0], record.checkpoint
    facts: dict[str, Any] = {
        "command": shell_command(*arguments),
        "model": config.model.class_path,
        "data": config.data.class_path,
        "seed": config.seed_everything,
        "tta": (config.data.get("init_args") or {}).get("tta"),
    }
    if subcommand == "fit":
        facts |= record.training
        rows = [("time", "{seconds:.0f} s, {epochs} epochs, {steps} steps".format(**record.training))]
        if "best_epoch" in record.training:
            rows.append(("best epoch", _describe_choice(record)))
    else:
        subset: Split = "val" if subcommand == "validate" else "test"
        counts = record.counts[subset]
        facts["images"] = sum(counts)
        present, number = sum(count > 0 for count in counts), len(counts)
        classes = f"{number} classes" if present == number else f"{present} of {number} classes"
        rows = [("images", f"{plural(sum(counts), SET_NAMES[subset] + ' image')} of {classes}")]
    facts["metrics"] = {name.removeprefix("best "): value for name, value in metrics.items()}
    rows += [(name, f"{metrics[name]:.4f}") for name in sorted(metrics)]
    chance = _describe_chance(metrics, record.counts, class_names)
    rows += [("chance", line) for line in chance]
    if record.classes:
        facts["classes"] = {name: scores._asdict() for name, scores in zip(class_names, record.classes, strict=True)}
    if checkpoint:
        facts["checkpoint"] = relative_path(checkpoint)
        if Path(checkpoint).is_file():
            facts["model_digest"] = model_digest(checkpoint)
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
    if 0 < len(record.classes) <= _MOST_CLASSES:
        _print_classes(class_names, record.classes)
    print_table(rows)


def _describe_choice(record: RunRecord) -> str:
    """Return the best epoch, and the metric and number of images that chose it."""
    line = "{best_epoch} of {epochs}, by {monitor}".format(**record.training)
    if not record.training["monitor"].startswith("val/"):
        return line
    counts, balanced = record.counts["val"], record.training["monitor"] == BALANCED
    return f"{line} on {plural(sum(counts), 'image')}{describe_few(counts, balanced)}"


def _describe_chance(
    metrics: Mapping[str, float], counts: Mapping[str, Sequence[int]], class_names: Sequence[str]
) -> list[str]:
    """Return a line for each set with an accuracy that is at most two standard errors above that of guessing."""
    lines = []
    for subset, images in counts.items():
        # With unequal classes `fit` knows the balanced accuracy alone of its best epoch.
        names = (f"{best}{subset}/{name}" for name in ("accuracy", "balanced_accuracy") for best in ("", "best "))
        name = next((name for name in names if name in metrics), None)
        if name is None or not any(images):
            continue
        balanced = name.endswith("balanced_accuracy")
        chance, error = chance_accuracy(images, balanced)
        if metrics[name] <= chance + 2 * error:
            always = "one class" if balanced else repr(class_names[max(range(len(images)), key=images.__getitem__)])
            lines.append(f"{name} is not significantly above {chance:.4f}, that of always predicting {always}")
    return lines


def _print_classes(class_names: Sequence[str], classes: Sequence[ClassScores]) -> None:
    rows = [
        (name, str(of.images), *("-" if value is None else f"{value:.4f}" for value in (of.recall, of.f1)))
        for name, of in zip(class_names, classes, strict=True)
    ]
    print_columns(("class", "images", "recall", "F1"), rows)
