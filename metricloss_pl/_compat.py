"""Every use of a dependency's private names, one small function each, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

__all__ = [
    "HookedCLI",
    "constructor_errors",
    "dumped_config",
    "import_paths_limited_to",
    "set_default_root_dir",
    "start_epoch_after_finished_one",
    "started_processes",
    "subcommand_parser",
]


@contextmanager
def import_paths_limited_to(paths: Iterable[str]) -> Iterator[list[str]]:
    """Let parsers import only what is below these import paths; give the paths that they are denied.

    The policy is global in jsonargparse, and public functions can only add to it: without the private entries a second
    parser in the same process, or a user's own, would be limited too. A denial is not always tied to the error that
    follows from it, so that it is noted where it is made.

    Args:
        paths: Import paths of modules, classes and functions, as given and as defined.
    """
    from jsonargparse import _common

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


class _Raised(BaseException):
    """Carries an exception of a constructor past `except Exception`."""


class _Direct:
    """An instantiator whose exceptions pass through jsonargparse, but not through constructors that call it.

    Such as a regime's, which builds an optimizer to try it. No closure, since processes that are spawned pickle it.
    """

    def __init__(self, build: Callable[..., Any], state: SimpleNamespace) -> None:
        self.__wrapped__ = build  # whose signature jsonargparse looks at
        self.state = state

    def __call__(self, class_type: type, *args: Any, **kwargs: Any) -> Any:
        if self.state.off:
            return self.__wrapped__(class_type, *args, **kwargs)
        self.state.off = True
        try:
            return self.__wrapped__(class_type, *args, **kwargs)
        except Exception as error:
            raise _Raised from error
        finally:
            self.state.off = False


@contextmanager
def constructor_errors(parser: ArgumentParser, build: Callable[..., Any]) -> Iterator[None]:
    """Let exceptions of the constructors that a parser calls come out as they were raised.

    For a value of several possible types, jsonargparse tries each, catches any exception of a constructor, and ties
    only the first to its own; for a value of any type it drops the exception. A bug in a constructor would have no
    traceback, and a user's mistake not its message. The instantiators that a parser has are private, and those that
    `instantiate` takes since jsonargparse 4.53 are none of LightningCLI's, which calls it without any.

    Args:
        parser: The parser, about to instantiate.
        build: From a class and its arguments to an object, for the classes without an instantiator; no closure.
    """
    state = SimpleNamespace(off=False)
    given = {**parser._get_parser_instantiators(), (object, True): build}
    for (class_type, subclasses), instantiator in given.items():
        inner = instantiator.__wrapped__ if isinstance(instantiator, _Direct) else instantiator
        parser.add_instantiator(_Direct(inner, state), class_type, subclasses=subclasses)
    raised: BaseException | None = None
    try:
        yield
    except _Raised as carrier:
        raised = carrier.__cause__
    finally:
        state.off = True  # optimizers are built later
    if raised is not None:
        raise raised


class HookedCLI(LightningCLI):
    """LightningCLI with a hook for the reading of a checkpoint's settings, which it does in a private method.

    Without that method the settings would be read elsewhere, and name whatever they like.
    """

    def __init_subclass__(cls) -> None:
        if not hasattr(LightningCLI, "_parse_ckpt_path"):
            raise ImportError(
                "this version of lightning reads a checkpoint's settings in another way: take an older one"
            )

    def _parse_ckpt_path(self) -> None:
        with self.checkpoint_settings():
            super()._parse_ckpt_path()

    def checkpoint_settings(self) -> AbstractContextManager[None]:
        """Return the context in which the settings in a checkpoint are read and built."""
        return nullcontext()


def dumped_config(cli: LightningCLI) -> dict[str, Any]:
    """Return the dictionary in which LightningCLI notes linked values for the hyper-parameters; it is not public."""
    cli._dump_config()
    dumped: dict[str, Any] = cli.config_dump
    return dumped


def subcommand_parser(cli: LightningCLI) -> LightningArgumentParser:
    """Return the parser of the chosen subcommand, which LightningCLI gives by a private method alone."""
    return cli._parser(cli.subcommand)


def set_default_root_dir(trainer: Trainer, folder: Path) -> None:
    """Set the Trainer's `default_root_dir`, which is read-only once a Trainer exists.

    Only a Trainer knows whether this process is the first one, which creates the folder.
    """
    trainer._default_root_dir = str(folder)  # type: ignore[attr-defined]


def started_processes(trainer: Trainer) -> list[Popen[bytes]]:
    """Return the processes of DDP that this one has started; only the launcher, a private class, knows them.

    Those of a multiprocessing launcher end with their parent.
    """
    from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

    launcher = trainer.strategy.launcher
    return list(launcher.procs) if isinstance(launcher, _SubprocessScriptLauncher) else []


def start_epoch_after_finished_one(trainer: Trainer) -> None:
    """Let a fit that goes on from an epoch's end begin with the next epoch, also where `max_steps` is set.

    With `max_steps`, Lightning takes every checkpoint for one within an epoch: it would enter the finished epoch again,
    which has no batch left, and count it twice. Its own way to go on from an epoch's end is taken here, which only
    private names lead to. To be called in `on_train_start`.
    """
    loop = trainer.fit_loop
    epochs: Any = loop.epoch_progress.current
    if loop.restarting and epochs.ready == epochs.started == epochs.processed:
        loop._restarting = False  # the public setter is where `max_steps` counts
        loop.epoch_loop.restarting = False
        loop.reset()
        epochs.completed = epochs.processed
