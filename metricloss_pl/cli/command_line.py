"""Command line: LightningCLI with the data's facts linked into the model, one folder per run, and one-line errors."""

from __future__ import annotations

import signal
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins.io import CheckpointIO

from metricloss_pl._compat import limit_waiting, make_room_for_linked_values
from metricloss_pl.callbacks import ConfusionMatrixPlot, HierarchyMetrics, PredictionWriter, RejectionThreshold
from metricloss_pl.callbacks.run_folder import run_folder, run_of
from metricloss_pl.checkpoints import AtomicCheckpointIO, import_paths, read_checkpoint, trusted_imports
from metricloss_pl.cli import processes
from metricloss_pl.cli.arguments import (
    check_options,
    has_own_config,
    name_of_run,
    named_in,
    option,
    option_names,
    options_of,
    prepare,
)
from metricloss_pl.cli.console import relative_path
from metricloss_pl.cli.errors import (
    constructor_errors,
    is_collective,
    lightning_refusals,
    lost_contact,
)
from metricloss_pl.cli.parser import Parser
from metricloss_pl.cli.progress import ExpectedTime, ProgressLines
from metricloss_pl.cli.record import RunRecord
from metricloss_pl.cli.results import SettingsLog, report_results
from metricloss_pl.cli.run_folder import LastCheckpoint, RunFolder, follow_moved_run
from metricloss_pl.cli.saved_config import SaveConfigAndSummary, drop_object_defaults
from metricloss_pl.cli.split import SplitRecord, choose_images
from metricloss_pl.cli.subcommands import DESCRIPTIONS
from metricloss_pl.cli.suggestions import find_mistake
from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import DEBUG_HELP, UserError, refusing, shell_command
from metricloss_pl.regimes import Classifier
from metricloss_pl.run_options import add_run_arguments, link_facts_of_data

__all__ = ["MetricLossCLI"]

_USAGE = {
    "fit": "(--config FILE | --resume RUN) [options]",
    "validate": "--ckpt_path FILE [options]",
    "test": "--ckpt_path FILE [options]",
    "predict": "--ckpt_path FILE --data.predict_dir FOLDER [options]",
}


