"""Uses of private and undocumented names of dependencies, one small function each, with the reason.

Only two overrides of `_apply` stand with their classes, in `losses` and `metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from subprocess import Popen
from typing import TYPE_CHECKING, Any

from jsonargparse import set_parsing_settings
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.cli import LightningCLI
    from PIL import Image

__all__ = [
    "import_paths_limited_to",
    "is_in_resumed_epoch",
    "limit_waiting",
    "make_room_for_linked_values",
    "png_raw_mode",
    "resumed_position",
    "start_epoch_after_finished_one",
    "started_processes",
    "validates_after",
]


def _require(owner: object, *names: str) -> None:
    """Check that an object has private names, since setting one that is gone would do nothing.

    Raises:
        AttributeError: A name is gone.
    """
    for name in names:
        if not hasattr(owner, name):
            raise AttributeError(f"{owner} has no {name} in the installed version: take an older one")


@contextmanager
def import_paths_limited_to(paths: Iterable[str]) -> Iterator[list[str]]:
    """Limit the imports of parsers to these paths and those below; yield a list of the paths that they are denied.

    jsonargparse's policy is global, and public functions only add to it. Without the private entries it would limit
    later parsers of the process, too. Denials are recorded, since jsonargparse drops their errors within unions.

    Args:
        paths: Import paths of modules, classes and functions, as given and as defined.

    Raises:
        AttributeError: jsonargparse has no such policy, so nothing would be limited.
    """
    from jsonargparse import _common

    _require(_common, "parsing_settings", "denying_import_path_entry")
    names = ("import_path_verdicts", "import_paths_enforced")
    before = {name: _common.parsing_settings[name] for name in names}
    find_denial = _common.denying_import_path_entry
    denied: list[str] = []

    def note_denial(path: str) -> str | None:
        entry = find_denial(path)
        if entry is not None:
            denied.append(path)
        return entry

    _common.parsing_settings["import_path_verdicts"] = {}
    _common.denying_import_path_entry = note_denial
    try:
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=sorted(set(paths)))
        yield denied
    finally:
        _common.denying_import_path_entry = find_denial
        _common.parsing_settings.update(before)


def is_in_resumed_epoch(trainer: Trainer) -> bool:
    """Return whether the epoch that ends was resumed within it; only Lightning's loop knows it."""
    return bool(trainer.fit_loop.restarting)


def limit_waiting(minutes: float) -> None:
    """Limit how long the processes of a strategy given by name wait for each other; torch's default is half an hour.

    Lightning builds the strategy itself, from arguments in its registry's entries.
    """
    for name in StrategyRegistry.available_strategies():
        entry = StrategyRegistry[name]
        if issubclass(entry["strategy"], DDPStrategy):
            entry["init_params"]["timeout"] = timedelta(minutes=minutes)


def make_room_for_linked_values(cli: LightningCLI) -> None:
    """Add the places of values linked into the model to the config that LightningCLI notes in hyper-parameters.

    It notes them there in a private method, which fails where the model takes no backbone or has no other arguments.
    """
    _require(cli, "_dump_config")
    cli._dump_config()
    settings = cli.config_dump["model"].setdefault("init_args", {})
    if not isinstance(settings.get("backbone"), dict):
        settings["backbone"] = {}
    settings["backbone"].setdefault("init_args", {})


def png_raw_mode(image: Image.Image) -> str:
    """Return Pillow's name of the samples in a PNG file, such as "L;2" for gray of 2 bits, before it is loaded.

    Gray of 2 and 4 bits and color of 16 bits are loaded as 8 bits, and only the tiles of the decoder tell the depth.
    Return an empty string for other images and loaded ones.
    """
    tiles: Any = getattr(image, "tile", None)
    return str(tiles[0][3]) if image.format == "PNG" and tiles else ""


def started_processes(trainer: Trainer) -> list[Popen[bytes]]:
    """Return the DDP processes that this one has started, from an undocumented list of the launcher.

    Processes of a multiprocessing launcher are left out, since they end with their parent.
    """
    processes = getattr(trainer.strategy.launcher, "procs", [])
    return [process for process in processes if isinstance(process, Popen)]


def start_epoch_after_finished_one(trainer: Trainer) -> None:
    """Let a fit that resumes at the end of an epoch begin with the next epoch, also if `max_steps` is set.

    With `max_steps`, Lightning assumes that every checkpoint was saved within an epoch. It would enter the finished
    epoch again, which has no batch left, and count it twice. Only private names lead to the loop's own path for the end
    of an epoch. To be called in `on_train_start`.
    """
    loop = trainer.fit_loop
    epochs: Any = loop.epoch_progress.current
    if loop.restarting and epochs.ready == epochs.started == epochs.processed:
        _require(loop, "_restarting")
        loop._restarting = False  # the public setter is where `max_steps` counts
        loop.epoch_loop.restarting = False
        loop.reset()
        epochs.completed = epochs.processed


def resumed_position(trainer: Trainer, num_batches: int) -> tuple[int, int]:
    """Return the epoch that begins or is resumed, and how many of its batches the interrupted run has trained on.

    Lightning counts batches on from there, but fetches them from the beginning of the epoch. Only its loops, whose
    attributes are not documented, know the position.

    Args:
        trainer: Trainer in a fit.
        num_batches: Batches per epoch.
    """
    loop = trainer.fit_loop
    progress: Any = loop.epoch_progress.current
    epoch = int(progress.processed)  # trainer.current_epoch lags in a checkpoint of an epoch's end
    if not (loop.restarting and progress.ready > progress.processed):
        return epoch, 0
    done = loop.epoch_loop.batch_progress.current.ready
    limit = trainer.limit_train_batches
    in_epoch = min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)
    # If the epoch is over but not yet counted, workers begin to load the next one at once.
    return (epoch + 1, 0) if done >= in_epoch else (epoch, done)


def validates_after(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether a validation follows a training batch that is not the last one of its epoch.

    Callbacks come to know it only afterwards, and the batches between two validations have no documented name.
    """
    every: Any = trainer.val_check_batch
    seen = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
    return bool(every) and (seen + 1) % every == 0
