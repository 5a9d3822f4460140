"""Softmax with center loss, the centers under an optimizer of their own (Wen et al., ECCV 2016)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from metricloss_pl.backbones import Backbone
from metricloss_pl.callbacks.evaluation import evaluation_mode
from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import UserError, check_choice, refusing
from metricloss_pl.losses import CenterLoss
from metricloss_pl.losses import functional as F
from metricloss_pl.losses.center import CenterRule
from metricloss_pl.optimizers import has_gradients
from metricloss_pl.regimes.base import Classifier

__all__ = ["CenterSoftmaxClassifier", "center_sgd"]


def center_sgd(parameters: Any) -> Optimizer:
    """Return SGD with learning rate 0.5, the alpha of Wen et al."""
    return torch.optim.SGD(parameters, lr=0.5)


class ClassMeanCenters(Callback):
    """Initialization of the centers with the mean embedding of each class, before training."""

    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > 0:
            return
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            raise UserError("center_init is 'class_means', which needs an ImageDataModule for the first pass")
        assert isinstance(pl_module, CenterSoftmaxClassifier)
        centers, classes = pl_module.criterion.centers, pl_module.num_classes
        sums = torch.zeros(centers.shape, dtype=torch.float64)
        counts = torch.zeros(classes)
        with evaluation_mode(trainer, pl_module):
            for batch in data.train_eval_dataloader():
                images, labels = trainer.strategy.batch_to_device(batch, pl_module.device)
                sums.index_add_(0, labels.cpu(), pl_module.embed(images).cpu().double())
                counts += torch.bincount(labels.cpu(), minlength=classes)
        sums = trainer.strategy.reduce(sums.float().to(pl_module.device), reduce_op="sum")
        counts = trainer.strategy.reduce(counts.to(pl_module.device), reduce_op="sum")
        centers.copy_(sums / counts.clamp_min(1)[:, None])


class CenterSoftmaxClassifier(Classifier):
    """Cross-entropy + center_weight * center loss (Wen et al., ECCV 2016).

    The centers move by a closed-form rule, not by autograd, right after each step of the network's optimizer. The rule
    takes the embeddings of all processes and of all accumulated micro-batches into account. Gradient clipping,
    accumulation, precision and `global_step` are as without centers. A step that a loss scaler skips moves no center.

    Args:
        num_classes: Number of classes C; linked from the data on the command line.
        backbone: Network from images to features (B, F).
        args: Arguments of `Classifier`; its `optimizer` is for all parameters but the centers.
        center_weight: lambda, at least 0; the centers move alike for every value.
        center_rule: `wen`, Eq. 4, delta_j = sum (c_j - x_i) / (1 + n_j); or `gradient`, the sum 2 (c_j - x_i) / B of
            pytorch-center-loss, with its loss value, which has no factor 1/2.
        center_init: `normal`, `zeros`, or `class_means` of the training images without augmentation.
        center_optimizer: Function from parameters to an optimizer that takes sparse gradients: SGD without momentum and
            weight decay (its lr is alpha), Adagrad or SparseAdam.
        label_smoothing: epsilon in [0, 1), for the cross-entropy.
        smoothing_target: Classes that share epsilon: `all` C (as in torch), or the C - 1 of `non_target` (Barz &
            Denzler 2020).
        kwargs: Arguments of `Classifier`.

    Raises:
        UserError: `center_weight` or `label_smoothing` is out of its range, or the center optimizer would fail or move
            classes that a batch lacks.
    """

    mixes_classes = False
    anchor_name = "center"

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        *args: Any,
        center_weight: float = 0.01,
        center_rule: CenterRule = "wen",
        center_init: Literal["normal", "zeros", "class_means"] = "normal",
        center_optimizer: OptimizerCallable = center_sgd,
        label_smoothing: float = 0.0,
        smoothing_target: F.SmoothingTarget = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, backbone, *args, **kwargs)
        check_choice("smoothing_target", smoothing_target, F.SmoothingTarget)
        if not 0 <= center_weight < math.inf:
            raise UserError(f"center_weight is {center_weight}; it must be at least 0 and finite")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing is {label_smoothing}; it must be in [0, 1)")
        self.center_weight = center_weight
        self.center_init = center_init
        self.center_optimizer = center_optimizer
        self.label_smoothing = label_smoothing
        self.smoothing_target: F.SmoothingTarget = smoothing_target
        self.head = nn.Linear(self.embedding_dim, num_classes)
        with refusing("metricloss_pl.losses", ValueError):
            self.criterion = CenterLoss(
                num_classes,
                self.embedding_dim,
                center_rule,
                "zeros" if center_init == "class_means" else center_init,
                reduction="none",
            )
        with refusing("torch.optim", ValueError, "center_optimizer: {}"):
            _check_center_optimizer(center_optimizer([self.criterion.centers]))
        self._center_stepper: Optimizer | None = None
        self._restored_center_state: dict[str, Any] | None = None  # until configure_optimizers

    def losses(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the total loss, cross-entropy and center loss of embeddings (B, D) and labels (B,)."""
        values = F.cross_entropy(self.head(embeddings), labels, self.label_smoothing, self.smoothing_target, "none")
        cross_entropy = self.reduce_loss(values, labels)
        center_loss = self.reduce_loss(self.criterion(embeddings, labels), labels)
        # At lambda = 0 the product would still be nan for an infinite distance.
        loss = cross_entropy + self.center_weight * center_loss if self.center_weight else cross_entropy
        return {"loss": loss, "cross_entropy": cross_entropy, "center_loss": center_loss}

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Return logits (B, C) of embeddings (B, D)."""
        logits: Tensor = self.head(embeddings)
        return logits

    @property
    def class_anchors(self) -> Tensor:
        """Centers (C, D)."""
        return self.criterion.centers.detach()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = super().configure_optimizers()
        optimizer = config["optimizer"] if isinstance(config, dict) else config
        assert isinstance(optimizer, Optimizer)
        optimizer.register_step_post_hook(self._step_centers)
        self._center_stepper = self.center_optimizer([self.criterion.centers])
        if self._restored_center_state is not None:
            self._center_stepper.load_state_dict(self._restored_center_state)
            self._restored_center_state = None
        return config

    def _step_centers(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Move the centers after a step of the network, unless that step was empty or skipped.

        A step that the loss scaler skips does not come here. Without gradients the network has not moved either: the
        last pass of `StochasticWeightAveraging` computes none, and a `training_step` that returns None leaves none.
        """
        if not has_gradients(optimizer):
            return
        skipped_inside = getattr(optimizer, "found_inf", None)  # a fused optimizer decides inside its step
        if skipped_inside is not None and bool(skipped_inside):
            return
        assert self._center_stepper is not None
        self.criterion.assign_center_grad(self.gather_rows)
        self._center_stepper.step()
        self.criterion.centers.grad = None

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.criterion.forget()  # embeddings of a skipped step

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if not has_gradients(self.trainer.optimizers[0]):
            self.criterion.forget()  # embeddings of a batch without a backward pass
        return super().training_step(batch, batch_idx)

    def configure_callbacks(self) -> list[Callback]:
        return [*super().configure_callbacks(), *([ClassMeanCenters()] if self.center_init == "class_means" else [])]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self._center_stepper is not None:
            checkpoint["center_optimizer_state"] = self._center_stepper.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        # A resumed fit builds the center optimizer later, in configure_optimizers. Within a fit, `LearningRateFinder`
        # restores the state from before its trial.
        self._restored_center_state = checkpoint.get("center_optimizer_state") if self.is_fitting else None
        if self._restored_center_state is not None and self._center_stepper is not None:
            self._center_stepper.load_state_dict(self._restored_center_state)


def _check_center_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer that can't take sparse gradients, or that would move classes that a batch lacks."""
    allowed = (torch.optim.SGD, torch.optim.Adagrad, torch.optim.SparseAdam)
    name = type(optimizer).__name__
    if not isinstance(optimizer, allowed):
        raise UserError(
            f"center_optimizer is {name}, which takes no sparse gradients: use SGD (lr is alpha), Adagrad or SparseAdam"
        )
    for option in ("momentum", "weight_decay", "fused", "maximize"):
        if value := optimizer.param_groups[0].get(option):
            raise UserError(
                f"center_optimizer {name} has {option} {value}: leave it out, since the centers of classes that a "
                "batch lacks must not move"
            )
