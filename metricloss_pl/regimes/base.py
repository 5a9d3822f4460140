"""Base class of the training regimes."""

from __future__ import annotations

import copy
import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric, MetricCollection

from metricloss_pl import callbacks
from metricloss_pl.backbones import Backbone
from metricloss_pl.batch_norms import frozen_batch_statistics
from metricloss_pl.callbacks.checks import is_log_step
from metricloss_pl.callbacks.rejection import Rejection
from metricloss_pl.callbacks.schedule_length import check_end
from metricloss_pl.checkpoints import (
    check_facts,
    load_trusted,
    passed_arguments,
    plain_settings,
)
from metricloss_pl.class_weights import ClassWeights, given_weights
from metricloss_pl.data.preparation import ImageLike
from metricloss_pl.errors import UserError, check_choice, check_distinct, plural
from metricloss_pl.metrics import accuracies
from metricloss_pl.mixing import Mixing
from metricloss_pl.optimizers import check_optimizer, exempt_norm_and_bias, loss_with_gradients, sgd
from metricloss_pl.regimes.distillation import Distillation
from metricloss_pl.regimes.prediction import Predictions, predict_images

if TYPE_CHECKING:
    from metricloss_pl.class_embeddings import Hierarchy
from metricloss_pl.states import check_finite, where_classes_differ, where_states_differ

__all__ = ["Classifier"]

_CALLBACKS: tuple[type[Callback], ...] = (
    callbacks.DatasetFacts,
    callbacks.PerStepSeeding,
    callbacks.TrainingChecks,
    callbacks.TemperatureScaling,
    callbacks.RejectionThreshold,
    callbacks.FoundLearningRate,
    callbacks.ScheduleLength,
    callbacks.LightningFixes,
)


