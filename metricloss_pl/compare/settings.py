"""Run files with overrides: what they say, and the data, network and Trainer that they describe."""

from __future__ import annotations

import hashlib
import json
import re
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jsonargparse import ActionConfigFile, Namespace  # type: ignore[attr-defined]
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, ProgressBar, Timer
from lightning.pytorch.cli import LightningArgumentParser

from metricloss_pl.callbacks import ConfusionMatrixPlot, EmbeddingPlot, GeometryMonitor, PredictionWriter
from metricloss_pl.class_embeddings import Hierarchy
from metricloss_pl.cli.errors import constructor_errors, format_user_error
from metricloss_pl.cli.suggestions import find_mistake
from metricloss_pl.config_files import find_config
from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import UserError
from metricloss_pl.files import FilePath
from metricloss_pl.regimes import Classifier
from metricloss_pl.run_options import RESULT_INVARIANT, add_run_arguments, check_settings, link_facts_of_data

__all__ = ["Built", "RunFiles", "for_each"]

T = TypeVar("T")

# What draws, writes or measures for a single run's sake.
_NOT_HERE = (
    ConfusionMatrixPlot,
    EmbeddingPlot,
    GeometryMonitor,
    LearningRateMonitor,
    ModelCheckpoint,
    PredictionWriter,
    ProgressBar,
)
_OURS = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "callbacks")
_NO_SETTING = ("default_root_dir", "log_every_n_steps", *_OURS)  # of the Trainer, that a result does not depend on


class Built(NamedTuple):
    """What a run consists of."""

    model: Classifier
    data: ImageDataModule
    trainer: dict[str, Any]  # the Trainer's arguments
    callbacks: list[Callback]


class RunFiles:
    """Reads run files as ``fit`` does, with values of single settings on top."""

    def __init__(self) -> None:
        self._parser = LightningArgumentParser(exit_on_error=False, allow_abbrev=False)
        self._parser.add_argument("-c", "--config", action=ActionConfigFile)
        self._parser.add_argument("--seed_everything", type=bool | int, default=0)
        self._parser.add_lightning_class_args(Trainer, "trainer")
        self._parser.add_lightning_class_args(Classifier, "model", subclass_mode=True)
        self._parser.add_lightning_class_args(ImageDataModule, "data", subclass_mode=True)
        add_run_arguments(self._parser)
        link_facts_of_data(self._parser)
        for name in ("ckpt_path", "weights_only"):  # in the saved config of a run
            self._parser.add_argument(f"--{name}", type=Any, default=None)

    def parse(self, file: FilePath, overrides: Mapping[str, Any]) -> Namespace:
        """The whole config of a run.

        Args:
            file: The run file.
            overrides: Values by dotted name.

        Raises:
            UserError: There is no such file or setting, or a value is not of the setting's kind or out of its range.
        """
        file = find_config(str(file))
        if not Path(file).is_file():
            raise UserError(f"config is {file}: there is no such run file")
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in overrides.items()}
        flags = [f"--{name}={text}" for name, text in texts.items()]
        try:
            config = self._parser.parse_args(["--config", str(file), *flags])
        except (ArgumentError, UnicodeDecodeError) as error:
            options = [("--config", str(file)), *((f"--{name}", text) for name, text in texts.items())]
            if line := find_mistake(options):
                raise UserError(line) from error
            raise
        if config.ckpt_path is not None or config.resume is not None:
            raise UserError(f"{file} starts from a checkpoint: runs that are compared start anew")
        check_settings(config)
        return config

    def decisive(self, config: Namespace, hierarchy: Hierarchy | None) -> dict[str, Any]:
        """All that decides what a run finds, as plain values; a file stands there with what it holds, not by name.

        Args:
            config: As :meth:`parse` gives it.
            hierarchy: Of the network that it describes; it stands for whatever names it.
        """
        plain = json.loads(self._parser.dump(config, format="json", skip_none=False))
        trainer, data = plain["trainer"], plain["data"]
        names = tuple(kind.__name__ for kind in _NOT_HERE)
        callbacks = [one for one in _listed(trainer["callbacks"]) if not one["class_path"].endswith(names)]
        for name in RESULT_INVARIANT:
            data.get("init_args", {}).pop(name, None)
        for name in _NO_SETTING:
            trainer.pop(name, None)
        if hierarchy is not None:
            lines = "\n".join(hierarchy.lines())
            plain["model"]["init_args"]["class_embeddings"] = hashlib.blake2b(
                lines.encode(), digest_size=10
            ).hexdigest()
        decisive: dict[str, Any] = _with_contents(
            {"model": plain["model"], "data": data, "trainer": trainer, "callbacks": callbacks}
        )
        return decisive

    def build(self, config: Namespace) -> Built:
        """The network, the data and what a Trainer needs; it draws from the global seed."""
        with constructor_errors():
            made = self._parser.instantiate(config)
        trainer = dict(made.trainer)
        callbacks = [callback for callback in _listed(trainer.get("callbacks")) if not isinstance(callback, _NOT_HERE)]
        for callback in callbacks:
            if isinstance(callback, EarlyStopping | Timer):
                raise UserError(
                    f"{type(callback).__name__} would end runs before others: leave it out, so that all variants train "
                    "equally long"
                )
        return Built(made.model, made.data, {k: v for k, v in trainer.items() if k not in _OURS}, callbacks)


def for_each(variants: Iterable[str], do: Callable[[str], T]) -> dict[str, T]:
    """What ``do`` gives for each variant.

    Raises:
        UserError: In place of any error that stands for a user's mistake; it names the variant, unless the mistake is
            the same for all of them.
    """
    names, given = list(variants), {}
    for name in names:
        try:
            given[name] = do(name)
        except Exception as error:
            line = format_user_error(error)
            if line is None:
                raise
            shared = not given and all(_mistake(do, other) == line for other in names if other != name)
            raise UserError(line if shared else f"variant {name}: {line}") from error
    return given


def _mistake(do: Callable[[str], Any], variant: str) -> str | None:
    try:
        do(variant)
    except Exception as error:
        return format_user_error(error)
    return None


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _with_contents(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_contents(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_contents(item) for item in value]
    if isinstance(value, str) and re.search(r"[./]", value) and Path(value).is_file():
        with Path(value).open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    return value
