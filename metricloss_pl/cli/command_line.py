"""Command line: LightningCLI with the data's facts linked into the model, one folder per run, and one-line errors."""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from metricloss_pl._compat import dumped_config
from metricloss_pl.callbacks import ConfusionMatrixPlot, HierarchyMetrics, PredictionWriter
from metricloss_pl.callbacks.run_folder import run_folder
from metricloss_pl.checkpoints import AtomicCheckpointIO, import_paths, is_trusted_run, read_checkpoint, trusted_imports
from metricloss_pl.cli import run
from metricloss_pl.cli.arguments import (
    SUBCOMMANDS,
    has_own_config,
    name_of_run,
    named_in,
    option_names,
    options_of,
    prepare,
)
from metricloss_pl.cli.compare import compare
from metricloss_pl.cli.console import print_table, relative_path
from metricloss_pl.cli.errors import (
    constructor_errors,
    format_user_error,
    hint_of,
    is_of_collective,
    lightning_refusals,
    lost_contact,
)
from metricloss_pl.cli.figure import draw_figure
from metricloss_pl.cli.hierarchy import show_hierarchy
from metricloss_pl.cli.parser import Parser
from metricloss_pl.cli.program import DESCRIPTIONS
from metricloss_pl.cli.progress import ProgressLines
from metricloss_pl.cli.report import show_report
from metricloss_pl.cli.run_folder import CONFIG, RunFolder, moved_from, run_of, settle_ranks, tidy_up
from metricloss_pl.cli.saved_config import drop_object_defaults
from metricloss_pl.cli.settings_log import SettingsLog
from metricloss_pl.cli.split import SplitRecord, choose_images
from metricloss_pl.cli.suggestions import find_mistake
from metricloss_pl.data import ImageDataModule
from metricloss_pl.data.base import SET_NAMES
from metricloss_pl.errors import DEBUG_HELP, UserError, is_debugging, plural, raised_in, refusing, shell_command
from metricloss_pl.files import stem_of_result
from metricloss_pl.regimes import Classifier
from metricloss_pl.run_files import add_run_arguments, check_settings, link_facts_of_data

__all__ = ["MetricLossCLI", "main"]

