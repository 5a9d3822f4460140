"""Pre-trained weights: from a file into a network, with an account of what matched."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from metricloss_pl.errors import UserError, reason
from metricloss_pl.files import UNREADABLE_PICKLE

__all__ = ["first_convolution", "load_state", "read_state"]


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """Path and module of the first convolution; None where there is none."""
    return next(((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d)), None)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, or in a checkpoint under ``state_dict`` or ``model``.

    Raises:
        UserError: The file can't be read without running code, or holds no state dict.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError) as error:
        raise UserError(f"weights: {path} can't be read ({reason(error)})") from error
    except UNREADABLE_PICKLE as error:
        raise UserError(f"weights: {path} is no file of tensors that torch reads ({type(error).__name__})") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"weights: {path} holds no state dict (a dict from names to tensors)")
    return dict(state)


def load_state(
    network: nn.Module,
    state: dict[str, Tensor],
    name: str,
    source: str,
    leave_out: Sequence[str] = (),
    new_stem: bool = False,
) -> None:
    """Load what a state dict and a network have in common, and say in one line what that is.

    A prefix before the network's names in the file (``backbone.network.`` in a checkpoint of this package, ``module.``)
    is taken off. First kernels for another number of channels are summed over colour and divided by the new number.

    Args:
        network: Takes the tensors.
        state: Names to tensors; the values stay as they are.
        name: The network's, for the messages.
        source: Where the state comes from, for the messages.
        leave_out: Modules that the network no longer has, such as its classifier.
        new_stem: Whether a first kernel of another size is left out, too.

    Raises:
        UserError: Nothing matches, or a tensor has the right name and another shape: the weights of another network.
    """
    own = network.state_dict()
    state = _without_prefix(state, own)
    state = {key: value for key, value in state.items() if not key.startswith(tuple(f"{path}." for path in leave_out))}
    expected = {key for key in own if not key.endswith("num_batches_tracked")}  # old files lack them
    stem = first_convolution(network)
    if stem is not None and (kernel := f"{stem[0]}.weight") in state and state[kernel].ndim == 4:
        state[kernel] = _fit_channels(state[kernel], own[kernel].shape[1])
        if new_stem and state[kernel].shape != own[kernel].shape:
            del state[kernel]
            expected.remove(kernel)

    matched = OrderedDict((key, value) for key, value in state.items() if key in own)
    misshaped = [key for key, value in matched.items() if value.shape != own[key].shape]
    missing, unused = [key for key in own if key in expected - matched.keys()], [key for key in state if key not in own]
    if misshaped or not matched:
        told = f"of another shape: {_some(misshaped)}" if misshaped else f"no name matches: {_some(list(state))}"
        raise UserError(f"weights: {source} does not fit {name}; {told}")
    # The shapes are today's, so the layers must not convert them again as if an old version had written them.
    matched._metadata = own._metadata  # type: ignore[attr-defined]
    network.load_state_dict(matched, strict=False)
    account = f"{name}: {len(matched)} of {len(own)} tensors loaded from {source}"
    if missing or unused:
        rank_zero_warn(f"{account}; left at their random start: {_some(missing)}; not used: {_some(unused)}")
    else:
        rank_zero_info(account)


def _without_prefix(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names behind that prefix under which most of the network's own names are found."""
    first = next(iter(own))
    prefixes = ["", *(key.removesuffix(first) for key in state if key.endswith(f".{first}"))]
    best = max(prefixes, key=lambda prefix: sum(prefix + key in state for key in own))
    return {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}


def _fit_channels(kernel: Tensor, in_channels: int) -> Tensor:
    if kernel.shape[1] == in_channels:
        return kernel
    return kernel.sum(1, keepdim=True).expand(-1, in_channels, -1, -1) / in_channels


def _some(keys: list[str]) -> str:
    return f"{len(keys)} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" if keys else "none"
