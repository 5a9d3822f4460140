"""Pretrained weights: read from a file and loaded into a network, with a report of the tensors that matched."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from metricloss_pl.backbones.base import WeightsMetadata
from metricloss_pl.errors import UserError, reason
from metricloss_pl.files import UNREADABLE_PICKLE

__all__ = ["adapt_metadata", "assume_metadata", "first_convolution", "load_state", "read_weights"]


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """Return path and module of the first convolution."""
    return next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))


def read_weights(path: Path) -> tuple[dict[str, Tensor], WeightsMetadata | None]:
    """Read the state dict in a file, or in a checkpoint under `state_dict` or `model`.

    Args:
        path: File that torch has written, or, with the suffix `.safetensors`, one of safetensors.

    Returns:
        The state dict, and from a checkpoint of a regime also how its images were prepared.

    Raises:
        UserError: The file can't be read without running code, or holds no state dict.
    """
    load = _loader(path)
    try:
        content: Any = load(path)
    except (OSError, MemoryError) as error:
        raise UserError(f"weights: {path} can't be read ({reason(error)})") from error
    except UNREADABLE_PICKLE as error:
        raise UserError(f"weights: {path} is no file of tensors that torch reads ({type(error).__name__})") from error
    state = content
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"weights: {path} holds no state dict (a dict from names to tensors)")
    return dict(state), _recorded_metadata(content, str(path))


def _loader(path: Path) -> Callable[[Path], Any]:
    """Return the function that reads a file of weights with that suffix."""
    if path.suffix != ".safetensors":
        return functools.partial(torch.load, map_location="cpu", weights_only=True)
    try:
        from safetensors import torch as safetensors
    except ModuleNotFoundError as error:
        raise UserError(f"weights: {path} needs safetensors, not installed: pip install safetensors") from error
    load: Callable[[Path], Any] = safetensors.load_file
    return load


def _recorded_metadata(content: dict[str, Any], source: str) -> WeightsMetadata | None:
    """Return the preparation of images that a regime's checkpoint records."""
    mean, std, images = (content.get(name) for name in ("mean", "std", "image_format"))
    if not (isinstance(mean, list) and isinstance(std, list) and isinstance(images, dict)):
        return None
    return WeightsMetadata(source, mean, std, images.get("image_size"))


def assume_metadata(metadata: WeightsMetadata, file: str) -> WeightsMetadata:
    """Return the metadata of a network's own weights for a file that records none; messages name it as assumed."""
    return metadata._replace(source=f"{file}, which records none: assumed to be as for {metadata.source}")


def adapt_metadata(metadata: WeightsMetadata, in_channels: int) -> WeightsMetadata | None:
    """Return the metadata for images of another number of channels.

    Mean and deviation of gray images are the averages over color, those of color images the gray ones. None for numbers
    other than 1 and 3.
    """
    if in_channels == len(metadata.mean):
        return metadata
    if in_channels not in (1, 3):
        return None
    mean, std = ([sum(values) / len(values)] * in_channels for values in (metadata.mean, metadata.std))
    return metadata._replace(mean=mean, std=std)


def load_state(
    network: nn.Module, state: dict[str, Tensor], name: str, source: str, leave_out: Sequence[str] = ()
) -> None:
    """Load the tensors that a state dict and a network have in common, and report them in one line.

    A prefix of the names in the file (`backbone.network.` in a checkpoint of this package, `module.`) is removed. The
    first kernel is adapted to the network's channels, or left out where its sides differ, as with a small stem.

    Args:
        network: Network that takes the tensors.
        state: Tensors by name; the values stay as they are.
        name: Name of the network, for the messages.
        source: Origin of the state, for the messages.
        leave_out: Paths of modules that the network no longer has, such as its classifier.

    Raises:
        UserError: Nothing matches, or a tensor has the right name and another shape: the weights of another network.
    """
    expected = network.state_dict()
    state = _without_prefix(state, expected)
    state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{path}." for path in leave_out))}
    kernel = f"{first_convolution(network)[0]}.weight"
    if kernel in state and state[kernel].ndim == 4:
        state[kernel] = _adapt_channels(state[kernel], expected[kernel].shape[1])
        if state[kernel].shape[2:] != expected[kernel].shape[2:]:
            del state[kernel]

    matched = {key: value for key, value in state.items() if key in expected}
    misshaped = [key for key, value in matched.items() if value.shape != expected[key].shape]
    if misshaped or not matched:
        problem = f"of another shape: {_some(misshaped)}" if misshaped else f"no name matches: {_some(list(state))}"
        raise UserError(f"weights: {source} does not fit {name}; {problem}")
    # Old files lack `num_batches_tracked`.
    missing = [key for key in expected if key not in matched and not key.endswith("num_batches_tracked")]
    unused = [key for key in state if key not in expected]
    expected.update(matched)  # the network's own dictionary knows the versions of its layers: none converts its tensors
    network.load_state_dict(expected)
    report = f"{name}: {len(matched)} of {len(expected)} tensors loaded from {source}"
    if missing or unused:
        rank_zero_warn(f"{report}; left at their random start: {_some(missing)}; not used: {_some(unused)}")
    else:
        rank_zero_info(report)


def _without_prefix(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state without the prefix under which most names of the network are found."""
    first = next(iter(expected))
    prefixes = ["", *(key.removesuffix(first) for key in state if key.endswith(f".{first}"))]
    best = max(prefixes, key=lambda prefix: sum(prefix + key in state for key in expected))
    return {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}


def _adapt_channels(kernel: Tensor, in_channels: int) -> Tensor:
    """Return a kernel for another number of channels: summed for one, else repeated and scaled, as timm does."""
    given = kernel.shape[1]
    if in_channels == given:
        return kernel
    if in_channels == 1:
        return kernel.sum(1, keepdim=True)
    repeated = kernel.repeat(1, math.ceil(in_channels / given), 1, 1)[:, :in_channels]
    return repeated * (given / in_channels)


def _some(keys: list[str]) -> str:
    return f"{len(keys)} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else "none"
