"""Settings that a parser has refused: the class, setting or choice that does not exist, and those that do."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightning.pytorch import Trainer
from torch import Tensor

from metricloss_pl.callbacks import BestCheckpoint, PredictionWriter
from metricloss_pl.cli.console import relative_path
from metricloss_pl.config_files import CONFIG_FLAGS, is_yaml, parse_yaml, read_yaml
from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import is_it
from metricloss_pl.regimes import Classifier

__all__ = ["find_mistake"]

_GROUPS: dict[str, type] = {"checkpoint": BestCheckpoint, "predictions": PredictionWriter, "trainer": Trainer}
_BLOCKS: dict[str, type] = {"data": ImageDataModule, "model": Classifier, **_GROUPS}
_MAX_NAMES = 60
_NESTED = ("init_args", "dict_kwargs")


def find_mistake(options: Iterable[tuple[str, str | None]]) -> str | None:
    """Return one line on the first name in a run's settings that does not exist, with those that do.

    Only names, choices and numbers are checked, in settings that a parser has refused: it reports everything else.

    Args:
        options: Names and values in their order, such as `("--config", "run.yaml")` and `("--model.head", "none")`.

    Raises:
        UserError: A config or a block that it names is missing or unreadable.
    """
    search = _Search()
    for name, value in options:
        if value is None or not name.startswith("-"):
            continue
        file, settings = None, parse_yaml(value)
        if name in CONFIG_FLAGS:
            file = Path(value) if is_yaml(value) else None
            settings = settings if file is None else read_yaml(file, f"{name} {file}")
        else:
            for key in reversed(name[2:].removesuffix("+").split(".")):
                settings = settings if key in _NESTED else {key: settings}
        for block, kind in _BLOCKS.items() if isinstance(settings, dict) else ():
            if line := search.check(block, settings.get(block), kind, file):
                return line
    return None


class _Search:
    """Check of settings, in their order, against the classes that they name."""

    def __init__(self) -> None:
        self._classes: dict[str, type] = dict(_GROUPS)  # by setting, for later settings of the same object

    def check(self, setting: str, value: Any, annotation: Any, file: Path | None) -> str | None:
        """Return one line on the first name that does not exist, or None.

        Args:
            setting: Dotted name of the setting, such as `model.backbone`.
            value: Value as YAML gives it.
            annotation: Type of the setting.
            file: Config that holds the value. None: the command line.
        """
        accepted = _accepted(annotation)
        if is_yaml(value) and accepted.classes:
            block = file.parent / value if file else Path(value)
            return self.check(setting, read_yaml(block, f"{setting}: {block}"), annotation, block)
        if isinstance(value, list):
            return next(filter(None, (self.check(setting, item, annotation, file) for item in value)), None)
        if isinstance(value, dict):
            if line := self.check(setting, value.get("class_path"), annotation, file):
                return line
            return self._check_settings(setting, value, file)
        place = f"{setting} in {relative_path(file)}" if file else setting
        if right := _refused_number(value, annotation):
            return f"{place} is {value}; it must be {right}"
        if value is None or accepted.others:
            return None
        if not accepted.classes:
            if not accepted.choices or str(value) in map(str, accepted.choices):
                return None
            return f"{place} is {value}; it must be one of {', '.join(map(repr, accepted.choices))}"
        if not isinstance(value, str) or not all(map(str.isidentifier, value.split("."))):
            return None
        module, _, name = value.rpartition(".")
        classes = {cls for base in accepted.classes for cls in _subclasses(base)}
        found = [cls for cls in classes if name == cls.__name__ and not module]
        found += [cls for cls in [getattr(sys.modules.get(module), name, None)] if isinstance(cls, type)]
        self._classes.pop(setting, None)
        if found:
            self._classes[setting] = found[0]
        if found or module:  # the parser says why a path leads to no class
            return None
        names = sorted(cls.__name__ for cls in classes)
        if len(classes) > _MAX_NAMES:
            classes = {cls for cls in classes if cls.__module__.startswith("metricloss_pl.")}
        available = ", ".join(sorted(cls.__name__ for cls in classes))
        return (
            f"{place}: there is no class {name}{is_it(name, names)}; available: {available}; a class of your own is "
            "given by its path: module.Class"
        )

    def _check_settings(self, setting: str, settings: dict[str, Any], file: Path | None) -> str | None:
        cls = self._classes.get(setting)
        if cls is None:
            return None
        nested = [settings[level] for level in _NESTED if isinstance(settings.get(level), dict)]
        given = {name: value for group in (settings, *nested) for name, value in group.items()}
        known, accepts_others = _arguments(cls)
        hints = {name: hint for base in reversed(cls.__mro__) for name, hint in _hints(base).items()}
        for name, value in given.items():
            if name in ("class_path", "help", *_NESTED) or (name not in known and accepts_others):
                continue
            if name not in known:
                place = f"{setting} in {relative_path(file)}" if file else setting
                names = ", ".join(known)
                return f"{place}: {cls.__name__} has no setting {name!r}{is_it(name, known)}; it has {names}"
            if line := self.check(f"{setting}.{name}", value, hints.get(name, Any), file):
                return line
        return None


class _Accepted(NamedTuple):
    """Values of a type: objects of classes, choices, or anything else."""

    classes: list[type]
    choices: list[Any]
    others: bool


def _accepted(annotation: Any) -> _Accepted:
    """Return the classes and choices that a type names, also as items of a list or as results of a function."""
    classes: list[type] = []
    choices: list[Any] = []
    texts = numbers = False
    waiting = [annotation]
    while waiting:
        kind = waiting.pop()
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            waiting += arguments
        elif origin is Literal:
            choices += arguments
        elif origin is Callable and arguments:
            waiting.append(arguments[1])
        elif inspect.isclass(origin) and issubclass(origin, Iterable) and not issubclass(origin, Mapping):
            waiting += arguments[:1] or [Any]
        elif kind in (bool, int, float):
            numbers = True
        elif not inspect.isclass(kind) or issubclass(kind, (str, Enum, Tensor)) or _is_builtin(kind):
            texts = texts or kind is not types.NoneType
        else:
            classes.append(kind)
    return _Accepted(classes, choices, texts or (numbers and not classes))


def _refused_number(value: Any, annotation: Any) -> str | None:
    """Return the values that a setting of numbers accepts, perhaps with some words, if the value is none of them."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = set(typing.get_args(annotation) if is_union else [annotation])
    words = [word for kind in kinds if typing.get_origin(kind) is Literal for word in typing.get_args(kind)]
    kinds = {kind for kind in kinds if typing.get_origin(kind) is not Literal}
    if not {int, float} & kinds or not kinds <= {int, float, types.NoneType} or not isinstance(value, (str, float)):
        return None
    if value in words:
        return None
    try:
        number = float(value)  # YAML takes 1e-3 for text, and the parser for a number
    except ValueError:
        number = None
    if number is not None and (float in kinds or number.is_integer()):
        return None
    texts = ["a number" if float in kinds else "an integer", *words, *(["null"] if types.NoneType in kinds else [])]
    return " or ".join(texts)


