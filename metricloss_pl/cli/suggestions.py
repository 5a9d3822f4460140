"""Settings that a parser has refused: the class, setting or choice that does not exist, and those that do."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
import types
import typing
from argparse import ArgumentError
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from lightning.pytorch import Trainer

from metricloss_pl.callbacks import BestCheckpoint, PredictionWriter
from metricloss_pl.cli.errors import format_user_error
from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import UserError, reason
from metricloss_pl.regimes import Classifier

__all__ = ["find_mistake"]

_CONFIG = ("-c", "--config")
_BLOCKS: dict[str, type] = {"data": ImageDataModule, "model": Classifier}
_GROUPS: dict[str, type] = {"checkpoint": BestCheckpoint, "predictions": PredictionWriter, "trainer": Trainer}
_MOST_NAMES = 60
_MOST_DEPTH = 30

Tree = dict[str, Any]


def find_mistake(error: Exception, options: Iterable[tuple[str, str | None]]) -> str | None:
    """Return one line on the first name in a run's settings that does not exist, with those that do.

    Only names are looked at, and only in what a parser has refused: it says the rest itself.

    Args:
        error: The parser's, or that of reading a config.
        options: Names and values in their order, such as `("--config", "run.yaml")` and `("--model.head", "none")`.

    Raises:
        UserError: A config or a block that it names is missing or unreadable.
    """
    if isinstance(error, ArgumentError) and format_user_error(error) is None:
        return None
    tree: Tree = {}
    for name, value in options:
        if name in _CONFIG and value is not None:
            _merge(tree, _read_config(value))
        elif name.startswith("--") and value is not None:
            keys = [key for key in name[2:].removesuffix("+").split(".") if key not in ("init_args", "dict_kwargs")]
            given = _parse(value)
            given = [given] if name.endswith("+") and not isinstance(given, list) else given
            for key in reversed(keys):
                given = {key: given}
            _merge(tree, given)
    for name, base in _BLOCKS.items():
        if name in tree and (line := _check(name, tree[name], base)):
            return line
    for name, group in _GROUPS.items():
        if isinstance(tree.get(name), dict) and (line := _check_settings(name, group, tree[name])):
            return line
    return None


# ------------------------------------------------------------------------------------------------------ the settings


def _read_config(value: str) -> Any:
    """Return what a config says, a file or its text, with the blocks that it names."""
    if not value.endswith((".yaml", ".yml")):
        return _plain(_parse(value), Path.cwd())
    file = Path(value)
    content = _read(file, f"--config {value}")
    for name in (*_BLOCKS, *_GROUPS):
        block = content.get(name)
        if isinstance(block, str) and block.endswith((".yaml", ".yml")) and not (file.parent / block).is_file():
            raise UserError(
                f"{name}: {block}: there is no such file; a run file names its blocks relative to itself, such as "
                "configs/data/digits.yaml as data/digits.yaml from configs/"
            )
    return _plain(content, file.absolute().parent)


def _read(file: Path, source: str) -> Tree:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{source} can't be read: {reason(error)}") from error
    return dict(content) if isinstance(content, dict) else {}


def _parse(value: str) -> Any:
    parsed = _scalar(value)
    return parsed if isinstance(parsed, (dict, list)) else value


def _scalar(value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _plain(value: Any, folder: Path, depth: int = 0) -> Any:
    """Return settings without the levels that tell arguments from the class, and with files in place of their names."""
    if isinstance(value, str) and value.endswith((".yaml", ".yml")) and (folder / value).is_file():
        file = folder / value
        value, folder = _read(file, str(file)), file.parent
    if depth > _MOST_DEPTH:
        return None
    if isinstance(value, list):
        return [_plain(item, folder, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    plain = {str(key): _plain(item, folder, depth + 1) for key, item in value.items()}
    for level in ("init_args", "dict_kwargs"):
        if isinstance(inner := plain.pop(level, None), dict):
            plain |= inner
    return plain


def _merge(tree: Tree, given: Any) -> None:
    """Add settings to those before them; another class keeps nothing that it may not take."""
    if not isinstance(given, dict):
        return
    for key, value in _plain(given, Path.cwd()).items():
        known = tree.get(key)
        if isinstance(known, str) and isinstance(value, dict):
            known = tree[key] = {"class_path": known}
        if not isinstance(known, dict) or not isinstance(value, dict) or "class_path" in value:
            tree[key] = value
        else:
            _merge(known, value)


# --------------------------------------------------------------------------------------------------------- the check


class _Accepted(NamedTuple):
    """Classes, choices and other values that a type accepts."""

    classes: list[type]
    choices: list[Any]
    items: Any  # the type of a list's items
    factory: bool  # a class is called later, with arguments of its own first
    numbers: bool
    others: bool  # texts, or whatever else


def _accepted(annotation: Any) -> _Accepted:
    classes: list[type] = []
    choices: list[Any] = []
    items, factory, numbers, others = None, False, False, False
    waiting = [annotation]
    while waiting:
        part = waiting.pop()
        origin, arguments = typing.get_origin(part), typing.get_args(part)
        if origin in (typing.Union, types.UnionType):
            waiting += arguments
        elif origin is Literal:
            choices += arguments
        elif origin is Callable and arguments:
            waiting.append(arguments[1])
            factory = True
        elif inspect.isclass(origin) and issubclass(origin, Iterable) and not issubclass(origin, Mapping):
            items = arguments[0] if arguments else Any
        elif part in (bool, int, float):
            numbers = True
        elif not inspect.isclass(part) or issubclass(part, (str, Enum)) or _is_of_python(part):
            others = others or part is not types.NoneType  # such as a text that stands for a path or a time
        else:
            classes.append(part)
    return _Accepted(classes, choices, items, factory, numbers, others)


def _is_of_python(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in sys.stdlib_module_names


def _check(where: str, value: Any, annotation: Any) -> str | None:
    accepted = _accepted(annotation)
    if isinstance(value, list):
        if accepted.items is None and accepted.choices and not accepted.others:
            return f"{where} is {value}; it must be one of {_listed(accepted.choices)}, alone and not in a list"
        return _first(_check(where, item, accepted.items) for item in value) if accepted.items is not None else None
    if isinstance(value, dict):
        name = value.get("class_path")
        if not accepted.classes or not isinstance(name, str):
            return None
        if isinstance(cls := _find(name, accepted.classes), type):
            return _check_settings(where, cls, value, accepted.factory)
        return _no_class(where, name, accepted.classes) if cls is None else None
    parsed = _scalar(value) if isinstance(value, str) else value
    if accepted.others or parsed is None or (not isinstance(parsed, str) and (accepted.numbers or accepted.classes)):
        return None
    if accepted.items is not None and not accepted.classes:
        return f'{where} is {value}; it must be a list, as in --{where} "[{value}]"'
    if accepted.classes:
        return _no_class(where, value, accepted.classes) if _find(value, accepted.classes) is None else None
    if not accepted.choices or str(value) in map(str, accepted.choices):
        return None
    return f"{where} is {value}; it must be one of {_listed(accepted.choices)}"


def _check_settings(where: str, cls: type, settings: Tree, factory: bool = False) -> str | None:
    parameters = list(inspect.signature(cls).parameters.values())[factory:]
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    hints = _hints(cls)
    for name, value in settings.items():
        if name in ("class_path", "help"):
            continue
        if name not in known:
            if len(known) < len(parameters):  # it takes others
                continue
            return f"{where}: {cls.__name__} has no setting {name!r}{_nearest(name, known)}; it has {', '.join(known)}"
        if line := _check(f"{where}.{name}", value, hints.get(name, Any)):
            return line
    return None


def _hints(cls: type) -> dict[str, Any]:
    """Return the types of a class's arguments, as far as they can be told."""
    found: dict[str, Any] = {}
    for source in (cls, cls.__init__):  # type: ignore[misc]  # the fields of a dataclass are told by the class
        try:
            found |= typing.get_type_hints(source)
        except (NameError, TypeError, AttributeError):
            continue
    return found


