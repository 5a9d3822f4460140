"""Fine-tuning in two phases."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ParallelStrategy
from torch import nn
from torch.optim import Optimizer

from metricloss_pl.errors import UserError

__all__ = ["FreezeBackbone"]


class FreezeBackbone(Callback):
    """Training of the new layers alone for some epochs, then of all layers, for a pretrained backbone.

    New layers are all but those of the backbone: embedding layer, head, centers. While the backbone is frozen, its
    parameters do not move, and its batch norm and dropout are in evaluation mode. Its parameters are in the optimizer
    from the start, so that parameter groups, learning-rate schedules, gradient clipping and resumed runs are as without
    this callback. Its momentum and weight decay begin when it is unfrozen. The schedule spans all epochs.

    Under several processes the gradients of the backbone are computed and then dropped, since DistributedDataParallel
    waits for each: no `find_unused_parameters` is needed, and a frozen epoch takes as long as any other.

    Args:
        epochs: Number of epochs that train only the new layers, at least 1.

    Raises:
        UserError: `epochs` is below 1, or there is nothing to train but the backbone.
    """

    def __init__(self, epochs: int = 5) -> None:
        if epochs < 1:
            raise UserError(f"epochs of FreezeBackbone is {epochs}; it must be at least 1")
        self.epochs = epochs
        # While the backbone is frozen: its layers in training mode, and its parameters with a gradient.
        self._training: list[nn.Module] = []
        self._trained: list[nn.Parameter] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        backbone = _backbone(pl_module)
        new = set(pl_module.parameters()) - set(backbone.parameters())
        if not any(parameter.requires_grad for parameter in new):
            raise UserError("FreezeBackbone: the model has nothing to train but its backbone; leave the callback out")
        # A run resumed within an epoch has no on_train_epoch_start for it.
        self._update(trainer, backbone)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(trainer, _backbone(pl_module))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        for parameter in self._trained:
            parameter.grad = None  # so that neither clipping nor the optimizer sees it

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._free()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._free()

    def _update(self, trainer: Trainer, backbone: nn.Module) -> None:
        if trainer.current_epoch >= self.epochs:
            self._free()
        elif not self._trained:
            self._training = [layer for layer in backbone.modules() if layer.training]
            self._trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
            backbone.eval()
            if not isinstance(trainer.strategy, ParallelStrategy):
                backbone.requires_grad_(False)

    def _free(self) -> None:
        for layer in self._training:
            layer.training = True
        for parameter in self._trained:
            parameter.requires_grad = True
        self._training, self._trained = [], []


def _backbone(module: LightningModule) -> nn.Module:
    if not isinstance(backbone := getattr(module, "backbone", None), nn.Module):
        raise UserError(f"FreezeBackbone needs a model with a backbone, and {type(module).__name__} has none")
    return backbone
