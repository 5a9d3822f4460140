"""The command line: LightningCLI with the data's facts linked into the model, one folder a run, and one-line errors."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

import metricloss_pl
from metricloss_pl import backbones, schedules  # noqa: F401  imported so that YAML may name their classes alone
from metricloss_pl.callbacks import PredictionWriter
from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import Classifier

__all__ = ["MetricLossCLI", "main"]

SUBCOMMANDS = ("fit", "validate", "test", "predict")
_RUN_FOLDER_VARIABLE = "METRICLOSS_RUN_FOLDER"


class RunConfigCallback(SaveConfigCallback):
    """Save the whole config in the run's folder: in ``fit`` alone, once the training really begins."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Not yet: a run that is refused, or does not fit the checkpoint it resumes, leaves what was there."""

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        config = self.config.clone()
        config.ckpt_path = config.resume = None  # what continued this run is no part of a run like it
        beside = folder / f".{self.config_filename}"
        self.parser.save(config, str(beside), skip_none=False, overwrite=True, multifile=False)
        os.replace(beside, folder / self.config_filename)


class LastCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint with a place of its own in the checkpoint, beside any that a user adds."""

    @property
    def state_key(self) -> str:
        return "LastCheckpoint"


class MetricLossCLI(LightningCLI):
    """LightningCLI for a :class:`~metricloss_pl.regimes.Classifier` on :class:`~metricloss_pl.data.ImageDataModule`.

    The class count, the class names and the number of image channels come from the data; a run lives in
    ``<runs_dir>/<stem of the config>/version_<N>``.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self.arguments = list(args)
        self.run_folder: Path | None = None
        strict = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            Classifier,
            ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunConfigCallback,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            parser_kwargs={**strict, **{name: dict(strict) for name in SUBCOMMANDS}},
            args=self.arguments,
        )

    # ----------------------------------------------------------------------------------------------------- arguments

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for fact in ("num_classes", "class_names"):
            parser.link_arguments(f"data.{fact}", f"model.init_args.{fact}", apply_on="instantiate")
        parser.link_arguments(
            "data.in_channels", "model.init_args.backbone.init_args.in_channels", apply_on="instantiate"
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/accuracy",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        parser.add_argument("--runs_dir", type=str, default="runs", help="Folder that holds a folder a run.")
        parser.add_argument(
            "--resume", type=str | None, default=None, help="fit: folder of a run to continue from its last checkpoint."
        )
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="fit: test the best checkpoint once at the end."
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(args)  # type: ignore[arg-type]
        config = self.config[self.config.subcommand]
        config.weights_only = True
        if "return_predictions" in config:
            config.return_predictions = False
        if config.ckpt_path is None and self.config.subcommand != "fit":
            raise UserError(
                f"{self.config.subcommand} needs a trained network: give --ckpt_path with a checkpoint's file"
            )
        if config.ckpt_path is not None:
            _check_checkpoint(config.ckpt_path, config.model.class_path, self.config.subcommand)

    # ------------------------------------------------------------------------------------------------------ the run

    def before_instantiate_classes(self) -> None:
        # Lightning notes linked values in a dump of the config, and fails where a class has no argument but the linked
        # one: its dump then has no init_args.
        self._dump_config()
        backbone = self.config_dump["model"].get("init_args", {}).get("backbone")
        if isinstance(backbone, dict):
            backbone.setdefault("init_args", {})

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.monitor and not self.datamodule.has_validation:
                callback.monitor, callback.save_top_k = None, 0  # the last checkpoint is the result

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand]
        given = config.trainer
        if given.default_root_dir is not None:
            raise UserError(f"trainer.default_root_dir is {given.default_root_dir}: --runs_dir says where a run lives")
        folder = self.run_folder = self._choose_run_folder()
        logs = self.subcommand != "predict" and given.logger in (None, True)
        if logs:
            kwargs["logger"] = TensorBoardLogger(folder.parent.parent, folder.parent.name, _version(folder))
        elif given.logger is None:
            kwargs["logger"] = False
        callbacks = given.callbacks or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        if given.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            callbacks.append(RichProgressBar())
        if self.subcommand == "fit" and given.logger is not False:
            callbacks.append(LearningRateMonitor())
        if given.enable_checkpointing is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")
        else:
            config.checkpoint.dirpath = config.checkpoint.dirpath or str(folder / "checkpoints")
            callbacks.append(_last_checkpoint(folder))
        kwargs["callbacks"] = callbacks
        kwargs["default_root_dir"] = str(folder)
        return super().instantiate_trainer(**kwargs)

    def _choose_run_folder(self) -> Path:
        """The folder of this run: named when resuming or where the checkpoint lies in one, else a new version."""
        config = self.config[self.subcommand]
        if config.ckpt_path and (run := _run_of(config.ckpt_path)):
            return run
        # The processes that Lightning starts for the other ranks must not choose a version of their own.
        if os.environ.get("LOCAL_RANK", "0") != "0" and _RUN_FOLDER_VARIABLE in os.environ:
            return Path(os.environ[_RUN_FOLDER_VARIABLE])
        files = config.get("config") or []
        stem = Path(str(files[-1])).stem if files else config.model.class_path.rpartition(".")[2]
        parent = Path(config.runs_dir).absolute() / stem
        for _ in range(100):
            taken = [int(name) for p in parent.glob("version_*") if (name := p.name.removeprefix("version_")).isdigit()]
            folder = parent / f"version_{max(taken, default=-1) + 1}"
            try:
                folder.mkdir(parents=True)  # taken from here on, also for a run started at the same moment
            except FileExistsError:
                continue
            except OSError as error:
                raise UserError(f"--runs_dir {config.runs_dir} can't hold a run ({error.strerror})") from error
            os.environ[_RUN_FOLDER_VARIABLE] = str(folder)
            return folder
        raise UserError(f"--runs_dir {config.runs_dir}: found no free version in {parent}")

    def before_fit(self) -> None:
        self._started = time.monotonic()

    def after_fit(self) -> None:
        seconds = time.monotonic() - self._started
        if self.trainer.received_sigterm:
            raise SystemExit(128 + signal.SIGTERM)
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        saved = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.best_model_path]
        chosen = next((c for c in saved if c.monitor), saved[-1] if saved else None)
        best, score, monitor = (
            (chosen.best_model_path, chosen.best_model_score, chosen.monitor) if chosen else ("", None, None)
        )
        tested = {}
        if self.config.fit.test_after_fit and best:
            # Lightning keeps what fit has logged in callback_metrics no longer than the next run.
            results = self.trainer.test(self.model, self.datamodule, ckpt_path=best, weights_only=True, verbose=False)
            tested = dict(results[0]) if results else {}
        self._write_result(seconds, monitor, score, tested)
        self._print_summary(seconds, best, monitor, score, tested)

    @rank_zero_only
    def _write_result(
        self, seconds: float, monitor: str | None, score: torch.Tensor | None, tested: dict[str, float]
    ) -> None:
        """Note in the run's folder what the run found, and how: one line of JSON."""
        import platform

        chosen = {monitor: score.item()} if monitor and score is not None else {}
        result = {
            "command": shlex.join(["python", "cli.py", *self.arguments]),
            "model": self.config.fit.model.class_path,
            "data": self.config.fit.data.class_path,
            "seed": self.config.fit.seed_everything,
            "epochs": self.trainer.current_epoch,
            "steps": self.trainer.global_step,
            "seconds": round(seconds, 1),
            "metrics": {**chosen, **tested},
            "versions": {
                "python": platform.python_version(),
                "metricloss_pl": metricloss_pl.__version__,
                **{name: version(name) for name in ("torch", "torchvision", "lightning")},
            },
            "hardware": torch.cuda.get_device_name() if self.trainer.strategy.root_device.type == "cuda" else "CPU",
            "processes": self.trainer.world_size,
            "precision": str(self.trainer.precision),
        }
        file = Path(self.trainer.default_root_dir) / "result.json"
        file.with_name(".result.json").write_text(json.dumps(result) + "\n")
        os.replace(file.with_name(".result.json"), file)

    @rank_zero_only
    def _print_summary(
        self, seconds: float, best: str, monitor: str | None, score: torch.Tensor | None, tested: dict[str, float]
    ) -> None:
        folder = Path(self.trainer.default_root_dir)
        rows = [("time", f"{seconds:.0f} s, {self.trainer.current_epoch} epochs, {self.trainer.global_step} steps")]
        if monitor and score is not None:
            rows.append((f"best {monitor}", f"{score.item():.4f}"))
        rows += [(name, f"{tested[name]:.4f}") for name in sorted(tested) if name.endswith("accuracy")]
        if best:
            rows.append(("checkpoint", _short(best)))
        if self.trainer.logger is not None:
            rows.append(("log", f"{_short(folder)}  (tensorboard --logdir {_short(folder.parent.parent)})"))
        if (folder / "figures").is_dir():
            rows.append(("figures", _short(folder / "figures")))
        width = max(len(name) for name, _ in rows)
        print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


