"""Config that a run saves, and the summary that it prints as its training begins."""

from __future__ import annotations

import math
import os
import pydoc
from collections.abc import Iterator, Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from metricloss_pl.callbacks.best import BALANCED, BestCheckpoint
from metricloss_pl.callbacks.run_folder import run_folder
from metricloss_pl.callbacks.schedule_length import count_steps
from metricloss_pl.cli.console import print_table, relative_path
from metricloss_pl.data import ImageDataModule
from metricloss_pl.data.file_checks import RUN_MARKER
from metricloss_pl.errors import plural
from metricloss_pl.files import replacing
from metricloss_pl.regimes import LinearProbeClassifier

__all__ = ["FEW_POINTS", "SaveConfigAndSummary", "describe_few", "drop_object_defaults"]

# Settings that are paths of data or of a run's output. A relative one starts at the current folder.
_PATHS = ("root", "test_root", "csv", "images_dir", "path", "predict_dir", "runs_dir", "dirpath", "save_dir")
_FEW_STEPS = 200
FEW_POINTS = 2  # of the accuracy: validation images are few if one of them is more


class SaveConfigAndSummary(SaveConfigCallback):
    """Callback of `fit` that checks the images, and when training begins saves the config and prints a summary."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Look for broken, duplicate and unused images, also in the test set."""
        if stage == "fit":
            data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
            data.check_files()
            data.warn_of_left_out()
            data.warn_of_duplicates()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self.save(trainer)
            print_table(_summarize(trainer, pl_module))

    def save(self, trainer: Trainer) -> None:
        """Write the config into the folder of the run."""
        config = with_absolute_paths(self.config)
        for name in ("ckpt_path", "resume"):  # a new run from this config starts from scratch
            if name in config:
                config[name] = None
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        settings = config.data.get("init_args", {})
        # So that evaluations do not need the training set. Other automatic settings stay: a resumed run has the same
        # training images, and shares the same total batch out to its processes.
        if settings.get("image_size") == "auto":
            settings["image_size"] = data.resolved_image_size
        (run_folder(trainer) / RUN_MARKER).touch()
        with replacing(run_folder(trainer) / self.config_filename) as beside:
            self.parser.save(config, str(beside), skip_none=False, overwrite=True, multifile=False)


