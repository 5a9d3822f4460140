"""Decision between a user's mistake, which is one line, and a bug, which keeps its traceback."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from jsonargparse import add_instantiator
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.multiprocessing.spawn import ProcessRaisedException

from metricloss_pl.errors import UserError, cause_outside, causes_of, raised_in, reason, shell_command
from metricloss_pl.files import is_no_room, no_room

__all__ = [
    "constructor_errors",
    "format_user_error",
    "hint_of",
    "is_collective",
    "lightning_refusals",
    "lost_contact",
]

_LIBRARIES = ("lightning", "torch", "torchvision")
_SETTINGS = tuple(  # modules of Lightning that check settings once a run has begun
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
# Modules that read arguments. An error from elsewhere is a bug in a module that a setting has imported.
_READERS = ("argparse", "codecs", "enum", "importlib", "json", "jsonargparse", "metricloss_pl.files", "yaml")


def format_user_error(error: BaseException) -> str | None:
    """Return the message on a user's mistake as one line, or None for a bug, which keeps its traceback.

    A mistake is a `UserError`, an error of the argument parser, or an exception explicitly raised from one of them.
    Exceptions that were only being handled meanwhile do not count.
    """
    if isinstance(error, ProcessRaisedException):  # torch gives the traceback of a started process as text
        name, _, message = str(error).strip().splitlines()[-1].partition(": ")
        kinds: list[type[UserError]] = [UserError, *UserError.__subclasses__()]
        return message if name in [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds] else None
    causes = causes_of(error)
    mistakes: list[Exception] = []
    mistakes += [cause for cause in causes if isinstance(cause, UserError)][:1]
    if causes[-1].__traceback__ is None or raised_in(causes[-1], *_READERS):
        # The innermost error of nested parsers is the one about the setting itself.
        mistakes += [cause for cause in reversed(causes) if isinstance(cause, argparse.ArgumentError)]
    return " ".join(str(mistakes[0]).split()) if mistakes else None


def lost_contact(rank: int) -> str:
    """Return the message of a process that can't reach another one."""
    resume = shell_command("fit", "--resume", "runs/<config>/<version>")
    return (
        f"process {rank} lost contact with another one, which has died or hangs and may have printed its own message; "
        f"resume the run with: {resume}"
    )


def hint_of(error: BaseException) -> str | None:
    """Return a hint to print with a traceback if another process may be the cause, or None."""
    distributed = torch.distributed
    is_parallel = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    if _is_distributed(error) or (is_parallel and is_collective(error)):
        return "hint: this error may follow from that of another process; see its message above"
    return None


@contextmanager
def lightning_refusals(setting: str | None = None) -> Iterator[None]:
    """Turn Lightning's exceptions on settings into a `UserError`.

    Args:
        setting: Setting that the message begins with. None: a run has begun. Lightning then raises the same exception
            on bugs in a user's class, so the module that raises it decides.
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
        failed = cause_outside(error, "jsonargparse")
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


def is_collective(error: BaseException) -> bool:
    """Return whether an error may come from a collective operation, also one within a backward pass or DDP."""
    places = ("torch.distributed", "torch.nn.parallel.distributed", "torch.autograd")
    return _is_distributed(error) or (type(error) is RuntimeError and raised_in(error, *places))


def _is_distributed(error: BaseException) -> bool:
    """Return whether an error is of torch's own type for groups of processes."""
    return torch.distributed.is_available() and isinstance(error, torch.distributed.DistError)
