"""Settings as text: what of a parsed config can be written to a file and read back."""

from __future__ import annotations

import pydoc
import warnings
from collections.abc import Iterator
from enum import Enum
from typing import Any

from jsonargparse import ArgumentParser, Namespace

__all__ = ["drop_unreadable_defaults"]


def drop_unreadable_defaults(config: Namespace) -> None:
    """Remove the values of a parsed config that its text could not give back; their classes bring them again.

    Such a value is a default that is an object, like the device of Lightning's `StochasticWeightAveraging`, since
    whatever a user has given was text before. Written as text it would make the whole config unreadable.

    Args:
        config: The config, changed in place.
    """
    for class_path, init_args in _classes(config):
        for name, value in list(vars(init_args).items()):
            if not _is_text(value) and not _is_read_back(class_path, name, init_args):
                del init_args[name]


def _classes(value: Any) -> Iterator[tuple[str, Namespace]]:
    """Yield the class path and the arguments of every class that a config names."""
    if isinstance(value, Namespace):
        if isinstance(init_args := value.get("init_args"), Namespace) and "class_path" in value:
            yield value.class_path, init_args
        value = list(vars(value).values())
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _classes(item)


def _is_text(value: Any) -> bool:
    """Return whether a value is written as it is; a class among it is looked at by itself."""
    if isinstance(value, Namespace):
        return "class_path" in value or all(_is_text(item) for item in vars(value).values())
    if isinstance(value, dict):
        return all(_is_text(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_text(item) for item in value)
    return value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum))


def _is_read_back(class_path: str, name: str, init_args: Namespace) -> bool:
    """Return whether a parser of this one argument writes and reads its value without a change."""
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(pydoc.locate(class_path), skip=set(vars(init_args)) - {name}, fail_untyped=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text = parser.dump(Namespace({name: init_args[name]}), skip_validation=True)
        return bool(parser.parse_string(text)[name] == init_args[name])
    except Exception:
        return False