class MetricLossCLI(LightningCLI):
    """LightningCLI for a `Classifier` on an `ImageDataModule`, to be subclassed like LightningCLI itself.

    The number of classes, their names, the number of image channels and a hierarchy of the classes are linked from the
    data into the model. A run lives in `<runs_dir>/<stem of the config>/version_<N>`.

    Args:
        model_class: Regime that `--model` names, or the base class of those that it may name.
        datamodule_class: Data module that `--data` names, or the base class of those that it may name.
        save_config_callback: Callback that saves the config of a run, a subclass of `SaveConfigAndSummary`.
        args: Arguments, the subcommand first. Default: those of the process.
        run: Whether to run the subcommand that `args` begin with; otherwise they have none, and model, data and Trainer
            are built as for `fit`.
        kwargs: Other arguments of LightningCLI. Model and data are always given by their class, which checkpoints name.
    """

    def __init__(
        self,
        model_class: type[Classifier] = Classifier,
        datamodule_class: type[ImageDataModule] = ImageDataModule,
        save_config_callback: type[SaveConfigCallback] | None = SaveConfigAndSummary,
        *,
        args: Sequence[str] | None = None,
        run: bool = True,
        **kwargs: Any,
    ) -> None:
        self.arguments = list(sys.argv[1:] if args is None else args)
        prepared = prepare(self.arguments) if run else prepare(["fit", *self.arguments])[1:]
        texts = {
            name: {"usage": f"{shell_command(name)} {usage}", "description": DESCRIPTIONS[name], "epilog": DEBUG_HELP}
            for name, usage in _USAGE.items()
            if name in self.subcommands()
        }
        defaults = {"seed_everything_default": 0, "parser_class": Parser, "parser_kwargs": texts}
        super().__init__(
            model_class,
            datamodule_class,
            save_config_callback,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=prepared,
            run=run,
            **{**defaults, "auto_configure_optimizers": False, **kwargs},
        )

    # ----------------------------------------------------------------------------------------------------- arguments

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands, each with the arguments of the Trainer's method that are no options."""
        fixed = {"weights_only", "verbose", "return_predictions"}
        return {name: skip | fixed for name, skip in LightningCLI.subcommands().items()}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run, then those of the Trainer, the model and the data, and the links among them."""
        add_run_arguments(parser)
        super().add_core_arguments_to_parser(parser)
        link_facts_of_data(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments, and put a checkpoint's settings of the model in place of those of the config."""
        has_config = has_own_config(self.arguments)
        self.ckpt_path = option(self.arguments, "--ckpt_path")
        self.trusted = named_in(self.arguments)
        try:
            with nullcontext() if has_config else self._limit_imports():
                self.config = parser.parse_args(args)  # type: ignore[arg-type]
        except (ArgumentError, UnicodeDecodeError) as error:
            if line := find_mistake([(name, value) for name, value, _ in options_of(args)]):  # type: ignore[arg-type]
                raise UserError(line) from error
            raise
        config = _subcommand_options(self.config)
        check_options(config, self.config.get("subcommand", "fit"))
        if has_config:
            self.trusted = import_paths(config.as_dict())
        self.ckpt_path = config.get("ckpt_path")
        self.checkpoint = None if self.ckpt_path is None else read_checkpoint(self.ckpt_path)
        if self.checkpoint is not None and config.get("resume") is not None:
            follow_moved_run(config, self.checkpoint, option_names(self.arguments))
        self.given = config.clone()
        if self.checkpoint is not None:
            self._take_settings_from_checkpoint(config, self.checkpoint)

    def _limit_imports(self) -> AbstractContextManager[None]:
        """Return the context in which settings that come with a checkpoint name only trusted classes."""
        if self.ckpt_path is None:
            return nullcontext()
        return trusted_imports(f"checkpoint {self.ckpt_path}", self.trusted, run=True)

    def _take_settings_from_checkpoint(self, config: Any, checkpoint: dict[str, Any]) -> None:
        """Let model and data be built as the checkpoint says."""
        subcommand, path = self.config.subcommand, str(self.ckpt_path)
        settings = dict(checkpoint["hyper_parameters"])
        settings.pop("_instantiator", None)
        trained = settings.pop("_class_path", None)
        if trained is None:
            raise UserError(f"--ckpt_path {path} was written outside the command line: load it from Python")
        if not import_paths(trained) & import_paths(config.model.class_path):
            names = [class_path.rpartition(".")[2] for class_path in (trained, config.model.class_path)]
            raise UserError(
                f"--ckpt_path {path} is a checkpoint of {names[0]} and the config asks for {names[1]}: give the config "
                "that it was trained with"
            )
        # Not by LightningCLI, which does it in a private method: were that renamed, the settings could name anything.
        config.ckpt_path = None
        with self._limit_imports():
            model = {"class_path": trained, "dict_kwargs": settings}
            self.config = self.parser.parse_object({subcommand: {"model": model}}, self.config)
        config = _subcommand_options(self.config)
        # These files of the config may be gone; their content is in the checkpoint or the run's folder.
        backbone = (config.model.get("init_args", {}).get("backbone") or {}).get("init_args", {})
        data = config.data.get("init_args", {})
        for block, name, value in (
            (backbone, "weights", None),
            (data, "split_file", None),
            (data, "classes", data.get("classes") or checkpoint["class_names"]),
        ):
            if name in block:
                block[name] = value

    # ------------------------------------------------------------------------------------------------------ the run

    def before_instantiate_classes(self) -> None:
        drop_object_defaults(_subcommand_options(self.config))
        make_room_for_linked_values(self)

    def instantiate_classes(self) -> None:
        """Build model, data and Trainer, and choose the images to evaluate."""
        with self._limit_imports(), constructor_errors():
            super().instantiate_classes()
        if self.checkpoint is not None:
            self.datamodule.split_file = self.given.data.get("init_args", {}).get("split_file")
            given, path = option_names(self.arguments), Path(str(self.ckpt_path))
            choose_images(self.datamodule, str(self.subcommand), given, self.checkpoint, path)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, (ConfusionMatrixPlot, PredictionWriter)):
                callback.command = "fit" if self.is_fit else shell_command(*self.arguments)
        if self.subcommand is not None:
            self.run_folder.attach(self.trainer)

    @property
    def is_fit(self) -> bool:
        """True for `fit`, and where objects are built without running a subcommand."""
        return self.subcommand in ("fit", None)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return the Trainer, with the callbacks of a run besides those of the config."""
        config = _subcommand_options(self.config_init)
        # Model and data are built. What is saved and reported is the config as the user gave it.
        self.given.seed_everything = config.seed_everything
        drop_object_defaults(self.given)
        if self.subcommand is not None:
            config.ckpt_path = self.ckpt_path
            self.config[self.subcommand] = self.given
        given = config.trainer
        callbacks = _as_list(given.callbacks)

        def lacks(kind: type) -> bool:
            return not any(isinstance(callback, kind) for callback in callbacks)

        tensorboard = self.subcommand != "predict" and given.logger in (None, True)
        if tensorboard or given.logger is None:
            kwargs["logger"] = False  # TensorBoard's comes when the folder is known
        if given.enable_progress_bar is not False and not sys.stdout.isatty() and lacks(ProgressBar):
            callbacks.append(ProgressLines())
        if self.is_fit and given.enable_progress_bar is not False:
            callbacks.append(ExpectedTime())
        if self.is_fit and given.logger not in (False, []):
            callbacks.append(LearningRateMonitor())
        if (self.is_fit or self.subcommand == "test") and lacks(HierarchyMetrics):
            callbacks.append(HierarchyMetrics())
        # `validate` changes a checkpoint on request alone, not because the run was trained with a threshold.
        if self.is_fit or (self.subcommand == "validate" and "--reject_quantile" in option_names(self.arguments)):
            callbacks += [RejectionThreshold(config.reject_quantile)] if lacks(RejectionThreshold) else []
        best = None
        if given.enable_checkpointing is not False:
            best = config.checkpoint
            callbacks += [best, LastCheckpoint(config.save_every_n_steps)]
        plugins = _as_list(given.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        limit_waiting(config.timeout_minutes)
        name = name_of_run(self.arguments) or self.given.model.class_path.rpartition(".")[2]
        path = run_of(self.ckpt_path) if self.ckpt_path else None
        self.run_folder = RunFolder(path, config.runs_dir, name, tensorboard)
        self.record = RunRecord(best)
        callbacks = [self.run_folder, *callbacks, processes.TerminateChildrenOnError(), self.record, SplitRecord()]
        self.settings_log = SettingsLog(self.given) if given.enable_autolog_hparams else None
        if self.settings_log is not None:
            callbacks.append(self.settings_log)
        kwargs |= {"callbacks": callbacks, "enable_autolog_hparams": False, "default_root_dir": config.runs_dir}
        with lightning_refusals("trainer"), refusing("lightning", (TypeError, ValueError), "trainer: {}"):
            trainer = super().instantiate_trainer(**kwargs)
        processes.settle_rank(trainer)
        return trainer

    def fit(self, model: Any, **kwargs: Any) -> None:
        """Train, and report a metric that `EarlyStopping` does not find or a lost process in one line."""
        if self.given.compile:
            model.backbone.compile()
        try:
            with refusing("lightning.pytorch.callbacks", RuntimeError):
                self.trainer.fit(model, weights_only=True, **kwargs)
        except RuntimeError as error:
            if is_collective(error) and processes.has_lost_a_process(self.trainer):
                raise UserError(lost_contact(self.trainer.global_rank)) from error
            raise

    def validate(self, model: Any, **kwargs: Any) -> Any:
        """Validate without Lightning's table of results, which the closing lines replace."""
        return self.trainer.validate(model, weights_only=True, verbose=False, **kwargs)

    def test(self, model: Any, **kwargs: Any) -> Any:
        """Test without Lightning's table of results, which the closing lines replace."""
        return self.trainer.test(model, weights_only=True, verbose=False, **kwargs)

    def predict(self, model: Any, **kwargs: Any) -> Any:
        """Predict into a file, not into memory."""
        return self.trainer.predict(model, weights_only=True, return_predictions=False, **kwargs)

    def after_fit(self) -> None:
        trainer = self.trainer
        if trainer.received_sigterm:
            raise SystemExit(128 + signal.SIGTERM)
        record = self.record
        record.take_over(trainer)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.run_folder.remove_if_empty()
            return
        if self.checkpoint is not None and record.training["steps"] <= self.checkpoint["global_step"]:
            length = "{epochs} epochs and {steps} steps".format(**record.training)
            raise UserError(
                f"nothing is left to train: {relative_path(run_folder(trainer))} has {length}; give more by "
                "--trainer.max_epochs or --trainer.max_steps"
            )
        metrics = dict(record.metrics)
        if self.given.test_after_fit:
            tested = self.test(self.model, datamodule=self.datamodule, ckpt_path=record.checkpoint or None)
            record.take_over(trainer)
            metrics |= tested[0] if tested else {}
        if self.settings_log is not None:
            self.settings_log.log_metrics(trainer, metrics)
        report_results(trainer, self.datamodule.class_names, record, self.given, self.arguments, metrics)

    def after_validate(self) -> None:
        self._finish_evaluation()

    def after_test(self) -> None:
        self._finish_evaluation()

    def _finish_evaluation(self) -> None:
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            if not metrics:
                raise UserError(f"{self.subcommand} has measured nothing: the set has no image")
            self.record.take_over(self.trainer)
            self.record.checkpoint = str(self.ckpt_path)
            names = self.datamodule.class_names
            report_results(self.trainer, names, self.record, self.given, self.arguments, metrics)

    def after_predict(self) -> None:
        if self.given.data.get("init_args", {}).get("predict_dir") is None and self.trainer.is_global_zero:
            print("these are the images of the test set: --data.predict_dir takes a folder of your own")
        self.record.take_over(self.trainer)
        self.run_folder.remove_if_empty()
        if self.trainer.is_global_zero and self.record.unreadable:
            # The others are predicted, and the exit status says that some are not.
            raise UserError(self.record.unreadable)


def _subcommand_options(config: Any) -> Any:
    """Return the options of the subcommand, or all where there is none."""
    return config.get(str(config.get("subcommand")), config)


def _as_list(given: Any) -> list[Any]:
    """Return the items of a setting that is one item, a list of them, or nothing."""
    return list(given) if isinstance(given, list) else [given] if given else []