_MOST_PROCESSES = 8  # on fewer CPU cores than that, to try things out
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
        save_config_callback: type[SaveConfigCallback] | None = run.SaveConfigAndSummary,
        *,
        args: Sequence[str] | None = None,
        run: bool = True,
        **kwargs: Any,
    ) -> None:
        self.arguments = list(sys.argv[1:] if args is None else args)
        prepared = prepare(self.arguments) if run else prepare(["fit", *self.arguments])[1:]
        ours: dict[str, Any] = {
            "seed_everything_default": 0,
            "parser_class": Parser,
            "parser_kwargs": {
                name: {
                    "usage": f"{shell_command(name)} {_USAGE[name]}",
                    "description": DESCRIPTIONS[name],
                    "epilog": DEBUG_HELP,
                }
                for name in SUBCOMMANDS
            },
            "auto_configure_optimizers": False,
        }
        with ExitStack() as self.limits:  # of imports for a checkpoint's sake, until all is built
            super().__init__(
                model_class,
                datamodule_class,
                save_config_callback,
                subclass_mode_model=True,
                subclass_mode_data=True,
                args=prepared,
                run=run,
                **{**ours, **kwargs},
            )

    # ----------------------------------------------------------------------------------------------------- arguments

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of a run, then those of the Trainer, the model and the data, and the links among them."""
        add_run_arguments(parser)
        super().add_core_arguments_to_parser(parser)
        link_facts_of_data(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = self._parse(parser, args)
        config = _of_subcommand(self.config)
        for name, value in (
            ("weights_only", True),
            ("return_predictions", False),
            ("verbose", False),  # the closing lines say it
        ):
            if name in config:
                config[name] = value
        check_settings(config)
        _check_folder(config)
        for option, value in (
            ("save_every_n_steps", config.save_every_n_steps),
            ("timeout_minutes", config.timeout_minutes),
        ):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{option} is {value}: it must be above 0 and finite")
        kept = getattr(_loaded_class(config.model.class_path), "kept_in_checkpoint", ())
        self.kept_in_checkpoint = {  # before a checkpoint's settings take their place
            name: value for name in kept if (value := config.model.get("init_args", {}).get(name)) is not None
        }
        self.checkpoint: dict[str, Any] | None = None
        subcommand = self.config.get("subcommand", "fit")
        if config.get("ckpt_path") is not None:
            self.checkpoint = _read_fitting_checkpoint(config.ckpt_path, config.model.class_path, subcommand)
            if subcommand == "fit":
                self._follow_moved_run(config, self.checkpoint)
            own = has_own_config(self.arguments)
            others = import_paths(config.as_dict()) if own else named_in(self.arguments)
            self.limits.enter_context(trusted_imports(f"checkpoint {config.ckpt_path}", others, run=True))
        elif subcommand != "fit":
            raise UserError(f"{subcommand} needs a trained network: give --ckpt_path with a checkpoint's file")

    def _follow_moved_run(self, config: Any, checkpoint: dict[str, Any]) -> None:
        """Let a run that was moved or copied write none of the checkpoints of the one that it is a copy of."""
        folder = run_of(config.ckpt_path)
        before = None if folder is None else moved_from(checkpoint, folder)
        if folder is None or before is None:
            return
        given = option_names(self.arguments)
        blocks = [] if "--checkpoint.dirpath" in given else [config.get("checkpoint")]
        if not any(name.startswith("--trainer.callbacks") for name in given):
            blocks += [callback.get("init_args") for callback in _as_list(config.trainer.callbacks)]
        for block in blocks:
            if not block or (dirpath := block.get("dirpath")) is None:
                continue
            path = Path(os.path.abspath(dirpath))
            if "://" not in dirpath and path.is_relative_to(before):
                block.dirpath = str(folder / path.relative_to(before))
            elif not path.is_relative_to(folder):
                block.dirpath = None
                rank_zero_warn(
                    f"{relative_path(folder)} was moved or copied from {before}: checkpoints are written into it, and "
                    f"no "
                    f"longer into {dirpath}; --checkpoint.dirpath names another folder"
                )

    def _parse(self, parser: LightningArgumentParser, args: Any) -> Any:
        """Parse the arguments; names that do not exist are told with those that do."""
        limits: AbstractContextManager[None] = nullcontext()
        options = [(name, value) for name, value, _ in options_of(args)]
        checkpoint = dict(options).get("--ckpt_path")
        if checkpoint is not None and not has_own_config(self.arguments):
            others = named_in(self.arguments)
            limits = trusted_imports(f"checkpoint {checkpoint}", others, run=True)
        try:
            with limits:
                return parser.parse_args(args)
        except (ArgumentError, UnicodeDecodeError) as error:
            if line := find_mistake(options):
                raise UserError(line) from error
            raise

    # ------------------------------------------------------------------------------------------------------ the run

    def before_instantiate_classes(self) -> None:
        drop_object_defaults(_of_subcommand(self.config))
        # Lightning notes linked values in a dump of the config, and fails where a class has no argument but the linked
        # one, or the regime no backbone: there is then no place for them.
        settings = dumped_config(self)["model"].setdefault("init_args", {})
        if not isinstance(settings.get("backbone"), dict):
            settings["backbone"] = {}
        settings["backbone"].setdefault("init_args", {})

    def instantiate_classes(self) -> None:
        config = _of_subcommand(self.config)
        init_args, data_args = config.model.get("init_args", {}), config.data.get("init_args", {})
        with ExitStack() as restored:
            if self.checkpoint is not None:
                # What the checkpoint or the run's folder holds; the config goes on naming files that may be gone.
                if (backbone := (init_args.get("backbone") or {}).get("init_args")) and backbone.get("weights"):
                    restored.enter_context(_replaced(backbone, "weights", None))
                if data_args.get("classes", ()) is None:
                    restored.enter_context(_replaced(data_args, "classes", self.checkpoint["class_names"]))
                named_split = data_args.get("split_file")
                if named_split is not None:
                    restored.enter_context(_replaced(data_args, "split_file", None))
            with constructor_errors():
                super().instantiate_classes()
        self.limits.close()
        if self.checkpoint is not None:
            if named_split is not None:
                self.datamodule.split_file = named_split
            given, path = option_names(self.arguments), Path(config.ckpt_path)
            choose_images(self.datamodule, str(self.subcommand), given, self.checkpoint, path)
        for name, value in self.kept_in_checkpoint.items():
            init_args[name] = value
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, (ConfusionMatrixPlot, PredictionWriter)):
                callback.command = "fit" if self.subcommand in ("fit", None) else shell_command(*self.arguments)
        for callback in self.trainer.checkpoint_callbacks:
            if self.datamodule.has_validation or not isinstance(callback, ModelCheckpoint):
                continue
            if (callback.monitor or "").startswith("val/"):
                callback.monitor, callback.save_top_k = None, 0  # the last checkpoint is the result

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = _of_subcommand(self.config_init)
        fits = self.subcommand in ("fit", None)
        given = config.trainer
        path = run_of(config.ckpt_path) if config.get("ckpt_path") else None
        tensorboard = self.subcommand != "predict" and given.logger in (None, True)
        self.run_folder = RunFolder(path, tensorboard)
        if tensorboard or given.logger is None:
            kwargs["logger"] = False  # TensorBoard's comes when the folder is known
        callbacks = _as_list(given.callbacks)
        has_bar = sys.stdout.isatty() or any(isinstance(callback, ProgressBar) for callback in callbacks)
        if given.enable_progress_bar is not False and not has_bar:
            callbacks.append(ProgressLines())
        if fits and given.logger not in (False, []):
            callbacks.append(LearningRateMonitor())
        if (fits or self.subcommand == "test") and not any(isinstance(c, HierarchyMetrics) for c in callbacks):
            callbacks.append(HierarchyMetrics())
        best = None
        if given.enable_checkpointing is not False:
            best = config.checkpoint
            callbacks += [best, run.LastCheckpoint(config.save_every_n_steps)]
        plugins = _as_list(given.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        run.limit_waiting(config.timeout_minutes)
        timers = [callback for callback in callbacks if isinstance(callback, Timer)]
        if timers and given.max_time is not None:
            raise UserError("trainer.max_time and a Timer both limit the time: leave one of them out")
        # In the checkpoints too, so that a resumed run counts on.
        with lightning_refusals("trainer.max_time"):
            timer = timers[0] if timers else Timer(given.max_time)
        ours = [run.TerminateChildrenOnError()] if timers else [timer, run.TerminateChildrenOnError()]
        self.record = run.RunRecord(timer, best)
        kwargs["callbacks"] = [self.run_folder, *callbacks, *ours, self.record, SplitRecord()]
        self.settings_log = SettingsLog(_of_subcommand(self.config)) if given.enable_autolog_hparams else None
        if self.settings_log is not None:
            kwargs["callbacks"].append(self.settings_log)
            kwargs["enable_autolog_hparams"] = False  # it is done by that callback
        with lightning_refusals("trainer"), refusing("lightning", (TypeError, ValueError), "trainer: {}"):
            trainer = super().instantiate_trainer(**kwargs)
        settle_ranks(trainer)
        processes, cores = trainer.num_devices, os.cpu_count() or 1
        if isinstance(trainer.accelerator, CPUAccelerator) and processes > max(cores, _MOST_PROCESSES):
            raise UserError(f"trainer.devices is {processes}, and there are {cores} CPU cores: give at most as many")
        name = name_of_run(self.arguments) or _of_subcommand(self.config).model.class_path.rpartition(".")[2]
        with lightning_refusals("trainer"):  # such as a logger whose package is missing
            self.run_folder.attach(trainer, config.runs_dir, name)
        return trainer

    def fit(self, model: Any, **kwargs: Any) -> None:
        """Run the Trainer's method of this name; what it says of a setting is the user's mistake."""
        with lightning_refusals():
            try:
                self.trainer.fit(model, **kwargs)
            except RuntimeError as error:
                if raised_in(error, "lightning.pytorch.callbacks.early_stopping"):
                    self._check_monitors(error)
                if is_of_collective(error) and run.has_lost_a_process(self.trainer):
                    raise UserError(lost_contact(self.trainer.global_rank)) from error
                raise

    def _check_monitors(self, error: Exception) -> None:
        known = self.trainer.callback_metrics
        for callback in self.trainer.early_stopping_callbacks:
            if isinstance(callback, EarlyStopping) and callback.monitor not in known:
                raise UserError(
                    f"EarlyStopping watches {callback.monitor!r}, which is not measured; there are {', '.join(known)}"
                ) from error

    def validate(self, model: Any, **kwargs: Any) -> Any:
        """Run the Trainer's method of this name."""
        with lightning_refusals():
            return self.trainer.validate(model, **kwargs)

    def test(self, model: Any, **kwargs: Any) -> Any:
        """Run the Trainer's method of this name."""
        with lightning_refusals():
            return self.trainer.test(model, **kwargs)

    def predict(self, model: Any, **kwargs: Any) -> Any:
        """Run the Trainer's method of this name."""
        with lightning_refusals():
            return self.trainer.predict(model, **kwargs)

    def before_fit(self) -> None:
        if self.config.fit.compile:
            self.model.backbone.compile()
        if self.checkpoint is None:
            return
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # it goes on there
        # current_epoch lags in a checkpoint that an epoch's end has written.
        epochs = self.checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        steps = self.checkpoint["global_step"]
        most_epochs, most_steps = self.trainer.max_epochs, self.trainer.max_steps
        # Lightning adds an epoch without training, in which batch norms meet the averaged weights.
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        added = any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks)
        for done, most, flag in ((epochs - added, most_epochs, "max_epochs"), (steps, most_steps, "max_steps")):
            if most is not None and 0 <= most <= done:
                raise UserError(
                    f"nothing is left to train: {relative_path(run_folder(self.trainer))} has {epochs} epochs and "
                    f"{steps} steps behind it; give --trainer.{flag} more than {most}"
                )

    def after_fit(self) -> None:
        if self.trainer.received_sigterm:
            raise SystemExit(128 + signal.SIGTERM)
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        facts = self.record.facts(self.trainer)
        metrics = {f"best {name}": score for name, score in facts.pop("metrics").items()}
        checkpoint = facts.pop("checkpoint")
        if self.config.fit.test_after_fit:
            tested = self.test(
                self.model, datamodule=self.datamodule, ckpt_path=checkpoint or None, weights_only=True, verbose=False
            )
            metrics |= tested[0] if tested else {}
        if self.settings_log is not None:
            self.settings_log.log_metrics(self.trainer, metrics)
        self._finish(metrics, checkpoint, facts)

    def after_validate(self) -> None:
        self._finish_evaluation()

    def after_test(self) -> None:
        self._finish_evaluation()

    def after_predict(self) -> None:
        if self.config.predict.data.get("init_args", {}).get("predict_dir") is None and self.trainer.is_global_zero:
            print("these are the images of the test set: --data.predict_dir takes a folder of your own")
        if self.trainer.is_global_zero and (unreadable := self.record.facts(self.trainer)["unreadable"]):
            raise UserError(unreadable)  # the others are predicted, and the exit status says that some are not

    def _finish_evaluation(self) -> None:
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            if not metrics:
                raise UserError(f"{self.subcommand} has measured nothing: there is no image in that part of the data")
            self._finish(metrics, self.config[self.subcommand].ckpt_path)

    def _finish(self, metrics: Mapping[str, float], checkpoint: str, training: Mapping[str, Any] | None = None) -> None:
        """Print the closing lines, and write what was found, and how, as one line of JSON into the run's folder."""
        config, trainer = self.config[self.subcommand], self.trainer
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        facts: dict[str, Any] = {
            "command": shell_command(*self.arguments),
            "model": config.model.class_path,
            "data": config.data.class_path,
            "seed": config.seed_everything,
        }
        rows = []
        if training is not None:
            facts |= training
            rows.append(("time", "{seconds:.0f} s, {epochs} epochs, {steps} steps".format(**training)))
        elif isinstance(self.datamodule, ImageDataModule):
            part = {"validate": "val"}.get(str(self.subcommand), "test")
            labels, number = self.datamodule.samples(part).labels, self.datamodule.num_classes
            facts["images"] = len(labels)
            present = len(labels.unique())
            classes = f"{number} classes" if present == number else f"{present} of {number} classes"
            rows.append(("images", f"{plural(len(labels), SET_NAMES[part] + ' image')} of {classes}"))
        facts["metrics"] = {name.removeprefix("best "): value for name, value in metrics.items()}
        rows += [(name, f"{metrics[name]:.4f}") for name in sorted(metrics)]
        if checkpoint:
            facts["checkpoint"] = relative_path(checkpoint)
            rows.append(("checkpoint", relative_path(checkpoint)))
        if self.subcommand == "fit" and checkpoint and not any(name.startswith("test/") for name in metrics):
            named = config.as_dict()
            brought = is_trusted_run({block: named[block] for block in ("data", "model", "trainer")})
            found = [] if brought and run_of(checkpoint) == folder else ["--config", relative_path(folder / CONFIG)]
            rows.append(("test", shell_command("test", *found, "--ckpt_path", relative_path(checkpoint))))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                watch = shlex.join(["tensorboard", "--logdir", relative_path(logger.root_dir)])
                rows.append(("log", f"{relative_path(logger.log_dir)}  ({watch})"))
        if (folder / "figures").is_dir():
            rows.append(("figures", relative_path(folder / "figures")))
        file = folder / "result.json"
        if self.subcommand != "fit":
            file = folder / f"{stem_of_result(folder, str(self.subcommand), facts['command'])}.json"
            rows.append(("result", relative_path(file)))
        run.write_result(file, trainer, facts)
        print_table(rows)


