"""A user's mistake in one line, a bug with its traceback: which errors are which."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from jsonargparse import add_instantiator
from lightning.fabric.utilities.exceptions import MisconfigurationException

from metricloss_pl.errors import UserError, raised_in, reason, shell_command
from metricloss_pl.files import is_no_room, no_room

__all__ = [
    "constructor_errors",
    "format_user_error",
    "hint_of",
    "is_of_collective",
    "lightning_refusals",
    "lost_contact",
]

_LIBRARIES = ("lightning", "torch", "torchvision")
_SETTINGS = tuple(  # of Lightning: what looks at the user's settings once a run has begun
    f"lightning.pytorch.{place}"
    for place in (
        "accelerators",
        "callbacks",
        "loggers",
        "loops.fit_loop",
        "loops.training_epoch_loop",
        "plugins",
        "profilers",
        "strategies",
        "trainer.connectors.data_connector",
        "tuner",
    )
)
# What reads arguments; an error that came up elsewhere is one of a module that was imported.
_READERS = ("argparse", "codecs", "enum", "importlib", "json", "jsonargparse", "metricloss_pl.files", "yaml")


def format_user_error(error: BaseException) -> str | None:
    """Return the line that tells a user what was wrong, or None for a bug, whose traceback is due.

    A user's mistake is a `UserError`, an error of the argument parser, or what `raise ... from` ties to one of them.
    An exception that only came up while another one was handled does not count.
    """
    causes = list(_causes(error))
    mistakes: list[Exception] = []
    mistakes += [cause for cause in causes if isinstance(cause, UserError)][:1]
    if causes[-1].__traceback__ is None or raised_in(causes[-1], *_READERS):
        # The innermost error of nested parsers is the one about the setting itself.
        mistakes += [cause for cause in reversed(causes) if isinstance(cause, argparse.ArgumentError)]
    return " ".join(str(mistakes[0]).split()) if mistakes else None


def lost_contact(rank: int) -> str:
    """Return the line for the process of this rank, whose partner in a collective operation is gone."""
    resume = shell_command("fit", "--resume", "runs/<config>/<version>")
    return (
        f"process {rank} lost contact with another one, which has died or hangs; what it said, if anything, is above. "
        f"A run goes on with: {resume}"
    )


def hint_of(error: BaseException) -> str | None:
    """Return a line to go with a traceback, where another process may be the reason."""
    distributed = torch.distributed
    is_parallel = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    if _is_of_group(error) or (is_parallel and is_of_collective(error)):
        return (
            "hint: if another process has died or hangs, its own message is above, and this error only follows from it"
        )
    return None


@contextmanager
def lightning_refusals(setting: str | None = None) -> Iterator[None]:
    """Turn what Lightning raises on settings that it can't work with into a `UserError`.

    Args:
        setting: The setting in question, to begin the line with. None: a run has begun, in which Lightning refuses
            a bug of a user's class by the same exception, so that the place decides.
    """
    source = f"{setting}: " if setting else ""
    try:
        yield
    except MisconfigurationException as error:
        if setting is None and not raised_in(error, *_SETTINGS):
            raise
        raise UserError(f"{source}{reason(error)}") from error
    except ModuleNotFoundError as error:
        if not raised_in(error, *_LIBRARIES):
            raise
        raise UserError(f"{source}a package is not installed: {reason(error)}") from error
    except OSError as error:
        if not is_no_room(error):
            raise
        raise no_room(error.filename or "the run's folder", error) from error


class _ConstructorFailed(BaseException):
    """Carrier of a constructor's exception past `except Exception`."""


_T = TypeVar("_T")
_uncaught = ContextVar("_uncaught", default=False)


@contextmanager
def constructor_errors() -> Iterator[None]:
    """Let exceptions of constructors that jsonargparse calls come out as they were raised.

    For a value of several possible types jsonargparse tries each, catches any exception of a constructor, and ties only
    the first to its own; for a value of any type it drops the exception. A bug would lose its traceback.

    Raises:
        UserError: A library refuses the settings of its own class, or a package is missing.
    """
    failed: BaseException | None = None
    token = _uncaught.set(True)
    try:
        yield
    except _ConstructorFailed as carrier:
        failed = carrier.__cause__
    except ValueError as error:  # of a model or data, which Lightning's own instantiators build
        failed = next((cause for cause in _causes(error) if not raised_in(cause, "jsonargparse")), None)
        if failed in (error, None):
            raise
    finally:
        _uncaught.reset(token)
    if failed is not None:
        raise failed


def _build(class_type: type[_T], *args: Any, **kwargs: Any) -> _T:
    """Build an object for jsonargparse."""
    if not _uncaught.get():
        return class_type(*args, **kwargs)
    token = _uncaught.set(False)  # a constructor may handle the exceptions of others that it calls
    try:
        with lightning_refusals(class_type.__name__):
            try:
                return class_type(*args, **kwargs)
            except ValueError as error:
                if isinstance(error, UserError) or class_type.__module__.partition(".")[0] not in _LIBRARIES:
                    raise
                raise UserError(f"{class_type.__name__}: {reason(error)}") from error
    except Exception as error:
        raise _ConstructorFailed from error
    finally:
        _uncaught.reset(token)


add_instantiator(_build, object)  # for all classes without an instantiator of their own, which Lightning's have


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it was explicitly raised from, outermost first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def is_of_collective(error: BaseException) -> bool:
    """Return whether an error may be that of a collective operation, within a backward or DDP's forward, too."""
    places = ("torch.distributed", "torch.nn.parallel.distributed", "torch.autograd")
    return _is_of_group(error) or (type(error) is RuntimeError and raised_in(error, *places))


def _is_of_group(error: BaseException) -> bool:
    """Return whether an error is torch's own for a group of processes, also for one that never came together."""
    return torch.distributed.is_available() and isinstance(error, torch.distributed.DistError)
