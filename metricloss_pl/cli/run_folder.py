"""A run's folder: reserved by the first process, known to the others, and found again from a checkpoint."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from metricloss_pl._compat import set_default_root_dir
from metricloss_pl.callbacks.best import callback_states, recorded_id, resumed_state
from metricloss_pl.callbacks.run_folder import RunFolderCallback
from metricloss_pl.errors import UserError

__all__ = ["CONFIG", "LAST", "RunFolder", "moved_from", "run_of", "settle_ranks", "tidy_up"]

CONFIG = "config.yaml"
LAST = "last.ckpt"
_CHECKPOINTS = "checkpoints"
_reserved: list[Path] = []  # by this process


class RunFolder(RunFolderCallback):
    """Folder of a run, the same in all processes.

    The first process, as the Trainer counts them, reserves it. The others learn it once they are connected: variables
    of the environment may be left over from another job.

    Args:
        path: Folder of a run that goes on, or is evaluated. None: a new one is reserved.
        tensorboard: Whether TensorBoard's files are written into it.
    """

    def __init__(self, path: Path | None, tensorboard: bool) -> None:
        self.run_folder = path
        self.tensorboard = tensorboard
        self.id = uuid4().hex

    def attach(self, trainer: Trainer, runs_dir: str, name: str) -> None:
        """Reserve the folder if this is the first process, and let the Trainer write into it.

        Args:
            trainer: Trainer of the run, which has not begun.
            runs_dir: Folder that holds the runs.
            name: Name of the run, the folder within `runs_dir`.

        Raises:
            UserError: The folder can't be created.
        """
        if self.run_folder is None and trainer.is_global_zero:
            self.run_folder = _reserve(runs_dir, name)
        self._lead(trainer)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the other processes; nothing that writes has begun in them."""
        path = trainer.strategy.broadcast(str(self.run_folder) if trainer.is_global_zero else "")
        if not trainer.is_global_zero:
            self.run_folder = Path(path)
        self._lead(trainer)
        if stage == "fit" and trainer.is_global_zero:
            for file in (self.run_folder or Path()).glob(f"{_CHECKPOINTS}/**/.*.part.ckpt"):
                file.unlink(missing_ok=True)  # left by a process that was killed while it wrote

    def _lead(self, trainer: Trainer) -> None:
        """Let the Trainer, its checkpoints and its TensorBoardLogger write into the folder."""
        folder = self.run_folder
        if folder is None:
            return
        set_default_root_dir(trainer, folder)
        for callback in trainer.checkpoint_callbacks:
            if getattr(callback, "dirpath", "") is None:
                callback.dirpath = str(folder / _CHECKPOINTS)  # type: ignore[attr-defined]
        if self.tensorboard and not trainer.loggers:
            dry_run = trainer.fast_dev_run  # type: ignore[attr-defined]
            where = (folder.parent.parent, folder.parent.name, _version(folder))
            trainer.logger = DummyLogger() if dry_run else TensorBoardLogger(*where)

    def state_dict(self) -> dict[str, Any]:
        return {"folder": str(self.run_folder), "id": self.id}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.id = state_dict["id"]  # it is the same run that goes on

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adapt what the checkpoint says of other checkpoints to where they are, and to those written after it."""
        states = checkpoint["callbacks"]
        run_id = recorded_id(states)
        for callback in trainer.checkpoint_callbacks:
            if not isinstance(callback, ModelCheckpoint) or callback.state_key not in states:
                continue
            state = states.pop(callback.state_key)
            if trainer.state.fn == TrainerFn.FITTING:  # an evaluation writes no checkpoint
                state = resumed_state(callback, state, run_id) if trainer.is_global_zero else None
                state = trainer.strategy.broadcast(state)
                states |= {callback.state_key: state} if state else {}


def tidy_up(refused: bool) -> None:
    """Remove the folders that were reserved and have nothing in them, and those above that hold nothing else.

    Args:
        refused: Whether a training was refused: if it has not begun, what it left goes, too.
    """
    while _reserved:
        folder = _reserved.pop()
        if refused and not (folder / CONFIG).exists():
            shutil.rmtree(folder, ignore_errors=True)  # what a logger may have begun
        for empty in (folder, folder.parent, folder.parent.parent):
            try:
                empty.rmdir()  # refuses a folder with something in it
            except OSError:
                if empty.exists():
                    break


def settle_ranks(trainer: Trainer) -> None:
    """Let the Trainer's ranks count, not what the environment holds, which may be left over from another job."""
    if trainer.world_size == 1 and not trainer.is_global_zero:  # DDP of one process, which reads the environment
        for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"):
            os.environ.pop(name, None)
        trainer.strategy.set_world_ranks()  # type: ignore[attr-defined]
    # Lightning takes it from the environment when it is imported.
    rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]


def run_of(checkpoint: str | Path) -> Path | None:
    """Return the folder of the run that has written a checkpoint.

    Args:
        checkpoint: Checkpoint file.

    Returns:
        The run that it lies in, below its `checkpoints`; else, where it lies as it was written, the one that it names,
        if that is still the same run; else None.
    """
    path = Path(checkpoint)
    for file in (path.absolute(), path.resolve()):
        for folder in file.parents:
            if folder.name == _CHECKPOINTS and (folder.parent / CONFIG).is_file():
                return folder.parent
    states = callback_states(path)
    places = [state.get("dirpath") for state in states.values()]
    written = any(Path(place) in path.resolve().parents for place in places if isinstance(place, str))
    named, run = states.get(RunFolder.__name__, {}).get("folder"), recorded_id(states)
    if not written or not isinstance(named, str) or run is None or not (Path(named) / CONFIG).is_file():
        return None
    same = recorded_id(callback_states(Path(named) / _CHECKPOINTS / LAST)) == run
    return Path(named) if same else None


def moved_from(checkpoint: dict[str, Any], folder: Path) -> Path | None:
    """Return the folder in which a run wrote a checkpoint, if the run was moved or copied since.

    Args:
        checkpoint: Content of the checkpoint.
        folder: Folder of the run, as it was found from the checkpoint's place.
    """
    before = Path(checkpoint["callbacks"].get(RunFolder.__name__, {}).get("folder", folder))
    return None if before.exists() and before.samefile(folder) else before


def _reserve(runs_dir: str, name: str) -> Path:
    """Create `runs_dir/name/version_N` with the first free N.

    Raises:
        UserError: It can't be created.
    """
    parent = Path(runs_dir).absolute() / name
    for _ in range(100):
        taken = [int(number) for p in parent.glob("version_*") if (number := p.name.removeprefix("version_")).isdigit()]
        folder = parent / f"version_{max(taken, default=-1) + 1}"
        try:
            folder.mkdir(parents=True)  # taken from here on, also for a run started at the same moment
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"--runs_dir {runs_dir} can't hold a run ({error.strerror})") from error
        _reserved.append(folder)
        return folder
    raise UserError(f"--runs_dir {runs_dir}: found no free version in {parent}")


def _version(folder: Path) -> int | str:
    """Return the version of a run's folder as TensorBoardLogger spells it: 3 for version_3."""
    number = folder.name.removeprefix("version_")
    return int(number) if number.isdigit() else folder.name
