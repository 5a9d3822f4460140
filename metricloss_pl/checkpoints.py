"""Checkpoints of the regimes: written whole or not at all, read without running code from the file."""

from __future__ import annotations

import inspect
import os
import sys
from argparse import ArgumentError
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

import metricloss_pl
from metricloss_pl._compat import import_paths_limited_to
from metricloss_pl.errors import UserError, raised_in, reason, shell_command
from metricloss_pl.files import UNREADABLE_PICKLE, replacing

__all__ = [
    "AtomicCheckpointIO",
    "check_finite",
    "constructor_arguments",
    "import_paths",
    "is_trusted_run",
    "load_trusted",
    "plain_settings",
    "read_checkpoint",
    "trusted_imports",
    "where_classes_differ",
    "where_states_differ",
    "with_given_classes",
]

# What the settings in a checkpoint may name, by the path that is given and by that of its definition; each stands for
# whatever is below it.
_TRUSTED = (
    *(f"metricloss_pl.{name}" for name in metricloss_pl.__all__ if name[0].isupper()),
    "metricloss_pl.backbones",
    "metricloss_pl.mixing",
    "metricloss_pl.optimizers.sgd",
    "metricloss_pl.regimes",
    "metricloss_pl.schedules",
    "lightning.pytorch.cli.ReduceLROnPlateau",
    "torch.optim",
)
_BASES = (
    ("metricloss_pl.data", "Augmentation"),
    ("metricloss_pl.data", "ImageDataModule"),
    ("metricloss_pl.mixing", "Mixing"),
    ("metricloss_pl.regimes", "Classifier"),
    ("metricloss_pl.schedules", "WholeTraining"),
)
_MOST_DEPTH = 100
_TRUSTED_IN_RUN = (  # beside a checkpoint, too
    "metricloss_pl.callbacks",
    "metricloss_pl.data",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target, flush to the disk, then replace: whenever the process dies, a whole file is there.

    A plugin for the Trainer. Lightning's own writes to the temporary folder and moves the file from there, which is not
    atomic from one file system to another. Addresses such as ``s3://...`` are left to it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(path) as beside, beside.open("wb") as file:
            noting = _NotingErrors(file)
            try:
                torch.save(checkpoint, cast(IO[bytes], noting))
            except RuntimeError as error:
                if noting.error is None:
                    raise
                raise noting.error from error
            file.flush()
            os.fsync(file.fileno())


class _NotingErrors:
    """A file to write to, with the error of a write that failed: torch raises another one in its place."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a regime's checkpoint onto the CPU.

    Returns:
        Lightning's dictionary, with ``class_names`` (list) and ``images`` (how they were prepared, or None).

    Raises:
        UserError: There is no such file; it is torn, carries code, or is no regime's checkpoint.
    """
    if Path(path).is_dir():
        raise UserError(f"checkpoint {path} is a folder: give a file in it, such as checkpoints/best.ckpt")
    if not Path(path).is_file():
        raise UserError(
            f"checkpoint {path}: there is no such file (to go on with a run: "
            f"{shell_command('fit', '--resume')} runs/<config>/<version>)"
        )
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError) as error:
        raise UserError(f"checkpoint {path} can't be read ({reason(error)})") from error
    except UNREADABLE_PICKLE as error:
        raise UserError(
            f"checkpoint {path} can't be read ({type(error).__name__}): it is truncated, or no checkpoint"
        ) from error
    if not _is_of_regime(checkpoint):
        raise UserError(f"checkpoint {path} holds no regime of metricloss_pl: give a file that `fit` has written")
    if _nests_deeply(checkpoint["hyper_parameters"]):
        raise UserError(f"checkpoint {path} has settings that nest too deeply: it is not trusted")
    return checkpoint


def _is_of_regime(checkpoint: Any) -> bool:
    """Return whether everything that is read of a checkpoint is there and of its type."""
    if not isinstance(checkpoint, dict):
        return False
    state, settings, names = (checkpoint.get(key) for key in ("state_dict", "hyper_parameters", "class_names"))
    images, callbacks = checkpoint.get("images"), checkpoint.get("callbacks", {})
    numbers = [checkpoint.get("temperature", 1.0)]
    for key in ("mean", "std", "class_weights"):
        numbers += values if isinstance(values := checkpoint.get(key) or [], list) else [None]
    return (
        isinstance(state, dict)
        and all(isinstance(tensor, Tensor) for tensor in state.values())
        and isinstance(settings, dict)
        and isinstance(settings.get("_class_path"), str | None)
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and isinstance(checkpoint.get("pytorch-lightning_version", ""), str)
        and isinstance(images, dict | None)
        and all(isinstance(value, int | None) for value in (images or {}).values())
        and all(isinstance(value, float) for value in numbers)
        and isinstance(callbacks, dict)
        and all(isinstance(state, dict) for state in callbacks.values())
    )