def _find(name: str, bases: Sequence[type]) -> object | None:
    """Return the class or function of this name or import path; None: there is none, as far as modules are loaded."""
    if "." not in name:
        return next((cls for cls in _subclasses(bases) if cls.__name__ == name), None)
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None)


def _subclasses(bases: Sequence[type]) -> list[type]:
    """Return all that can be built, without private ones."""
    found: dict[type, None] = {}
    waiting = list(bases)
    while waiting:
        cls = waiting.pop()
        waiting += type.__subclasses__(cls)
        if not (inspect.isabstract(cls) or "._" in f"{cls.__module__}.{cls.__qualname__}"):
            found[cls] = None
    return list(found)


def _no_class(where: str, name: str, bases: Sequence[type]) -> str | None:
    module, _, short = name.rpartition(".")
    classes = _subclasses(bases)
    if len(classes) > _MOST_NAMES:
        classes = [cls for cls in classes if cls.__module__.startswith("metricloss_pl.")]
    available = {cls.__name__ for cls in classes if not cls.__module__.startswith("metricloss_pl.cli.")}
    place = ""
    if module:
        top = module.partition(".")[0]
        if top not in sys.modules and importlib.util.find_spec(top) is None:
            return f"{where} is {name}: there is no module {top} to import, from the folder that this was started in"
        if module not in sys.modules:  # the parser says why
            return None
        available = {key for key, value in vars(sys.modules[module]).items() if isinstance(value, type)}
        place = f" in {module}"
    names = sorted(available)
    shown = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
    return (
        f"{where}: there is no class {short}{place}{_nearest(short, names)}; available: {shown}; for one of yours give "
        "its path: module.Class"
    )


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1) or [one for one in known if one.lower() == name.lower()]
    return f": is it {near[0]}" if near else ""


def _listed(choices: Iterable[Any]) -> str:
    return ", ".join(map(repr, choices))


def _first(lines: Iterable[str | None]) -> str | None:
    return next((line for line in lines if line), None)