def _is_builtin(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in sys.stdlib_module_names


def _arguments(cls: type) -> tuple[list[str], bool]:
    """Return the names of a constructor's arguments, and whether it accepts any others.

    Arguments of a base class count if `**kwargs` are passed on to it.
    """
    names: list[str] = []
    accepts_others = True
    for base in cls.__mro__:
        if base is object or "__init__" not in vars(base):
            continue
        arguments = list(inspect.signature(base).parameters.values())
        names += [a.name for a in arguments if a.kind not in (a.VAR_KEYWORD, a.VAR_POSITIONAL)]
        if not any(argument.kind is argument.VAR_KEYWORD for argument in arguments):
            accepts_others = False
            break
    return list(dict.fromkeys(names)), accepts_others


def _hints(cls: type) -> dict[str, Any]:
    """Return the types of a class's arguments, as far as they can be resolved."""
    found: dict[str, Any] = {}
    for source in (cls, cls.__init__):  # type: ignore[misc]  # a dataclass has them as its own
        try:
            found |= typing.get_type_hints(source)
        except (NameError, TypeError, AttributeError):
            continue
    return found


def _subclasses(cls: type) -> Iterator[type]:
    """Yield a class and its subclasses, without abstract and private ones and those of the command line."""
    is_internal = "._" in f"{cls.__module__}.{cls.__qualname__}" or cls.__module__.startswith("metricloss_pl.cli.")
    if not inspect.isabstract(cls) and not is_internal:
        yield cls
    subclasses: list[type] = type.__subclasses__(cls)
    for subclass in subclasses:
        yield from _subclasses(subclass)