# ------------------------------------------------------------------------------------------------------------ checks


def _check_checkpoint(path: str, class_path: str, subcommand: str) -> None:
    """Refuse what Lightning would run without a word or end in a traceback: words, torn files, another regime."""
    _check_is_file(path, subcommand)
    checkpoint = _read_checkpoint(path)
    trained = checkpoint["hyper_parameters"].get("_class_path")
    if trained is None:
        raise UserError(f"--ckpt_path {path} was written outside the command line: load it from Python")
    if trained != class_path and _loaded_class(trained) is not _loaded_class(class_path):
        raise UserError(
            f"--ckpt_path {path} is a checkpoint of {trained.rpartition('.')[2]} and the config asks for "
            f"{class_path.rpartition('.')[2]}: give the config that it was trained with"
        )


def _check_is_file(path: str, subcommand: str) -> None:
    if not Path(path).is_file():
        how = "name the run: fit --resume runs/<config>/<version>" if subcommand == "fit" else "give a file"
        raise UserError(f"--ckpt_path {path}: there is no such checkpoint file; {how}")


def _class_paths(value: Any) -> Iterator[str]:
    """Every class that the hyper-parameters of a checkpoint name."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else []):
        if key in ("class_path", "_class_path"):
            yield str(item)
        yield from _class_paths(item)


def _loaded_class(class_path: str) -> object:
    """The class of this path if its module is imported; what a file names is never imported for its sake."""
    module, _, name = class_path.rpartition(".")
    return getattr(sys.modules.get(module), name, class_path)


def _read_checkpoint(path: str) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn file can raise nearly anything
        raise UserError(
            f"--ckpt_path {path} can't be read ({type(error).__name__}): it is truncated, or no checkpoint"
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "hyper_parameters"} <= checkpoint.keys():
        raise UserError(f"--ckpt_path {path} holds no regime of metricloss_pl: give a file that `fit` has written")
    hparams, names = checkpoint["hyper_parameters"], checkpoint.get("class_names")
    if not isinstance(hparams, dict) or not isinstance(checkpoint["state_dict"], dict) or not isinstance(names, list):
        raise UserError(f"--ckpt_path {path} holds no regime of metricloss_pl: give a file that `fit` has written")
    for class_path in _class_paths(hparams):
        module = class_path.rpartition(".")[0]
        if module.partition(".")[0] not in ("metricloss_pl", "torch", "lightning") and module not in sys.modules:
            raise UserError(
                f"--ckpt_path {path} names {class_path}, which is not imported for a checkpoint's sake: give the "
                "--config that it was trained with too"
            )
    return checkpoint


def _run_of(checkpoint: str) -> Path | None:
    """The run's folder that a checkpoint lies in, if it does."""
    folder = Path(checkpoint).absolute().parent.parent
    return folder if (folder / "config.yaml").is_file() else None