def _summarize(trainer: Trainer, module: LightningModule) -> list[tuple[str, str]]:
    """Return the rows that describe a training that is about to begin."""
    data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
    rows = [("data", data.describe())]
    if data.num_workers == 0 and not data.in_memory("train"):
        rows.append(("images", "decoded for each batch: raise --data.cache_gb or --data.num_workers"))
    if (size := data.resolved_image_size) is not None:
        repeat = data.resolved_repeat
        uses = f", each used {repeat} times per epoch" if repeat > 1 else ""
        rows.append(("image size", f"{size} x {size} px{uses}"))
    weights = sum(parameter.numel() for parameter in module.parameters())
    device = trainer.strategy.root_device
    place = "" if device.type == "cpu" else f", on {device}"
    rows.append(("network", f"{type(module.backbone).__name__}, {weights:,} parameters in all{place}"))
    rows.append(("training", _describe_steps(trainer, module, data)))
    chooser = next((c.monitor for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)
    if data.has_validation:
        counts = data.samples("val").counts(data.num_classes).tolist()
        if few := describe_few(counts, chooser == BALANCED):
            accuracy = BALANCED if chooser == BALANCED else "val/accuracy"
            rows.append(("validation", f"{plural(sum(counts), 'image')}{few} of {accuracy}"))
    if data.is_imbalanced:
        rows.append(("imbalance", _describe_imbalance(data, module, chooser if data.has_validation else None)))
    rows.append(("run", relative_path(run_folder(trainer))))
    return rows


def _describe_steps(trainer: Trainer, module: LightningModule, data: ImageDataModule) -> str:
    if isinstance(module, LinearProbeClassifier):
        return "logistic regression on the features of all training images"
    # A training set smaller than a batch is one batch of its own size.
    batch = min(data.resolved_batch_size * trainer.world_size, len(data.samples("train")))
    batch *= trainer.accumulate_grad_batches
    total = count_steps(trainer)
    per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    few = "; few: lower --data.batch_size or raise --trainer.max_epochs" if total < _FEW_STEPS else ""
    return f"{total} step{'' if total == 1 else 's'} of {plural(batch, 'image')}, {per_epoch} per epoch{few}"


def describe_few(counts: Sequence[int], balanced: bool) -> str:
    """Return "; few: ..." with the share of one validation image in the accuracy that chooses the best epoch.

    Args:
        counts: Validation images per class.
        balanced: Whether it is the balanced accuracy.

    Returns:
        The words, or "" if the images are not few.
    """
    seen = [count for count in counts if count > 0]
    points = 100 / (len(seen) * min(seen) if balanced else sum(seen))
    if points <= FEW_POINTS:
        return ""
    return f"; few: one image {'may be' if balanced else 'is'} {points:.0f} percentage points"


def _describe_imbalance(data: ImageDataModule, module: LightningModule, chooser: str | None) -> str:
    """Return how imbalanced classes change the choice of the best epoch, and the remedy if none is in use."""
    balances = data.balanced_sampling or data.samples_per_class_in_batch is not None
    weights = getattr(module, "balance_classes", False) or getattr(module, "class_weights", None) is not None
    parts = [f"{chooser} chooses the best epoch" if chooser else "read balanced_accuracy rather than accuracy"]
    if not (balances or weights):
        parts.append("try --data.balanced_sampling true or --model.class_weights balanced")
    return "; ".join(parts)


def with_absolute_paths(config: Any) -> Any:
    """Return a copy of a config, or of a value in it, that means the same from any folder."""
    if isinstance(config, list):
        return [with_absolute_paths(item) for item in config]
    if not isinstance(config, (dict, Namespace)):
        return config
    copy = config.clone() if isinstance(config, Namespace) else dict(config)
    for name, value in list(vars(config).items() if isinstance(config, Namespace) else config.items()):
        is_path = name in _PATHS and isinstance(value, str) and "://" not in value
        copy[name] = os.path.abspath(value) if is_path else with_absolute_paths(value)
    return copy


def drop_object_defaults(config: Namespace) -> None:
    """Remove settings that are objects, such as a device, where they are the defaults of their classes.

    Few objects have a text that gives them back, and one without would make the saved config unreadable.

    Args:
        config: Parsed config, changed in place.
    """
    for class_path, settings in list(_classes(config)):
        objects = {name: value for name, value in vars(settings).items() if not _is_text(value)}
        defaults = _defaults(class_path) if objects else Namespace()
        for name, value in objects.items():
            if [value] == [defaults.get(name)]:  # a list compares by identity first, since tensors have no truth value
                del settings[name]


def _classes(value: Any) -> Iterator[tuple[str, Namespace]]:
    """Yield import path and settings of every class that a config names."""
    if isinstance(value, Namespace):
        if isinstance(settings := value.get("init_args"), Namespace) and "class_path" in value:
            yield value.class_path, settings
        value = vars(value)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        yield from _classes(item)


def _is_text(value: Any) -> bool:
    """Return whether YAML writes a value as it is; a class within it is examined by itself."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_text, value))
    if isinstance(value, dict):
        return all(map(_is_text, value.values()))
    return isinstance(value, Namespace) or type(value) in (type(None), bool, int, float, str)


def _defaults(class_path: str) -> Namespace:
    """Return the defaults of a class or function, also of arguments that it passes on as `**kwargs`."""
    parser, found = ArgumentParser(exit_on_error=False), pydoc.locate(class_path)
    add = parser.add_class_arguments if isinstance(found, type) else parser.add_function_arguments
    add(found, fail_untyped=False)  # type: ignore[arg-type]
    return parser.get_defaults()
