"""The optimizer of a regime: whether it can train a network at all, and what its weight decay acts on."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn
from torch.optim import Optimizer

from metricloss_pl.errors import refusing

__all__ = ["Decayed", "check_optimizer", "decay_weights_alone", "has_gradients"]

Decayed = Literal["all", "weights"]


def check_optimizer(build: OptimizerCallable, build_schedule: LRSchedulerCallable | None) -> None:
    """Build optimizer and schedule and step once, so that a wrong setting shows at construction.

    Raises:
        UserError: torch refuses a setting of the optimizer or the schedule, or the optimizer's step needs more than
            dense gradients.
    """
    parameter = nn.Parameter(torch.zeros(1))
    with refusing("torch.optim", ValueError, "optimizer: {}"):
        optimizer = build([{"params": [parameter]}])
    if build_schedule is not None:
        with refusing("torch.optim", (ValueError, TypeError), "lr_scheduler: {}"):
            build_schedule(optimizer)
    parameter.grad = torch.zeros(1)
    name = type(optimizer).__name__
    refusal = f"optimizer {name} can't train a network ({{}}): SGD, Adam or AdamW can"
    with refusing("torch", (RuntimeError, TypeError, ValueError), refusal):
        optimizer.step()


def decay_weights_alone(groups: list[dict[str, Any]], module: nn.Module) -> list[dict[str, Any]]:
    """The parameter groups, each that has no weight decay of its own parted into weights and what is not to decay.

    Args:
        groups: Of the module's parameters.
        module: Its weights of convolutions and dense layers are those that decay.
    """
    # By name too, since class tokens, positions and the scales of layers may have two dimensions or more.
    weights = {p for name, p in module.named_parameters() if name.endswith("weight") and p.ndim >= 2}
    parted: list[dict[str, Any]] = []
    for group in groups:
        if "weight_decay" in group:
            parted.append(group)
            continue
        decayed = [parameter for parameter in group["params"] if parameter in weights]
        others = [parameter for parameter in group["params"] if parameter not in weights]
        parted += [{**group, "params": decayed}] if decayed else []
        parted += [{**group, "params": others, "weight_decay": 0.0}] if others else []
    return parted


def has_gradients(optimizer: Optimizer | LightningOptimizer) -> bool:
    """Return whether a backward pass has taken place since the gradients were last cleared."""
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])