def import_paths(settings: Any) -> set[str]:
    """Return the import paths that nested settings may name, as given and, of what is loaded, as defined."""
    if isinstance(settings, dict):
        settings = list(settings.values())
    if isinstance(settings, (list, tuple, set)):
        return set().union(*map(import_paths, settings))
    named = settings
    paths = []
    if isinstance(settings, str):
        module, _, name = settings.rpartition(".")
        named = getattr(sys.modules.get(module), name, None)
        paths.append(settings)
    if isinstance(named, type) or inspect.isroutine(named):
        paths.append(f"{named.__module__}.{named.__qualname__}")
    return {path for path in paths if "." in path and all(map(str.isidentifier, path.split(".")))}


@contextmanager
def trusted_imports(source: str, others: Iterable[str] = (), run: bool = False) -> Iterator[None]:
    """Let parsers build only what the settings in a checkpoint may name: a regime, its network and its optimizers.

    Classes derived from those of this package count as well once the user's own program has imported them.

    Args:
        source: The place of the settings, for messages.
        others: Further import paths, such as those in the user's own config.
        run: Whether the settings are those of a whole run, with data, callbacks and loggers.

    Raises:
        UserError: The settings name something else.
    """
    trusted = {*_TRUSTED, *(_TRUSTED_IN_RUN if run else ()), *_imported_subclasses(), *others}
    try:
        with import_paths_limited_to(trusted) as denied:
            yield
    except (ArgumentError, TypeError, ValueError) as error:
        named = next((path for path in denied if path in str(error)), None)
        if isinstance(error, UserError) or named is None:
            raise
        raise UserError(
            f"{source} names {named}, which is not trusted for a checkpoint's sake: for a class of yours give the "
            "--config that it was trained with too; in Python import it and call "
            "metricloss_pl.load(path, classes=[...])"
        ) from error


def load_trusted(
    load: Callable[..., Any], path: Any, args: tuple[Any, ...], settings: dict[str, Any], classes: Iterable[type]
) -> Any:
    """Call Lightning's `load_from_checkpoint`, for a sound file whose settings name only trusted classes.

    Args:
        load: The bound method.
        path: Checkpoint file.
        args: Further positional arguments of the method.
        settings: Further keyword arguments, and settings that replace those in the checkpoint.
        classes: Classes of the user's own that the settings may name, also if they have moved to another module.

    Raises:
        UserError: The file cannot be read, names other classes, or has settings that do not fit.
    """
    named, changed, classes = {}, {}, list(classes)
    if isinstance(path, (str, Path)) and "://" not in str(path):
        saved = read_checkpoint(path)["hyper_parameters"]
        named = with_given_classes(saved, classes)
        changed = {name: value for name, value in named.items() if value != saved[name]}
    own = import_paths(classes)
    others = import_paths(settings) | own | {name for name in import_paths(named) if import_paths(name) & own}
    try:
        with trusted_imports(f"checkpoint {path}", others):
            return load(path, *args, **{**changed, **settings})
    except ArgumentError as error:
        raise UserError(f"checkpoint {path} has settings that do not fit: {reason(error)}") from error
    except ValueError as error:
        # jsonargparse wraps the exception of a constructor in its own.
        cause: BaseException = error
        while raised_in(cause, "jsonargparse") and cause.__cause__ is not None:
            cause = cause.__cause__
        if cause is error:
            raise
        raise cause from cause.__cause__


def _nests_deeply(settings: Any) -> bool:
    level = [settings]
    for _ in range(_MOST_DEPTH):
        level = [
            item
            for value in level
            if isinstance(value, (dict, list, tuple))
            for item in (value.values() if isinstance(value, dict) else value)
        ]
    return bool(level)


