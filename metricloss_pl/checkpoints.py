"""Checkpoints of the regimes: written whole or not at all, read without running code from the file."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse.typing import Path_fr
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from metricloss_pl.errors import UserError
from metricloss_pl.files import replacing
from metricloss_pl.screen import shell_command

__all__ = ["AtomicCheckpointIO", "plain_settings", "read_checkpoint", "tensor_not_finite", "where_classes_differ"]

_YAMLLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # jsonargparse's choice
_MAX_DEPTH = 100  # of YAML within a text, whose reading takes time by the square of it
# What a checkpoint's settings may name: a regime, its network, optimizers and schedules.
_BUILT = (nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)


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
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a regime's checkpoint onto the CPU.

    Returns:
        Lightning's dictionary, with ``class_names`` (list) and ``images`` (how they were prepared, or None).

    Raises:
        UserError: There is no such file; it is torn, carries code, or is no regime's checkpoint; or it names something
            else than networks, optimizers and schedules, or what nobody has imported.
    """
    if Path(path).is_dir():
        raise UserError(f"checkpoint {path} is a folder: give a file in it, such as checkpoints/best.ckpt")
    if not Path(path).is_file():
        raise UserError(
            f"checkpoint {path}: there is no such file (to go on with a run: "
            f"{shell_command('fit', '--resume')} runs/<config>/<version>)"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn file can raise nearly anything
        raise UserError(
            f"checkpoint {path} can't be read ({type(error).__name__}): it is truncated, or no checkpoint"
        ) from error
    expected = {"state_dict": dict, "hyper_parameters": dict, "class_names": list}
    if not isinstance(checkpoint, dict) or not all(
        isinstance(checkpoint.get(key), kind) for key, kind in expected.items()
    ):
        raise UserError(f"checkpoint {path} holds no regime of metricloss_pl: give a file that `fit` has written")
    tensors = all(isinstance(tensor, Tensor) for tensor in checkpoint["state_dict"].values())
    if not tensors or not isinstance(checkpoint.get("images"), dict | None):
        raise UserError(f"checkpoint {path} holds no regime of metricloss_pl: give a file that `fit` has written")
    for key, text in _texts(checkpoint["hyper_parameters"]):
        for reading in _readings(path, text):
            _check_name(path, reading, is_class=key.endswith("class_path"))
    return checkpoint


def _texts(hyper_parameters: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every text among the settings, with the key that it stands under."""
    values = [(key, value) for key, value in hyper_parameters.items() if key not in ("class_names", "_instantiator")]
    while values:
        key, value = values.pop()
        if isinstance(value, dict):
            values += value.items()
        elif isinstance(value, (list, tuple, set)):
            values += [(key, item) for item in value]
        elif isinstance(value, str):
            yield str(key), value


def _readings(path: str | Path, text: str) -> Iterator[str]:
    """The text, and all that jsonargparse may find in it: YAML's texts within it and within a file that it names."""
    here = os.getcwd()
    waiting, seen = [(text, here)], set()
    while waiting:
        text, folder = waiting.pop()  # where a file stands, those that it names are looked for
        if (text, folder) in seen:
            continue
        seen.add((text, folder))
        yield text
        for base in (folder, here):
            if (file := _file_named(text, base)) is None:
                continue
            if file.is_fifo():
                raise UserError(f"checkpoint {path} names {text}, a pipe that would be waited for: it is not trusted")
            with suppress(OSError, ValueError):  # none of text
                waiting.append((file.read_text(encoding="utf-8"), str(file.parent)))
        with suppress(yaml.YAMLError, UnicodeEncodeError):
            waiting += [(found, folder) for found in _scalars(path, text)]


def _file_named(text: str, base: str) -> Path | None:
    """The file that jsonargparse would read for this text, if there is one."""
    try:
        return Path(Path_fr(text, cwd=base).absolute)
    except (TypeError, OSError, ValueError):
        return None


def _scalars(path: str | Path, text: str) -> Iterator[str]:
    """YAML's texts within a text."""
    depth = 0
    for event in yaml.parse(text, _YAMLLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise UserError(
                f"checkpoint {path} has a setting that nests more than {_MAX_DEPTH} deep: it is not trusted"
            )
        if isinstance(event, yaml.ScalarEvent):
            yield event.value


def _check_name(path: str | Path, name: str, is_class: bool) -> None:
    """Whoever reads the settings builds the classes they name; a function, or any other class, could do anything."""
    if "." not in name or not all(part.isidentifier() for part in name.split(".")):
        return
    module, _, attribute = name.rpartition(".")
    named = getattr(sys.modules.get(module), attribute, None)
    if isinstance(named, type) and issubclass(named, _BUILT):
        return
    if named is None:
        if not is_class and not _can_be_imported(name):  # stats.npz
            return
        raise UserError(
            f"checkpoint {path} names {name}, which is not imported for a checkpoint's sake: give the --config that it "
            "was trained with too"
        )
    if not callable(named) or name.startswith("metricloss_pl.regimes."):  # the default optimizers are functions
        return
    raise UserError(f"checkpoint {path} names {name}, which is no network, optimizer or schedule: it is not trusted")


def _can_be_imported(name: str) -> bool:
    """Whether there is a package or module for the name to be in; finding the topmost one imports nothing."""
    top = name.partition(".")[0]
    return top in sys.modules or importlib.util.find_spec(top) is not None


def plain_settings(hyper_parameters: dict[str, Any]) -> dict[str, Any]:
    """What of the hyper-parameters can be read back without running code; a module or a lambda is given anew in Python.

    The file that a network was started from is left out: its weights are the checkpoint's by now, and it may be gone.
    """
    plain = {name: value for name, value in hyper_parameters.items() if _is_plain(value)}
    backbone = plain.get("backbone")
    if isinstance(backbone, dict) and isinstance(settings := backbone.get("init_args"), dict):
        plain["backbone"] = {**backbone, "init_args": {k: v for k, v in settings.items() if k != "weights"}}
    return plain


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def tensor_not_finite(state: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with a nan or an infinity."""
    unsound = (name for name, t in state.items() if t.is_floating_point() and not torch.isfinite(t).all())
    return next(unsound, None)


def where_classes_differ(trained: list[str], given: list[str]) -> str:
    """Where two lists of class names part, in words."""
    if len(trained) != len(given):
        return f"was trained on {len(trained)} classes and the data have {len(given)}: they must be the same"
    label = next(i for i, (a, b) in enumerate(zip(trained, given, strict=True)) if a != b)
    return f"calls class {label} {trained[label]!r} and the data call it {given[label]!r}: they must be the same"
