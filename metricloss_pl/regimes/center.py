"""Center loss beside softmax, the centers under an optimizer of their own (Wen et al., ECCV 2016)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from metricloss_pl.backbones import Backbone
from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import UserError, check_choice, refusing
from metricloss_pl.losses import CenterLoss
from metricloss_pl.losses import functional as F
from metricloss_pl.losses.center import CenterRule
from metricloss_pl.mixing import Mixing
from metricloss_pl.regimes._evaluation import evaluation_mode
from metricloss_pl.regimes._mixing import refuse_mixing
from metricloss_pl.regimes._optimizer import has_gradients
from metricloss_pl.regimes.base import Classifier, ClassWeights, Decayed, Interval, sgd

__all__ = ["CenterSoftmaxClassifier", "center_sgd"]


def center_sgd(parameters: Any) -> Optimizer:
    """The default center optimizer: SGD without momentum at alpha = 0.5."""
    return torch.optim.SGD(parameters, lr=0.5)


class CenterSoftmaxClassifier(Classifier):
    """Cross-entropy of a linear head + center_weight * half mean squared distance to the own center.

    The centers move by a closed-form rule, not by autograd, right after each step of the network's optimizer; the
    embeddings of all processes and of all accumulated micro-batches count. The Trainer's clipping, accumulation,
    precision and step count stay what they are without centers; a step that a loss scaler skips moves no center.

    Args:
        num_classes: C; linked from the data on the command line.
        backbone: Network from images to features, with an attribute ``num_features``.
        class_names: Names in the labels' order; linked from the data on the command line.
        embedding_dim: D of a linear layer on the features; None: the features as they are.
        center_weight: lambda, at least 0; the centers move alike for every value.
        center_rule: ``wen``: Eq. 4, delta_j = sum (c_j - x_i) / (1 + n_j). ``gradient``: pytorch-center-loss's
            sum 2 (c_j - x_i) / B, with its loss value, which has no 1/2.
        center_init: ``normal``, ``zeros``, or ``class_means`` of the un-augmented training images at the start.
        center_optimizer: From parameters to an optimizer that takes sparse gradients: SGD without momentum and weight
            decay (its lr is alpha), Adagrad or SparseAdam.
        label_smoothing: epsilon in [0, 1), for the cross-entropy.
        smoothing_target: ``all``: epsilon spread over all C classes (torch); ``non_target``: over the C - 1 wrong ones
            (Barz).
        optimizer: From parameters to an optimizer, for all but the centers.
        lr_scheduler: From an optimizer to a learning-rate schedule.
        lr_scheduler_interval: Whether the schedule steps each ``epoch`` or each ``step``.
        class_weights: ``balanced``: an image's loss weighs N / (C * N_class), counts of the training part. None: 1.
        batch_mixing: Not for this regime, since an image mixed of two classes has no one center.
        weight_decay_on: What the optimizer's weight decay acts on: ``all`` parameters, or ``weights`` of convolutions
            and dense layers alone, not biases and the parameters of norms.

    Raises:
        UserError: A negative weight, a mixing, or a center optimizer that would fail or move absent classes.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        class_names: Sequence[str] | None = None,
        embedding_dim: int | None = None,
        center_weight: float = 0.01,
        center_rule: CenterRule = "wen",
        center_init: Literal["normal", "zeros", "class_means"] = "normal",
        center_optimizer: OptimizerCallable = center_sgd,
        label_smoothing: float = 0.0,
        smoothing_target: F.SmoothingTarget = "all",
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Interval = "epoch",
        class_weights: ClassWeights | None = None,
        batch_mixing: Mixing | None = None,
        weight_decay_on: Decayed = "all",
    ) -> None:
        refuse_mixing(batch_mixing, type(self).__name__)
        super().__init__(
            num_classes=num_classes,
            backbone=backbone,
            class_names=class_names,
            embedding_dim=embedding_dim,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_scheduler_interval=lr_scheduler_interval,
            class_weights=class_weights,
            weight_decay_on=weight_decay_on,
        )
        check_choice("smoothing_target", smoothing_target, F.SmoothingTarget)
        if center_weight < 0:
            raise UserError(f"center_weight is {center_weight}; it must be at least 0")
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
        self._center_optimizer_state: dict[str, Any] | None = None

    def losses(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy and center loss of a batch: embeddings (B, D), labels (B,)."""
        values = F.cross_entropy(self.head(embeddings), labels, self.label_smoothing, self.smoothing_target, "none")
        cross_entropy = self.reduce_loss(values, labels)
        center_loss = self.reduce_loss(self.criterion(embeddings, labels), labels)
        # At lambda = 0 the product would still be nan for an infinite distance.
        loss = cross_entropy + self.center_weight * center_loss if self.center_weight else cross_entropy
        return {"loss": loss, "cross_entropy": cross_entropy, "center_loss": center_loss}

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Logits (B, C) of embeddings (B, D)."""
        logits: Tensor = self.head(embeddings)
        return logits

    anchor_name = "center"

    @property
    def class_anchors(self) -> Tensor:
        """The centers (C, D)."""
        return self.criterion.centers.detach()

    # ------------------------------------------------------------------------------------------------- center steps

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self._center_stepper = self._center_optimizer_state = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        plan = super().configure_optimizers()
        optimizer = plan["optimizer"] if isinstance(plan, dict) else plan
        assert isinstance(optimizer, Optimizer)
        optimizer.register_step_post_hook(self._step_centers)
        self._center_stepper = self.center_optimizer([self.criterion.centers])
        if self._center_optimizer_state is not None:
            self._center_stepper.load_state_dict(self._center_optimizer_state)
            self._center_optimizer_state = None
        return plan

    def _step_centers(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Move the centers after the network's step: a step that the loss scaler skips never comes here.

        Without gradients the network has not moved either: `StochasticWeightAveraging` ends with a pass over the data
        that computes none, and a `training_step` that returns None leaves none.
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
        self.criterion.forget()  # what a skipped step has left

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if not has_gradients(self.trainer.optimizers[0]):
            self.criterion.forget()  # what a batch without a backward pass has left

    def on_fit_start(self) -> None:
        if self.center_init == "class_means" and self.trainer.global_step == 0:
            self._set_centers_to_class_means()

    @torch.no_grad()
    def _set_centers_to_class_means(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            raise UserError("center_init is 'class_means', which needs an ImageDataModule for the first pass")
        sums = torch.zeros(self.num_classes, self.embedding_dim, dtype=torch.float64)
        counts = torch.zeros(self.num_classes)
        with evaluation_mode(self.trainer, self):
            for batch in data.train_eval_dataloader():
                images, labels = self.trainer.strategy.batch_to_device(batch, self.device)
                sums.index_add_(0, labels.cpu(), self(images).cpu().double())
                counts += torch.bincount(labels.cpu(), minlength=self.num_classes)
        sums = self.trainer.strategy.reduce(sums.float().to(self.device), reduce_op="sum")
        counts = self.trainer.strategy.reduce(counts.to(self.device), reduce_op="sum")
        self.criterion.centers.copy_(sums / counts.clamp_min(1)[:, None])

    # -------------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self._center_stepper is not None:
            checkpoint["center_optimizer_state"] = self._center_stepper.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        # Whoever reads the checkpoint for its weights begins with a new center optimizer. A resumed fit builds it in
        # configure_optimizers, later; within a fit, `LearningRateFinder` goes back to the state before its trial.
        state = checkpoint.get("center_optimizer_state") if self.is_fitting else None
        if state is not None and self._center_stepper is not None:
            self._center_stepper.load_state_dict(state)
        else:
            self._center_optimizer_state = state


def _check_center_optimizer(optimizer: Optimizer) -> None:
    """Refuse what can't take sparse gradients, or would move classes that a batch lacks."""
    allowed = (torch.optim.SGD, torch.optim.Adagrad, torch.optim.SparseAdam)
    name = type(optimizer).__name__
    if not isinstance(optimizer, allowed):
        raise UserError(
            f"center_optimizer is {name}, which takes no sparse gradients: use SGD (lr is alpha), Adagrad or SparseAdam"
        )
    for option in ("momentum", "weight_decay", "fused", "maximize"):
        if value := optimizer.param_groups[0].get(option):
            raise UserError(
                f"center_optimizer {name} has {option} {value}: leave it out, since centers move by sparse gradients, "
                "and those of classes absent from a batch must stay where they are"
            )