def with_given_classes(settings: Any, classes: Sequence[type]) -> Any:
    """Return settings in which the given classes stand by the paths that they have by now.

    Args:
        settings: Those in a checkpoint, written where a class may have been in another module, such as `__main__`.
        classes: The user's own; of two with the same qualified name, none stands for a class of another module.
    """
    if isinstance(settings, dict):
        return {name: with_given_classes(value, classes) for name, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return type(settings)(with_given_classes(value, classes) for value in settings)
    if not isinstance(settings, str) or "." not in settings:
        return settings
    alike = {f"{cls.__module__}.{cls.__qualname__}" for cls in classes if settings.endswith(f".{cls.__qualname__}")}
    return alike.pop() if len(alike) == 1 and not _is_below(settings, _TRUSTED) else settings


def is_trusted_run(settings: Any) -> bool:
    """Return whether a checkpoint with these settings of a run is enough to go on from, without its config."""
    return all(_is_below(path, {*_TRUSTED, *_TRUSTED_IN_RUN}) for path in _class_paths(settings))


def _class_paths(settings: Any) -> set[str]:
    if isinstance(settings, (list, tuple)):
        return set().union(*map(_class_paths, settings))
    if not isinstance(settings, dict):
        return import_paths(settings) if callable(settings) else set()
    return _class_paths(list(settings.values())) | {path for key, path in settings.items() if key == "class_path"}


def _is_below(path: str, trusted: Collection[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:length]) in trusted for length in range(1, len(parts) + 1))


def _imported_subclasses() -> set[str]:
    """Return the import paths of subclasses of this package's base classes."""
    found: set[str] = set()
    loaded = [(sys.modules[module], name) for module, name in _BASES if module in sys.modules]
    waiting: list[type] = [getattr(module, name) for module, name in loaded if hasattr(module, name)]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        found |= import_paths(f"{cls.__module__}.{cls.__qualname__}")
    return found


def plain_settings(hyper_parameters: dict[str, Any], cls: type) -> dict[str, Any]:
    """Return the hyper-parameters that a checkpoint can hold without code, and that the constructor takes.

    A module or a lambda function is left out: it has to be given again in Python. So is the file of the backbone's
    initial weights, which the checkpoint replaces.
    """
    taken, _ = constructor_arguments(
        cls
    )  # the command line records all facts of the data, whether the regime takes them or not
    plain = {
        name: value
        for name, value in hyper_parameters.items()
        if _is_plain(value) and (name in taken or name.startswith("_"))
    }
    backbone = plain.get("backbone")
    if isinstance(backbone, dict) and "class_path" not in backbone:
        del plain["backbone"]  # it holds what the data tell alone, and the regime takes none
    elif isinstance(backbone, dict) and isinstance(settings := backbone.get("init_args"), dict):
        plain["backbone"] = {**backbone, "init_args": {k: v for k, v in settings.items() if k != "weights"}}
    return plain


def constructor_arguments(cls: type) -> tuple[list[str], bool]:
    """Return the names of a constructor's arguments, and whether it accepts any others.

    The arguments of a base class count as far as `*args` and `**kwargs` are passed on to it.
    """
    names: list[str] = []
    for base in cls.__mro__:
        if base is object or "__init__" not in vars(base):
            continue
        arguments = list(inspect.signature(base).parameters.values())
        names += [a.name for a in arguments if a.kind not in (a.VAR_KEYWORD, a.VAR_POSITIONAL)]
        if not any(argument.kind is argument.VAR_KEYWORD for argument in arguments):
            return list(dict.fromkeys(names)), False
    return list(dict.fromkeys(names)), True


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def check_finite(state: Mapping[str, Tensor], place: str) -> None:
    """Check the tensors of a state.

    Args:
        state: Tensors by name.
        place: Place and consequence for the message, such as "at step 100, so no checkpoint is written".

    Raises:
        UserError: A tensor has a nan or an infinity.
    """
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"{name} is not finite {place}; if training diverged, lower the learning rate or set "
                "trainer.gradient_clip_val"
            )


def where_classes_differ(trained: list[str], given: list[str]) -> str:
    """Where two lists of class names part, in words."""
    if len(trained) != len(given):
        return f"was trained on {len(trained)} classes and the data have {len(given)}: they must be the same"
    label = next(i for i, (a, b) in enumerate(zip(trained, given, strict=True)) if a != b)
    return f"calls class {label} {trained[label]!r} and the data call it {given[label]!r}: they must be the same"


def where_states_differ(saved: Mapping[str, Any], expected: Mapping[str, Tensor]) -> str | None:
    """Return in words where the tensors in a checkpoint and those of a network differ in name or shape."""
    for name, tensor in expected.items():
        if name not in saved:
            return f"has no tensor {name}, which the network has"
        shape = tuple(getattr(saved[name], "shape", ()))
        if shape != tuple(tensor.shape):
            return f"has {name} of shape {shape}, and the network of shape {tuple(tensor.shape)}"
    unknown = next((name for name in saved if name not in expected), None)
    return None if unknown is None else f"has a tensor {unknown}, which the network lacks"