class Classifier(LightningModule, ABC):
    """Base class of the regimes: images (B, C, H, W) -> features (B, F) -> embeddings (B, D) -> class scores (B, C).

    A regime adds what it owns (a head, centers, class embeddings) and implements `losses` and `class_scores`. The class
    with the largest score is the prediction.

    Images are integers of their type's whole range, or floats in [0, 1]. The model itself normalizes them by the mean
    and standard deviation of the training images, which come from the data module and are kept in the checkpoint.

    `configure_callbacks` brings `DatasetFacts`, `PerStepSeeding`, `TrainingChecks`, `TemperatureScaling`,
    `RejectionThreshold`, `ScheduleLength`, `FoundLearningRate` and `LightningFixes`. A callback of the same type, or of
    a subclass, in the Trainer takes the place of each. A subclass that overrides `configure_callbacks` extends the list
    of `super()`.

    Args:
        num_classes: Number of classes C; linked from the data on the command line.
        backbone: Network from images to features (B, F).
        class_names: Names in the order of the labels; linked from the data on the command line. A checkpoint with other
            names is refused. None: "0", "1", ...
        embedding_dim: Width D of a linear layer on the features. None: the features are the embeddings.
        num_features: Width F of the features. None: the attribute `num_features` of the backbone.
        optimizer: Function from parameters to an optimizer.
        lr_scheduler: Function from an optimizer to a learning-rate schedule. None: a constant rate.
        lr_scheduler_interval: Whether the schedule steps once per `epoch` or per `step`.
        class_weights: Factor on the loss of each image by its class; the mean is over the images, as without weights. A
            list, or a mapping from names to weights (1 for the others). `balanced`: N / (C * N_class), from the counts
            of the training set. None: 1.
        batch_mixing: `CutMix` or `MixUp` of the training images, within the batch of each process; regimes with centers
            need its `same_class`. None: no mixing.
        distillation: `Distillation` of trained networks into this one. None: training on the labels alone.
        decay_norm_and_bias: Whether weight decay acts on all parameters. False: on the weights of convolutions and
            dense layers only.

    Raises:
        UserError: An argument is out of its range, the names contradict `num_classes`, or the width of the features is
            unknown.
    """

    mixes_classes = True  # whether the loss allows images mixed of two classes
    anchor_name = "anchor"  # name of one of the class_anchors in plots
    class_hierarchy: Hierarchy | None = None  # hierarchy that the class_anchors are derived from

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        class_names: Sequence[str] | None = None,
        embedding_dim: int | None = None,
        num_features: int | None = None,
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
        class_weights: ClassWeights | None = None,
        batch_mixing: Mixing | None = None,
        distillation: Distillation | None = None,
        decay_norm_and_bias: bool = True,
    ) -> None:
        super().__init__()
        with warnings.catch_warnings(action="ignore"):  # a module among them is left out of the checkpoint
            self.save_hyperparameters()
        self._passed_arguments = passed_arguments(self)
        if not isinstance(backbone, nn.Module):
            raise UserError(f"backbone is {backbone!r}; it must be a module, after num_classes")
        names = [str(label) for label in range(num_classes)] if class_names is None else list(class_names)
        if num_classes < 2:
            raise UserError(f"the data have {num_classes} class: at least 2 are needed")
        if len(names) != num_classes:
            raise UserError(f"{plural(num_classes, 'class')} and {plural(len(names), 'class name')}: they must agree")
        check_distinct("class_names", names)
        check_choice("lr_scheduler_interval", lr_scheduler_interval, Literal["epoch", "step"])
        if embedding_dim is not None and embedding_dim < 1:
            raise UserError(f"embedding_dim is {embedding_dim}; it must be at least 1, or null for the features")
        if num_features is None and not isinstance(num_features := getattr(backbone, "num_features", None), int):
            raise UserError(f"backbone {type(backbone).__name__} has no num_features: give model.num_features")
        if batch_mixing is not None and not self.mixes_classes:
            batch_mixing.check_within_classes(type(self).__name__)
        check_optimizer(optimizer, lr_scheduler)
        self.num_classes, self.class_names = num_classes, names
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.embedding = nn.Identity() if embedding_dim is None else nn.Linear(num_features, embedding_dim)
        self.embedding_dim = num_features if embedding_dim is None else embedding_dim
        self.optimizer, self.lr_scheduler, self.lr_scheduler_interval = optimizer, lr_scheduler, lr_scheduler_interval
        self.learning_rate: float | None = None  # in place of the optimizer's; set by LearningRateFinder
        self.decay_norm_and_bias, self.batch_mixing, self.distillation = decay_norm_and_bias, batch_mixing, distillation
        # Facts of the data and fitted values. They are no buffers, which weight averaging would average.
        self.mean, self.std = torch.zeros(1), torch.ones(1)
        self.temperature = 1.0
        self.rejection: Rejection | None = None  # threshold of images of no known class
        self.image_format: dict[str, int | None] | None = None  # how the images were prepared
        self.split: dict[str, Any] | None = None  # identifies the training, validation and test set
        self.balance_classes = isinstance(class_weights, str) and class_weights == "balanced"
        by_hand: Any = None if self.balance_classes else class_weights
        self.class_weights: Tensor | None = None if by_hand is None else given_weights(by_hand, names)

        self.val_metrics, self.test_metrics = (accuracies(num_classes, prefix=f"{stage}/") for stage in ("val", "test"))
        self.loss_means = nn.ModuleDict()

    # Implemented by a regime

    @abstractmethod
    def losses(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the losses of a batch as scalars: `loss` is minimized, its unweighted parts are logged.

        Args:
            embeddings: (B, D).
            labels: (B,) int64 in [0, C).
        """

    @abstractmethod
    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Return scores (B, C) of embeddings (B, D); the largest is the prediction."""

    def metric_embeddings(self, embeddings: Tensor) -> Tensor:
        """Return embeddings (B, D) in the space in which the regime compares them."""
        return embeddings

    @property
    def class_anchors(self) -> Tensor | None:
        """Points (C, D) that represent the classes among the `metric_embeddings`, such as centers, if there are any."""
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the parameter groups of the optimizer; settings in a group replace those of the optimizer."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    def reduce_loss(self, values: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over the batch of per-image losses (B,), weighted by `class_weights` where there are any."""
        if self.class_weights is None:
            return values.mean()
        self.class_weights = self.class_weights.to(labels.device)
        return (values * self.class_weights[labels]).mean()

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return rows (N, ...) of all processes as (N * processes, ...), with gradients; N is the same on each."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return rows
        gathered = self.all_gather(rows, sync_grads=rows.requires_grad)
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    @property
    def is_fitting(self) -> bool:
        """True while a Trainer runs `fit`, also one that resumes from a checkpoint."""
        try:
            return self.trainer.state.fn == TrainerFn.FITTING
        except RuntimeError:  # no Trainer is attached
            return False

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores (B, C) of images (B, C, H, W)."""
        return self.class_scores(self.embed(images))

    def normalize(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W), integers or floats in [0, 1], as the backbone takes them."""
        scale = 1.0 if images.is_floating_point() else float(torch.iinfo(images.dtype).max)
        dtype = next(self.parameters()).dtype
        if self.mean.device != images.device:  # older versions of torch export no assignment
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        mean, std = (values.to(dtype).view(-1, 1, 1) for values in (self.mean, self.std))
        return ((images.to(dtype) / scale - mean) / std).contiguous(memory_format=torch.channels_last)

    def embed(self, images: Tensor) -> Tensor:
        """Return embeddings (B, D) of images (B, C, H, W), integers or floats in [0, 1], or of features (B, F)."""
        embeddings: Tensor = self.embedding(images if images.ndim == 2 else self.backbone(self.normalize(images)))
        return embeddings

    def embed_views(self, images: Tensor) -> Tensor:
        """Return embeddings (B, D) of images (B, C, H, W), or the mean `metric_embeddings` of views (B, V, C, H, W)."""
        if images.ndim < 5:
            return self.embed(images)
        return torch.stack([self.metric_embeddings(self.embed(view)) for view in images.unbind(1)]).mean(0)

    def probabilities(self, class_scores: Tensor) -> Tensor:
        """Return softmax(class_scores / T), (B, C), with T fitted on the validation set, or 1 without one."""
        return torch.softmax(class_scores.float() / self.temperature, dim=1)

    def rejects(self, embeddings: Tensor) -> Tensor | None:
        """Return whether embeddings (B, D) are farther from all classes than the threshold, or None without one."""
        return None if self.rejection is None else self.rejection.distances(self, embeddings) > self.rejection.threshold

    def predict(self, images: ImageLike | Iterable[ImageLike], batch_size: int = 64) -> Predictions:
        """Return the class names and calibrated probabilities of images, prepared as the training images were.

        Args:
            images: Files, Pillow images, arrays (H, W) or (H, W, C), or tensors (C, H, W); one of these or several.
                Arrays and tensors are uint8, uint16 or floating-point in [0, 1].
            batch_size: Images per step.

        Raises:
            UserError: An image cannot be read, or the model was not trained on an `ImageDataModule`.
        """
        return predict_images(self, images, batch_size)

    def configure_callbacks(self) -> list[Callback]:
        """Return the callbacks that every regime needs, without those that the Trainer has already."""
        given: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [cls() for cls in _CALLBACKS if not any(isinstance(callback, cls) for callback in given)]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        if self.batch_mixing is not None:
            images, partners, share = self.batch_mixing(images, labels)
        embeddings = self.embed(images)
        losses = self.losses(embeddings, labels)
        if self.batch_mixing is not None and not self.batch_mixing.same_class:
            with frozen_batch_statistics(self):
                other = self.losses(embeddings, labels[partners])  # also if share is 1: all processes do the same
            losses = {name: share * value + (1 - share) * other[name] for name, value in losses.items()}
        if self.distillation is not None:
            with frozen_batch_statistics(self):
                losses = self.distillation(losses, images, self.class_scores(embeddings))
        if is_log_step(self.trainer, batch_idx):  # each call costs 0.3 ms
            for name, value in losses.items():
                self.log(f"train/{name}", value.detach(), prog_bar=name == "loss", batch_size=len(labels))
        return losses["loss"]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "test", self.test_metrics)

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, metrics: MetricCollection) -> dict[str, Tensor]:
        images, labels = batch
        embeddings = self.embed_views(images)
        losses, scores = self.losses(embeddings, labels), self.class_scores(embeddings)
        metrics.update(scores, labels)
        named = dict(metrics.items())
        monitor = getattr(self.trainer.checkpoint_callback, "monitor", None)
        shown = monitor if monitor in named else "val/accuracy"  # beside the loss, while it trains
        for name, metric in named.items():
            self.log(name, metric, prog_bar=name == shown, on_step=False, on_epoch=True)
        for name, value in losses.items():
            key = f"{stage}/{name}"
            if key not in self.loss_means:  # half types, the default of bf16-true, are too coarse for sums
                dtype = torch.promote_types(value.dtype, torch.float32)
                self.loss_means[key] = MeanMetric().set_dtype(dtype).to(self.device)
            mean = self.loss_means[key]
            assert isinstance(mean, MeanMetric)
            mean.update(value, len(labels))
            self.log(key, mean, on_step=False, on_epoch=True, metric_attribute=f"loss_means.{key}")
        return {
            "loss": losses["loss"],
            "class_scores": scores,
            "predictions": scores.argmax(1),
            "labels": labels,
            "embeddings": embeddings,
        }

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return probabilities, embeddings and rejections of a batch: images, or (images, labels[, index])."""
        images, *rest = batch if isinstance(batch, (tuple, list)) else [batch]
        embeddings = self.embed_views(images)
        predictions = {"probabilities": self.probabilities(self.class_scores(embeddings)), "embeddings": embeddings}
        if (rejected := self.rejects(embeddings)) is not None:
            predictions["rejected"] = rejected
        return {"index": rest[1], **predictions} if len(rest) > 1 else predictions

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self.distillation is not None:
            self.distillation.load(self)
        groups = self.parameter_groups()
        optimizer = self.optimizer(groups if self.decay_norm_and_bias else exempt_norm_and_bias(groups, self))
        if self.lr_scheduler is None:
            return optimizer
        scheduler: Any = self.lr_scheduler(optimizer)
        check_end(scheduler, self)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_scheduler_interval}
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            config["monitor"] = getattr(scheduler, "monitor", "val/loss")
        return {"optimizer": optimizer, "lr_scheduler": config}  # type: ignore[return-value]

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step as Lightning does, also with a loss scaler after a pass without backward, where Lightning fails."""
        closure = optimizer_closure
        if closure is not None and getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            closure = functools.partial(loss_with_gradients, closure, optimizer)
        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_finite(checkpoint["state_dict"], f"at step {checkpoint['global_step']}, so no checkpoint is written")
        checkpoint["hyper_parameters"] = plain_settings(checkpoint.get("hyper_parameters", {}), self._passed_arguments)
        checkpoint |= {
            "class_names": self.class_names,
            "image_format": self.image_format,
            "split": self.split,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "temperature": self.temperature,
            "rejection": None if self.rejection is None else self.rejection.plain(),
        }
        if self.balance_classes and self.class_weights is not None:  # given weights are among the hyper-parameters
            checkpoint["class_weights"] = self.class_weights.tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if (names := checkpoint.get("class_names", self.class_names)) != self.class_names:
            raise UserError(f"the checkpoint {where_classes_differ(names, self.class_names)}")
        check_finite(checkpoint["state_dict"], "in the checkpoint: take an earlier one")
        if not self.is_fitting and "current_model_state" in checkpoint:  # load averaged weights, not those behind them
            checkpoint["current_model_state"] = checkpoint["state_dict"]
        check_facts(checkpoint)
        self.image_format, self.split = checkpoint["image_format"], checkpoint["split"]
        self.mean, self.std = torch.tensor(checkpoint["mean"]), torch.tensor(checkpoint["std"])
        self.temperature = checkpoint["temperature"]
        self.rejection = Rejection.from_plain(checkpoint.get("rejection"), self)
        if self.balance_classes and "class_weights" in checkpoint:
            self.class_weights = given_weights(checkpoint["class_weights"], self.class_names)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, classes: Iterable[type] = (), **kwargs: Any) -> Any:
        """Load a regime as Lightning does, if its settings name only trusted classes and those in `classes`."""
        return load_trusted(super().load_from_checkpoint, checkpoint_path, args, kwargs, classes)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights as torch does, and name the first tensor that does not fit."""
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            if (line := where_states_differ(state_dict, self.state_dict())) is None:
                raise
            raise UserError(f"the checkpoint {line}: give the settings that it was trained with") from error

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # On the command line, the functions that build optimizers hold the whole program and its data: share them.
        memo |= {id(value): value for value in vars(self).values() if isinstance(value, functools.partial)}
        memo[id(self)] = twin = type(self).__new__(type(self))
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin
