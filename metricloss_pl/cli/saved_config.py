"""Settings as text: defaults that a file can't hold are left to their classes."""

from __future__ import annotations

import pydoc
from collections.abc import Iterator
from enum import Enum
from typing import Any

from jsonargparse import ArgumentParser, Namespace

__all__ = ["drop_object_defaults"]


def drop_object_defaults(config: Namespace) -> None:
    """Remove the defaults of classes that are objects and not text, such as a device; their classes bring them again.

    Many an object has no text that gives it back, and would make the whole saved config unreadable.

    Args:
        config: The parsed config, changed in place.
    """
    for class_path, init_args in _classes(config):
        objects = {name: value for name, value in vars(init_args).items() if not all(map(_is_text, _leaves(value)))}
        if not objects:
            continue
        defaults = _defaults(class_path)
        for name, value in objects.items():
            own = list(_leaves(defaults.get(name)))
            found = list(_leaves(value))  # the parser copies containers, but not what is in them
            if len(own) == len(found) and all(a is b for a, b in zip(own, found, strict=True)):
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


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what is in a value, however deep; a class among it is looked at by itself."""
    if isinstance(value, Namespace) and "class_path" not in value:
        value = vars(value)
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _is_text(value: Any) -> bool:
    """Return whether a value within no other is written as it is."""
    return value is None or (isinstance(value, (bool, int, float, str, Namespace)) and not isinstance(value, Enum))


def _defaults(class_path: str) -> Namespace:
    """Return the defaults of a class, also those that it inherits through its keyword arguments."""
    parser, found = ArgumentParser(exit_on_error=False), pydoc.locate(class_path)
    add = parser.add_class_arguments if isinstance(found, type) else parser.add_function_arguments
    add(found, fail_untyped=False)  # type: ignore[arg-type]
    return parser.get_defaults()
