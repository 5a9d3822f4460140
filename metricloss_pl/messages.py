"""A user's mistake in one line: which errors are one, and what of them to say."""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from metricloss_pl import backbones, callbacks, data, mixing, regimes, schedules
from metricloss_pl.errors import UserError
from metricloss_pl.screen import shell_command

__all__ = ["message_of"]

# A ValueError out of these says no to a setting.
_REFUSING_MODULES = (
    "metricloss_pl.losses",
    "metricloss_pl.schedules",
    "torch.optim",
    "lightning.",
)

_PACKAGES = (regimes, data, backbones, callbacks, mixing, schedules)  # whose classes YAML may name alone

# What jsonargparse says where one of several words, or nothing, is asked for.
_CHOICE = re.compile(
    r'Parser key "(?P<name>[\w.]+)":(?: Does not validate [^:]*: \[typing\.Literal\[[^]]*\], <class \'NoneType\'>\] '
    r"Errors: -)? Expected a typing\.Literal\[(?P<words>[^]]*)\](?:\. Got value: | - Expected a <class 'NoneType'> "
    r"Given value type: <class '\w+'> Given value: )(?P<value>.+?)(?= - Expected a |$)"
)

_LIST = re.compile(
    r"""Parser key "(?P<name>[\w.]+)":.*? Expected a <class 'list'>(?:\. Got value:| .*Given value:) (?P<value>\S+)"""
)

# What gloo writes: where in its sources a wait ended, and for every later wait only that the connection is closed.
_SIGNS_OF_GLOO = ("/gloo/", "timeout caused pair closure", "Connection closed by peer")


def message_of(error: BaseException) -> str | None:
    """The line that tells the user what was wrong; None: no mistake of the user's, so the traceback is due."""
    if isinstance(error, (argparse.ArgumentError, UserError, MisconfigurationException)):
        return _one_line(str(error))
    causes = list(_causes(error))
    if any(_is_lost_contact(cause) for cause in causes):
        rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
        return (
            f"process {rank} lost contact with another one, which has died or hangs; what it said, if anything, is "
            "above. A run goes on with: "
            f"{shell_command('fit', '--resume')} runs/<config>/<version>"
        )
    if any("Expected more than 1 value per channel when training" in str(cause) for cause in causes):
        return (
            "a process has one image in a training batch, and batch normalisation needs two: raise data.batch_size, or "
            "give more images or fewer processes"
        )
    refusals = [cause for cause in causes if _is_refusal(cause)]
    return _one_line(str(refusals[-1])) if refusals else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, outermost first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_lost_contact(error: BaseException) -> bool:
    """Whether a collective operation failed: torch has types for it, but those of gloo come as plain errors."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS_OF_GLOO)
    )


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
    return where.startswith(_REFUSING_MODULES)


def _one_line(message: str) -> str:
    """The message on one line, without what jsonargparse says of the alternative None of an optional argument."""
    line = " ".join(message.split())
    if choice := _CHOICE.search(line):
        alone = ", alone and not in a list" if choice["value"].startswith("[") else ""
        return f"{choice['name']} is {choice['value']}; it must be one of {choice['words']}{alone}"
    if (many := _LIST.search(line)) and not many["value"].startswith("["):
        return f'{many["name"]} is {many["value"]}; it must be a list, as in --{many["name"]} "[{many["value"]}]"'
    line = re.sub(r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors: - ", "", line)
    line = re.sub(r" - Expected a <class 'NoneType'> Given value type: .*$", "", line)
    if block := re.search(r'Parser key "(\w+)": - Expected a path but (\S+\.ya?ml) either not accessible', line):
        return (
            f"{block[1]}: {block[2]}: there is no such file; a run file names its blocks relative to itself, such as "
            "configs/data/digits.yaml as data/digits.yaml from configs/"
        )
    return _with_suggestion(line)


def _with_suggestion(line: str) -> str:
    """The line in our words where a setting or a class is not known: with those that are."""
    if setting := re.search(
        r"given class_path '([\w.]+)': (?:(?!given class_path).)*Option '(\w+)' is not accepted", line
    ):
        module, _, name = setting[1].rpartition(".")
        known = list(inspect.signature(getattr(sys.modules.get(module), name, object)).parameters)
        return f"{name} has no setting {setting[2]!r}{_nearest(setting[2], known)}; it has {', '.join(known)}"
    if flag := re.search(r"unrecognized arguments: --trainer\.(\w+)", line):
        known = list(inspect.signature(Trainer).parameters)
        return f"trainer.{flag[1]}: the Trainer has no such setting{_nearest(flag[1], known)}"
    if unknown := re.search(r"Expected a dot import path string: (\w+)(?:$| - Not a valid subclass of )", line):
        known = [name for module in _PACKAGES for name in module.__all__]
        near = _nearest(unknown[1], known)
        return f"there is no class {unknown[1]}{near}; for one of yours give its path: module.Class"
    return line


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f": is it {near[0]}" if near else ""
