"""Run files as factories: network, data and Trainer arguments are built as `fit` builds them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from metricloss_pl.cli.command_line import MetricLossCLI
from metricloss_pl.cli.errors import constructor_errors
from metricloss_pl.cli.saved_config import SaveConfigAndSummary
from metricloss_pl.cli.split import SplitRecord
from metricloss_pl.config_files import find_config
from metricloss_pl.data import ImageDataModule
from metricloss_pl.data.folds import FoldDataModule
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import Classifier
from metricloss_pl.run_options import RESULT_INVARIANT

__all__ = ["RunFileFactory", "listed"]

# The plan's settings, by the names that run files have for them.
_FLAGS = {"seed": "seed_everything", "split": "data.seed", "samples_per_class": "data.samples_per_class"}
_WITHOUT_EFFECT = (  # on a result: settings of the Trainer, and callbacks that measure, draw or write
    *("default_root_dir", "log_every_n_steps", "logger", "enable_checkpointing", "enable_progress_bar"),
    *("enable_model_summary", "callbacks"),
)
_OBSERVERS = (
    *("ConfusionMatrixPlot", "EmbeddingPlot", "GeometryMonitor", "LearningRateMonitor", "ModelCheckpoint"),
    *("PredictionWriter", "ProgressBar"),
)


class SaveConfig(SaveConfigAndSummary):
    """Callback that saves the config when training begins, without a summary; the data were checked before."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Leave out the checks of the images."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.save(trainer)


class _RunFile(MetricLossCLI):
    """Network, data and Trainer arguments of a run file, without a Trainer."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--ckpt_path", type=Any, default=None)  # in the saved config of a run

    def instantiate_classes(self) -> None:
        if self.given.resume is not None:
            raise UserError(f"the run file resumes {self.given.resume}: compared runs start from scratch")
        with constructor_errors():
            LightningCLI.instantiate_classes(self)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Collect the arguments of the Trainer."""
        self.trainer_arguments = dict(self.config_init.trainer)
        own = SaveConfig(self.parser, self.given), SplitRecord()
        self.trainer_arguments["callbacks"] = [*listed(self.trainer_arguments["callbacks"]), *own]


class _Parsed(_RunFile):
    """Config of a run file, from which nothing is built."""

    def before_instantiate_classes(self) -> None:
        """Do nothing."""

    def instantiate_classes(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class RunFileFactory:
    """Factory of the runs that a run file describes.

    Args:
        config: Run file.
        overrides: Settings by dotted name.
    """

    config: str
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, settings: Mapping[str, Any]) -> tuple[Classifier, ImageDataModule, dict[str, Any]]:
        """Return network, data and Trainer arguments."""
        cli = self._read(_RunFile, settings)
        return cli.model, _in_fold(cli.datamodule, settings), cli.trainer_arguments

    def decisive(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return everything in the run file that decides a result, with the digests of files in place of their paths.

        Args:
            settings: Settings of any run, which are left out.
        """
        plain = self.plain(settings)
        model, data, trainer = (plain[block] for block in ("model", "data", "trainer"))
        callbacks = [one for one in listed(trainer["callbacks"]) if not one["class_path"].endswith(_OBSERVERS)]
        for name in (*RESULT_INVARIANT, *(flag.removeprefix("data.") for flag in _FLAGS.values())):
            data.get("init_args", {}).pop(name, None)
        for name in _WITHOUT_EFFECT:
            trainer.pop(name, None)
        decisive = {"model": model, "data": data, "trainer": trainer, "callbacks": callbacks}
        return {name: _with_digests(value) for name, value in decisive.items()}

    def plain(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parsed config as plain values.

        Raises:
            UserError: There is no such file or setting, or a value is of another type or out of its range.
        """
        parsed = self._read(_Parsed, settings)
        plain: dict[str, Any] = json.loads(parsed.parser.dump(parsed.given, format="json", skip_none=False))
        return plain

    def values(self, names: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of settings by dotted name, None for those that the run file leaves open."""
        found: dict[str, Any] = {}
        plain = self.plain(settings)
        for name in names:
            value: Any = plain
            for part in name.split("."):
                block = value.get("init_args", value) if isinstance(value, dict) else {}
                value = block.get(part)
            found[name] = value
        return found

    def _read(self, kind: type[_RunFile], settings: Mapping[str, Any]) -> _RunFile:
        file = find_config(self.config)
        if not Path(file).is_file():
            raise UserError(f"config is {self.config}: there is no such run file")
        if unfit := {"ckpt_path", "resume"} & self.overrides.keys():
            raise UserError(f"overrides have {unfit.pop()}: compared runs start from scratch")
        named = {_FLAGS.get(name, name): value for name, value in settings.items() if name in _FLAGS or "." in name}
        if settings.get("val_fraction") is not None:
            named["data.val_fraction"] = settings["val_fraction"]
        given = {**self.overrides, **named}.items()
        flags = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in given]
        return kind(args=["--config", file, *flags], run=False, save_config_callback=None)


def _in_fold(data: ImageDataModule, settings: Mapping[str, Any]) -> ImageDataModule:
    if settings.get("fold") is None:
        return data
    return FoldDataModule.of(data, settings["folds"], settings["fold"], settings["split"])


def listed(value: Any) -> list[Any]:
    """Return a list as it is, another value as a list of one, and None as an empty one."""
    return [] if value is None else value if isinstance(value, list) else [value]


def _with_digests(value: Any) -> Any:
    """Return nested settings with the digest of each file that they name."""
    if isinstance(value, dict):
        return {name: _with_digests(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_digests(item) for item in value]
    if isinstance(value, str) and re.search(r"[./]", value) and Path(value).is_file():
        with Path(value).open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    return value
