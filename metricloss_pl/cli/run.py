"""A run's folder: its place, the config and results in it, and what the screen says at begin and end."""

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only

from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import UserError
from metricloss_pl.files import replacing
from metricloss_pl.screen import print_rows, shell_command, short
from metricloss_pl.surroundings import versions

_RUN_FOLDER_VARIABLE = "METRICLOSS_RUN_FOLDER"
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


# ------------------------------------------------------------------------------------------------------------ folder


def reserve_folder(runs_dir: str, name: str) -> Path:
    """Creates ``runs_dir/name/version_N`` with the first free N, in the first process.

    The others write nothing; they learn the folder from the first one where it has started them.

    Raises:
        UserError: It can't be created.
    """
    parent = Path(runs_dir).absolute() / name
    if not is_first_process():
        return Path(os.environ.get(_RUN_FOLDER_VARIABLE, parent / "version_of_the_first_process"))
    for _ in range(100):
        taken = [int(number) for p in parent.glob("version_*") if (number := p.name.removeprefix("version_")).isdigit()]
        folder = parent / f"version_{max(taken, default=-1) + 1}"
        try:
            folder.mkdir(parents=True)  # taken from here on, also for a run started at the same moment
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"--runs_dir {runs_dir} can't hold a run ({error.strerror})") from error
        os.environ[_RUN_FOLDER_VARIABLE] = str(folder)
        return folder
    raise UserError(f"--runs_dir {runs_dir}: found no free version in {parent}")


def is_first_process() -> bool:
    """Whether this is rank 0 of all nodes: as torchrun, SLURM or Lightning's launcher says, or alone."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    rank = next((os.environ[name] for name in names if name in os.environ), "0")
    node = "0" if "RANK" in os.environ else os.environ.get("NODE_RANK", "0")
    return rank == node == "0"


def tidy_up(refused: bool) -> None:
    """Forget the reserved folder; remove it if its run never began, and the folders above that hold nothing else."""
    folder = os.environ.pop(_RUN_FOLDER_VARIABLE, None) if is_first_process() else None
    path = Path(folder) if folder else None
    if path and refused and not (path / "config.yaml").exists():
        shutil.rmtree(path, ignore_errors=True)  # what a logger may have begun
    for empty in (path, path.parent, path.parent.parent) if path else ():
        try:
            empty.rmdir()  # refuses a folder with something in it
        except OSError:
            if empty.exists():
                return


def run_of(checkpoint: str | Path) -> Path | None:
    """The run's folder that a checkpoint lies in, if it does."""
    folder = Path(checkpoint).absolute().parent.parent
    return folder if (folder / "config.yaml").is_file() else None


def version_of(folder: Path) -> int | str:
    """A run folder's version as TensorBoardLogger spells it: 3 for version_3."""
    number = folder.name.removeprefix("version_")
    return int(number) if number.isdigit() else folder.name


def limit_waiting(minutes: float) -> None:
    """How long a process waits for the others before it gives up; torch's own default is half an hour."""
    for name in StrategyRegistry.available_strategies():
        entry = StrategyRegistry[name]
        if issubclass(entry["strategy"], DDPStrategy):
            entry["init_params"]["timeout"] = timedelta(minutes=minutes)


# --------------------------------------------------------------------------------------------------------- callbacks


class RunBeginning(SaveConfigCallback):
    """Save the whole config and say what is about to be trained: in ``fit`` alone, once the training really begins."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Look for broken, double and unused images, the test's too. A refused run leaves no trace."""
        data = getattr(trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, ImageDataModule):
            data.check_files()
            data.warn_of_left_out()
            data.warn_of_duplicates()

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        config = self.config.clone()
        config.ckpt_path = config.resume = None  # what continued this run is no part of a run like it
        with replacing(Path(trainer.default_root_dir) / self.config_filename) as beside:
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
        an_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        few = "; few: lower --data.batch_size or raise --trainer.max_epochs" if total < _FEW_STEPS else ""
        size = f" of {_global_batch(data, trainer)} images" if isinstance(data, ImageDataModule) else ""
        rows.append(("training", f"{total} steps{size}, {an_epoch} an epoch{few}"))
        if isinstance(data, ImageDataModule) and data.has_validation:
            images = len(data.samples("val"))
            if images < _FEW_IMAGES:
                points = f"{100 / images:.0f} points"
                rows.append(("validation", f"{images} images; few: each makes {points} of what chooses the best epoch"))
        rows.append(("run", short(trainer.default_root_dir)))
        print_rows(rows)


def _global_batch(data: ImageDataModule, trainer: Trainer) -> int:
    """Images a step, of all processes and accumulated batches; a set smaller than a batch gives one of its size."""
    batch = min(data.batch_size * trainer.world_size, len(data.samples("train")))
    return batch * trainer.accumulate_grad_batches


class LastCheckpoint(ModelCheckpoint):
    """The newest state, for ``--resume``, with a place of its own in the checkpoint, beside any that a user adds.

    Lightning's own ``save_last`` is that of the best epoch.

    Args:
        folder: The run's.
        every_n_steps: Steps from one writing to the next. None: at the end of each epoch.
    """

    def __init__(self, folder: Path, every_n_steps: int | None = None) -> None:
        super().__init__(
            dirpath=folder / "checkpoints",
            filename="last",
            monitor=None,
            save_top_k=1,
            every_n_train_steps=every_n_steps,
            every_n_epochs=1 if every_n_steps is None else None,
            save_on_train_epoch_end=every_n_steps is None,
            enable_version_counter=False,
        )
        self.within_epochs = every_n_steps is not None

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        # From a state saved after an epoch's last step, Lightning would go on without that epoch's validation.
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args, **kwargs)

    @property
    def state_key(self) -> str:
        return "LastCheckpointWithinEpochs" if self.within_epochs else "LastCheckpoint"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        run = Path(trainer.default_root_dir)
        if isinstance(exception, KeyboardInterrupt) and trainer.is_global_zero and Path(self.best_model_path).is_file():
            again = shell_command("fit", "--resume", short(run))
            print(f"\nit goes on from {short(self.best_model_path)} with: {again}")


class EndTogether(Callback):
    """When the first process fails, end those that it has started, however they hang, once its message is out."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        processes = getattr(trainer.strategy.launcher, "procs", [])
        for process in processes:
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
