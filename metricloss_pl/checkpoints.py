"""Checkpoints of the regimes: written whole or not at all, read without running code from the file."""

from __future__ import annotations

import inspect
import io
import math
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
from metricloss_pl.errors import UserError, cause_outside, reason, shell_command
from metricloss_pl.files import UNREADABLE_PICKLE, replacing
from metricloss_pl.safetensors_files import is_safetensors, read_safetensors

__all__ = [
    "AtomicCheckpointIO",
    "check_facts",
    "import_paths",
    "is_trusted_run",
    "load_trusted",
    "passed_arguments",
    "plain_settings",
    "read_checkpoint",
    "read_model",
    "trusted_imports",
    "with_given_classes",
]

# Import paths that the settings in a checkpoint may name, with all below them. The path of a class's definition counts
# as well as the path that is given.
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
    ("metricloss_pl.augment", "Augmentation"),
    ("metricloss_pl.data", "ImageDataModule"),
    ("metricloss_pl.mixing", "Mixing"),
    ("metricloss_pl.regimes", "Classifier"),
    ("metricloss_pl.schedules", "WholeTraining"),
)
_LINKED = ("hierarchy",)  # facts of the data that the command line records for every regime
_TRUSTED_IN_RUN = (  # also in the config beside a checkpoint
    "metricloss_pl.augment",
    "metricloss_pl.callbacks",
    "metricloss_pl.data",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Plugin of the Trainer that writes checkpoints whole or not at all, whenever the process dies.

    It writes beside the target, flushes to the disk, then replaces. Lightning's own plugin moves the file from the
    temporary folder, which is not atomic across file systems; it still handles addresses such as `s3://...`.
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
    """File that keeps the error of a failed write, since torch raises another one in its place."""

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
    """Return the content of a regime's checkpoint, on the CPU.

    Args:
        path: Checkpoint file.

    Returns:
        Lightning's dictionary, with `class_names` (list) and `image_format` (how they were prepared, or None).

    Raises:
        UserError: There is no such file, or it is truncated, holds code, or belongs to no regime.
    """
    if Path(path).is_dir():
        raise UserError(f"checkpoint {path} is a folder: give a file in it, such as checkpoints/best.ckpt")
    if not Path(path).is_file():
        raise UserError(
            f"checkpoint {path}: there is no such file (to continue a run: "
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
    return _checked(checkpoint, path)


def read_model(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint, or of a file of safetensors or its folder, as `read_checkpoint` does."""
    return _checked(read_safetensors(path), path) if is_safetensors(path) else read_checkpoint(path)


def _checked(checkpoint: dict[str, Any], path: str | Path) -> dict[str, Any]:
    types = {"state_dict": dict, "hyper_parameters": dict, "class_names": list}
    is_right = isinstance(checkpoint, dict) and all(isinstance(checkpoint.get(k), kind) for k, kind in types.items())
    if not is_right or not all(isinstance(value, Tensor) for value in checkpoint["state_dict"].values()):
        raise UserError(f"checkpoint {path} holds no regime of metricloss_pl: give a file that `fit` has written")
    return checkpoint


def import_paths(settings: Any) -> set[str]:
    """Return the import paths that nested settings may name, as given and, for loaded objects, as defined."""
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
    """Limit parsers to classes that the settings in a checkpoint may name: regimes, networks and optimizers.

    Subclasses of this package's classes may be named, too, if the user's program has imported them.

    Args:
        source: Origin of the settings, for messages.
        others: Further import paths, such as those in the user's own config.
        run: Whether the settings belong to a whole run, with data, callbacks and loggers.

    Raises:
        UserError: The settings name another class.
    """
    trusted = {*_TRUSTED, *(_TRUSTED_IN_RUN if run else ()), *_imported_subclasses(), *others}
    try:
        with import_paths_limited_to(trusted) as denied:
            yield
    except (ArgumentError, TypeError, ValueError) as error:
        if not denied or cause_outside(error, "jsonargparse") is not None:
            raise
        raise UserError(
            f"{source} names {denied[-1]}, which is not trusted in a checkpoint: for a class of yours, also give the "
            "--config that it was trained with; in Python import it and call metricloss_pl.load(path, classes=[...])"
        ) from error


def load_trusted(
    load: Callable[..., Any], path: Any, args: tuple[Any, ...], settings: dict[str, Any], classes: Iterable[type]
) -> Any:
    """Call Lightning's `load_from_checkpoint`, for a sound file whose settings name only trusted classes.

    Args:
        load: The bound method.
        path: Checkpoint file; or file of safetensors, or its folder.
        args: Further positional arguments of the method.
        settings: Further keyword arguments, and settings that replace those in the checkpoint.
        classes: Classes of the user's own that the settings may name, also if they have moved to another module.

    Raises:
        UserError: The file cannot be read, names other classes, or has settings that do not fit.
    """
    named, changed, classes, source = {}, {}, list(classes), path
    if isinstance(path, (str, Path)) and "://" not in str(path):
        content = read_model(path)
        saved = content["hyper_parameters"]
        named = with_given_classes(saved, classes)
        named |= {"backbone": _without_weights(named["backbone"])} if "backbone" in named else {}
        changed = {name: value for name, value in named.items() if value != saved[name]}
        if is_safetensors(path):  # Lightning reads files of torch
            source = io.BytesIO()
            torch.save(content, source)
            source.seek(0)
    given = import_paths(classes)
    others = import_paths(settings) | given | {name for name in import_paths(named) if import_paths(name) & given}
    try:
        with trusted_imports(f"checkpoint {path}", others):
            return load(source, *args, **{**changed, **settings})
    except ArgumentError as error:
        raise UserError(f"checkpoint {path} has settings that do not fit: {reason(error)}") from error
    except ValueError as error:  # jsonargparse wraps the exception of a constructor in its own
        cause = cause_outside(error, "jsonargparse")
        if cause in (error, None):
            raise
        raise cause from cause.__cause__


def with_given_classes(settings: Any, classes: Sequence[type]) -> Any:
    """Return settings with the current import paths of the given classes.

    Args:
        settings: Settings in a checkpoint, which may name a class by a former module, such as `__main__`.
        classes: Classes of the user's own. Of two with the same qualified name, none replaces one of another module.
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
    """Return whether a checkpoint with these settings of a run can be used without its config."""
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


def passed_arguments(module: object) -> set[str]:
    """Return the names of the arguments that the constructor of an object was called with, or has defaults for.

    To be called in the constructor of its base class, whose positional arguments `*args` stands for. A constructor may
    fix arguments of its base, or rename them: those that it sets itself are none of its own.
    """
    base = frame = inspect.currentframe().f_back  # type: ignore[union-attr]
    while frame is not None and (caller := frame.f_back) is not None and caller.f_code.co_name == "__init__":
        if caller.f_locals.get(caller.f_code.co_varnames[0]) is not module:
            break
        frame = caller
    assert frame is not None
    assert base is not None
    names, varargs, varkw, values = inspect.getargvalues(frame)
    surplus = len(values[varargs]) if varargs else 0
    positional = inspect.getargvalues(base).args[1 : frame.f_code.co_argcount + surplus] if surplus else []
    return {*names[1:], *positional, *(values[varkw] if varkw else ())}


def check_facts(checkpoint: Mapping[str, Any]) -> None:
    """Check the facts about data and calibration in a checkpoint.

    Raises:
        UserError: A key is missing, or has a value that no training writes.
    """

    def are_finite(values: Any) -> bool:
        right = isinstance(values, list) and len(values) > 0
        return right and all(isinstance(value, float) and math.isfinite(value) for value in values)

    def is_format(values: Any) -> bool:
        if not isinstance(values, dict):
            return values is None
        return all(size is None or (isinstance(size, int) and size > 0) for size in values.values())

    mean, std, temperature = (checkpoint.get(name) for name in ("mean", "std", "temperature"))
    expected = {
        "mean": are_finite(mean),
        "std": are_finite(std) and min(std or [0]) > 0,
        "temperature": are_finite([temperature]) and (temperature or 0) > 1e-6,
        "image_format": is_format(checkpoint.get("image_format", 0)),
        "split": isinstance(checkpoint.get("split", 0), dict | None),
    }
    if expected["mean"] and expected["std"]:
        expected["std"] = len(mean or ()) == len(std or ())
    for name, is_right in expected.items():
        if not is_right:
            raise UserError(
                f"the checkpoint's {name} is {checkpoint.get(name)!r}, which no training writes: take another one "
                "(an on_save_checkpoint of your own has to call super())"
            )


def plain_settings(hyper_parameters: dict[str, Any], passed: Collection[str]) -> dict[str, Any]:
    """Return the hyper-parameters that a checkpoint can hold without code, and that the constructor was called with.

    A module or a lambda function is left out: it has to be given again in Python. So is the file of the backbone's
    initial weights, which the checkpoint replaces.
    """
    from_command_line = "_class_path" in hyper_parameters
    plain = {
        name: value
        for name, value in hyper_parameters.items()
        if _is_plain(value) and (name in passed or (from_command_line and name not in _LINKED))
    }
    backbone = plain.get("backbone")
    if isinstance(backbone, dict) and "class_path" not in backbone:
        del plain["backbone"]  # it only holds facts of the data, and the regime takes no backbone
    elif backbone is not None:
        plain["backbone"] = _without_weights(backbone)
    return plain


def _without_weights(backbone: Any) -> Any:
    """Return the settings of a backbone without its initial weights, which a checkpoint replaces."""
    if not isinstance(backbone, dict) or not isinstance(settings := backbone.get("init_args"), dict):
        return backbone
    return {**backbone, "init_args": {name: value for name, value in settings.items() if name != "weights"}}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))
