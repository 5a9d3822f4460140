"""Trained regimes to share: weights in a file of safetensors, everything else in a JSON file beside it, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from metricloss_pl.errors import UserError, reason
from metricloss_pl.files import UNREADABLE_PICKLE, replacing, sha256

__all__ = ["WEIGHTS", "config_beside", "is_safetensors", "read_safetensors", "write_safetensors"]

WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_DIGEST = "weights_sha256"  # of the file that a config belongs to
_TENSOR = "tensor"  # only key of a dict that stands for a tensor outside of the state dict
_OTHERS = "checkpoint."  # prefix of such tensors in the file


def is_safetensors(path: str | Path) -> bool:
    """Return whether a path is a file of safetensors, or a folder with `model.safetensors`."""
    return Path(path).suffix == ".safetensors" or (Path(path) / WEIGHTS).is_file()


def config_beside(file: Path) -> Path:
    """Return the file of settings beside weights: `config.json`, or `birds_config.json` for `birds.safetensors`."""
    return file.with_name(_CONFIG if file.name == WEIGHTS else f"{file.stem}_{_CONFIG}")


def write_safetensors(checkpoint: Mapping[str, Any], file: Path) -> None:
    """Write the content of a checkpoint as a file of safetensors, and a JSON file beside it.

    Args:
        checkpoint: Content as of `read_checkpoint`, without the states of the training.
        file: File of the weights.

    Raises:
        UserError: safetensors is not installed, or a file cannot be written.
    """
    safetensors = _import(file)
    tensors = dict(checkpoint["state_dict"])
    others = {key: value for key, value in checkpoint.items() if key != "state_dict"}
    config = {key: _without_tensors(value, _OTHERS + key, tensors) for key, value in others.items()}
    # The format stores each tensor by itself, in the usual order of its axes.
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    with ExitStack() as files:
        weights, settings = (files.enter_context(replacing(path)) for path in (file, config_beside(file)))
        weights.write_bytes(safetensors.save(tensors))  # save_file makes a file that is private
        config[_DIGEST] = sha256(weights)
        settings.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_safetensors(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint that `write_safetensors` has written, with all tensors on the CPU.

    Args:
        path: File of the weights with its JSON file beside it, or a folder with `model.safetensors` and `config.json`.

    Raises:
        UserError: safetensors is not installed, a file is missing or damaged, or the two belong to different models.
    """
    file = Path(path) / WEIGHTS if Path(path).is_dir() else Path(path)
    safetensors = _import(file)
    config_file = config_beside(file)
    try:
        tensors, digest = safetensors.load_file(file), sha256(file)
        config = _with_tensors(json.loads(config_file.read_text(encoding="utf-8")), tensors)
    except FileNotFoundError as error:
        missing = config_file if file.is_file() else file
        raise UserError(
            f"{missing}: there is no such file; a shared model is {file.name} beside {config_file.name}"
        ) from error
    except UNREADABLE_PICKLE as error:  # foreign files
        raise UserError(
            f"{file} or {config_file.name} beside it can't be read ({reason(error)}): get both again"
        ) from error
    if not isinstance(config, dict):
        return {}
    if config.pop(_DIGEST, digest) != digest:
        raise UserError(f"{config_file} is not of the weights in {file}: get both again")
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(_OTHERS)}
    return {**config, "state_dict": weights}


def _import(file: Path) -> Any:
    try:
        from safetensors import torch as safetensors
    except ImportError as error:
        raise UserError(
            f'{file} needs safetensors, which is not installed: pip install "metricloss_pl[export]"'
        ) from error
    return safetensors


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value with a note in place of each tensor, which is added to `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {key: _without_tensors(item, f"{name}.{key}", tensors) for key, item in value.items()}
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict) and set(value) == {_TENSOR}:
        return tensors[value[_TENSOR]]
    if isinstance(value, dict):
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    return value