def _of_subcommand(config: Any) -> Any:
    """Return the options of the subcommand, or all where there is none."""
    return config.get(str(config.get("subcommand")), config)


@contextmanager
def _replaced(settings: Any, name: str, value: Any) -> Iterator[None]:
    """Put a value in place of a setting for the time of the context."""
    before, settings[name] = settings[name], value
    try:
        yield
    finally:
        settings[name] = before


def _as_list(given: Any) -> list[Any]:
    """Return the items of a setting that is one item, a list of them, or nothing."""
    return list(given) if isinstance(given, list) else [given] if given else []


def _check_folder(config: Any) -> None:
    """Refuse another place than the run's folder, and a name in it that is taken."""
    if (folder := config.trainer.default_root_dir) is not None:
        raise UserError(f"trainer.default_root_dir is {folder}: --runs_dir says where a run lives")
    if config.get("checkpoint") and config.checkpoint.filename == "last":
        raise UserError("--checkpoint.filename is last: that is the newest state's name; another one is needed")


def _read_fitting_checkpoint(path: str, class_path: str, subcommand: str) -> dict[str, Any]:
    """The checkpoint, if it is one of this regime: Lightning would run another one without a word."""
    checkpoint = read_checkpoint(path)
    trained = checkpoint["hyper_parameters"].get("_class_path")
    if subcommand == "fit" and not ("loops" in checkpoint and checkpoint.get("optimizer_states")):
        raise UserError(
            f"--ckpt_path {path} holds weights alone, so that no training can go on from it: name it as the backbone's "
            "weights in a new run"
        )
    if trained is None:
        raise UserError(f"--ckpt_path {path} was written outside the command line: load it from Python")
    if trained != class_path and _loaded_class(trained) is not _loaded_class(class_path):
        raise UserError(
            f"--ckpt_path {path} is a checkpoint of {trained.rpartition('.')[2]} and the config asks for "
            f"{class_path.rpartition('.')[2]}: give the config that it was trained with"
        )
    return checkpoint