def _resume(args: list[str]) -> list[str]:
    """``fit --resume RUN`` means RUN's config and its last checkpoint."""
    run, rest = _take_option(args, "--resume")
    if run is None:
        return args
    config, checkpoint = Path(run) / "config.yaml", Path(run) / "checkpoints" / "last.ckpt"
    for file in (config, checkpoint):
        if not file.is_file():
            raise UserError(f"--resume {run}: nothing to resume, {file} is missing; give a run's folder")
    return [rest[0], "--config", str(config), f"--resume={run}", f"--ckpt_path={checkpoint}", *rest[1:]]


def _complete_from_checkpoint(args: list[str]) -> list[str]:
    """Without a config, a checkpoint brings its own: its run's, or for unlabelled images what it holds itself."""
    has_config = any(arg in ("-c", "--config") or arg.startswith("--config=") for arg in args)
    path, _ = _take_option(args, "--ckpt_path")
    if has_config or path is None:
        return args
    _check_is_file(path, args[0])
    if args[0] != "predict" or _take_option(args, "--data.predict_dir")[0] is None:
        run = _run_of(path)
        if run is None and not any(arg.split("=")[0] == "--model" for arg in args):
            raise UserError(
                f"--ckpt_path {path} lies in no run's folder: give the --config that it was trained with too"
            )
        return [args[0], "--config", str(run / "config.yaml"), *args[1:]] if run else args
    checkpoint = _read_checkpoint(path)
    hparams = dict(checkpoint["hyper_parameters"])
    images = checkpoint.get("images")
    if "_class_path" not in hparams or images is None:
        raise UserError(f"--ckpt_path {path} was written outside the command line: load it from Python")
    model = {"class_path": hparams.pop("_class_path"), "init_args": hparams}
    for linked in ("_instantiator", "num_classes", "class_names"):
        hparams.pop(linked, None)
    hparams.get("backbone", {}).get("init_args", {}).pop("in_channels", None)
    data = {
        "class_path": "metricloss_pl.data.UnlabelledFolderDataModule",
        "init_args": {"class_names": checkpoint["class_names"], **images},
    }
    return [args[0], f"--model={json.dumps(model)}", f"--data={json.dumps(data)}", *args[1:]]


