"""Optimizers: the default one, a check of their settings, and parameter groups without weight decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from metricloss_pl.errors import refusing

__all__ = ["check_optimizer", "exempt_norm_and_bias", "has_gradients", "loss_with_gradients", "sgd"]


def sgd(parameters: Any) -> Optimizer:
    """Return SGD with learning rate 0.05 and momentum 0.9, the default optimizer of the regimes."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def check_optimizer(build: Callable[[Any], Optimizer], build_schedule: Callable[[Optimizer], Any] | None) -> None:
    """Build an optimizer and a schedule for one parameter and take a step, so that wrong settings show early.

    Raises:
        UserError: torch refuses a setting, or the optimizer needs more than dense gradients.
    """
    parameter = nn.Parameter(torch.zeros(1))
    with refusing("torch.optim", ValueError, "optimizer: {}"):
        optimizer = build([{"params": [parameter]}])
    if build_schedule is not None:
        with refusing("torch.optim", (ValueError, TypeError), "lr_scheduler: {}"):
            build_schedule(optimizer)
    parameter.grad = torch.zeros(1)
    refusal = f"optimizer {type(optimizer).__name__} can't train a network ({{}}): SGD, Adam or AdamW can"
    with refusing("torch", (RuntimeError, TypeError, ValueError), refusal):
        optimizer.step()


def exempt_norm_and_bias(groups: list[dict[str, Any]], module: nn.Module) -> list[dict[str, Any]]:
    """Split parameter groups so that only weights of convolutions and dense layers decay.

    Args:
        groups: Parameter groups; those with a weight decay of their own stay as they are.
        module: Module of the parameters.
    """
    # By name too, since class tokens, positions and the scales of layers may have two dimensions or more.
    names = ("weight", "coefficients")
    weights = {p for name, p in module.named_parameters() if name.endswith(names) and p.ndim >= 2}
    result: list[dict[str, Any]] = []
    for group in groups:
        if "weight_decay" in group:
            result.append(group)
            continue
        decayed = [parameter for parameter in group["params"] if parameter in weights]
        exempt = [parameter for parameter in group["params"] if parameter not in weights]
        result += [{**group, "params": decayed}] if decayed else []
        result += [{**group, "params": exempt, "weight_decay": 0.0}] if exempt else []
    return result


def has_gradients(optimizer: Any) -> bool:
    """Return whether a backward pass has taken place since the gradients were last cleared."""
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])


def loss_with_gradients(closure: Callable[[], Any], optimizer: Any) -> Any:
    """Run the closure of a step; return None, which tells Lightning not to unscale, if it computed no gradients."""
    loss = closure()
    return loss if has_gradients(optimizer) else None