def _loaded_class(class_path: str) -> object:
    """The class of this path if its module is imported; what a file names is never imported for its sake."""
    module, _, name = class_path.rpartition(".")
    return getattr(sys.modules.get(module), name, class_path)


# What the command line does besides running a Trainer.
_FUNCTIONS: dict[str, Callable[..., None]] = {
    "figure": draw_figure,
    "hierarchy": show_hierarchy,
    "report": show_report,
}


def main(args: Sequence[str]) -> None:
    """Run a subcommand that needs Lightning; `metricloss_pl.cli.main` is the whole program.

    Args:
        args: Arguments, the subcommand first.

    Raises:
        SystemExit: With status 1 after a user's mistake, whose one line is on standard error; 143 after SIGTERM.
    """
    debug = is_debugging(args)
    arguments = [argument for argument in args if argument != "--debug"]
    refusal, failed = None, False
    try:
        with run.less_noise():
            function = _FUNCTIONS.get(arguments[0]) if arguments else None
            if arguments[:1] == ["compare"]:
                compare(arguments[1:])
            elif function is not None:
                parser = ArgumentParser(prog=shell_command(arguments[0]), exit_on_error=False, epilog=DEBUG_HELP)
                parser.add_function_arguments(function, as_positional=True)
                function(**parser.parse_args(arguments[1:]))
            else:
                MetricLossCLI(args=arguments)
    except SIGTERMException as error:
        raise SystemExit(128 + signal.SIGTERM) from error
    except BrokenPipeError:
        raise
    except Exception as error:
        failed = True
        refusal = None if debug else format_user_error(error)
        if refusal is None:
            if hint := hint_of(error):
                error.add_note(hint)
            raise
    finally:
        tidy_up(refused=failed and arguments[:1] == ["fit"])
    if refusal is not None:
        print(f"error: {refusal}", file=sys.stderr)
        distributed = torch.distributed
        is_first = not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0)
        raise SystemExit(1 if is_first else run.REFUSED)