def _take_option(args: list[str], name: str) -> tuple[str | None, list[str]]:
    """The value of an option given as ``name value`` or ``name=value``, and the other arguments."""
    for i, arg in enumerate(args):
        if arg == name and i + 1 < len(args):
            return args[i + 1], args[:i] + args[i + 2 :]
        if arg.startswith(f"{name}="):
            return arg.removeprefix(f"{name}="), args[:i] + args[i + 1 :]
    return None, args


# ------------------------------------------------------------------------------------------------------------ errors


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, outermost first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_refusal(error: BaseException) -> bool:
    """Whether it says no to a setting: our own error, or a ValueError of the losses, optimizers or the Trainer."""
    if isinstance(error, (UserError, MisconfigurationException)):
        return True
    if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
        return True
    if not isinstance(error, (ValueError, RuntimeError)) or error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    where = str(frame.f_globals.get("__name__"))
    if isinstance(error, RuntimeError):
        return where == "lightning.pytorch.callbacks.early_stopping"
    return where.startswith(
        ("metricloss_pl.losses", "metricloss_pl.schedules", "torch.optim", "torch.nn.functional", "lightning.")
    )


def _innermost(error: BaseException) -> str:
    """The message that first said what is wrong: ours if there is one, else the deepest."""
    chain = list(_causes(error))
    ours = [cause for cause in chain if _is_refusal(cause)]
    return str((ours or chain)[-1])


def _one_line(message: str) -> str:
    """The message on one line, without what jsonargparse says of the alternative None of an optional argument."""
    line = " ".join(message.split())
    line = re.sub(r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: - ", "", line)
    return re.sub(r" - Expected a <class 'NoneType'> Given value type: .*$", "", line)


def _last_checkpoint(folder: Path) -> ModelCheckpoint:
    """Keep the newest state, for `--resume`; Lightning's own `save_last` is that of the best epoch."""
    return LastCheckpoint(
        dirpath=folder / "checkpoints",
        filename="last",
        monitor=None,
        save_top_k=1,
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


def _tidy_up(folder: str | None, refused: bool) -> None:
    """Remove the folder of a run that never began, and the folders above that hold nothing else."""
    path = Path(folder) if folder else None
    if path and refused and not (path / "config.yaml").exists():
        shutil.rmtree(path, ignore_errors=True)  # what a logger may have begun
    for empty in (path, path.parent, path.parent.parent) if path else ():
        try:
            empty.rmdir()  # refuses a folder with something in it
        except OSError:
            if empty.exists():
                return


def _version(folder: Path) -> int | str:
    """A run folder's version as TensorBoardLogger spells it: 3 for version_3."""
    number = folder.name.removeprefix("version_")
    return int(number) if number.isdigit() else folder.name


def _short(path: str | Path) -> str:
    """A path relative to the working folder where it lies inside."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line, as ``python cli.py`` does.

    Args:
        args: Arguments such as ``["fit", "--config", "configs/digits_cosine.yaml"]``; None: those of the process.

    Raises:
        SystemExit: With status 1 after a user's mistake, whose one line is on standard error.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if is_first := os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ.pop(_RUN_FOLDER_VARIABLE, None)
    line = ""
    try:
        if arguments[:1] == ["fit"]:
            arguments = _resume(arguments)
        elif arguments[:1] and arguments[0] in SUBCOMMANDS:
            arguments = _complete_from_checkpoint(arguments)
        MetricLossCLI(arguments)
    except (argparse.ArgumentError, UserError, MisconfigurationException) as error:
        line = _one_line(str(error))
    except Exception as error:
        if not any(_is_refusal(cause) for cause in _causes(error)):
            raise
        line = _one_line(_innermost(error))
    else:
        return
    finally:
        if is_first:
            _tidy_up(os.environ.get(_RUN_FOLDER_VARIABLE), refused=bool(line) and arguments[:1] == ["fit"])
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(1)
