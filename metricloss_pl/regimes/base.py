"""What every training regime shares: images to embeddings, the steps, metrics, and the injected optimizer."""

from __future__ import annotations

import copy
import functools
import inspect
import warnings
from abc import ABC, abstractmethod
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from metricloss_pl._compat import start_epoch_after_finished_one
from metricloss_pl.backbones import Backbone
from metricloss_pl.checkpoints import (
    import_paths,
    plain_settings,
    read_checkpoint,
    tensor_not_finite,
    trusted_imports,
    where_classes_differ,
    where_states_differ,
    with_given_classes,
)
from metricloss_pl.data import ImageDataModule
from metricloss_pl.data.preparation import ImageLike
from metricloss_pl.errors import UserError, check_choice, plural, raised_in, reason
from metricloss_pl.metrics import BalancedAccuracy, Temperature
from metricloss_pl.mixing import Mixing
from metricloss_pl.regimes._chance import Chance
from metricloss_pl.regimes._evaluation import Predictions, predict_images
from metricloss_pl.regimes._mixing import keep_statistics
from metricloss_pl.regimes._optimizer import Decayed, check_optimizer, decay_weights_alone, has_gradients
from metricloss_pl.regimes._schedule_length import Interval, check_end, fill_in_length
from metricloss_pl.regimes._weight_averaging import (
    copy_module_again,
    evaluate_averaged_weights,
    save_fitted_temperature,
    warn_of_late_start,
)

if TYPE_CHECKING:
    from metricloss_pl.class_embeddings import Hierarchy

__all__ = ["ClassWeights", "Classifier", "Decayed", "Interval", "sgd"]

ClassWeights = Literal["balanced"]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """The default optimizer: SGD at learning rate 0.05 with momentum 0.9."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


class Classifier(LightningModule, ABC):
    """Base of the regimes: images (B, C, H, W) -> features (B, F) -> embeddings (B, D) -> class scores (B, C).

    A regime adds what it owns (a head, centers, class embeddings) and says two things: :meth:`losses` of a batch of
    embeddings and :meth:`class_scores` of embeddings, whose largest is the prediction.

    Images are integers of their type's whole range, or floats in [0, 1]; the module itself normalises them by the
    training images' mean and deviation, which it takes from an :class:`~metricloss_pl.data.ImageDataModule` and keeps
    in its checkpoint. Chance within the network, such as dropout, draws from (torch's seed, epoch, batch, process), so
    that an interrupted run goes on as if it had not been.

    Args:
        num_classes: C; linked from the data on the command line.
        backbone: Network from images to features, with an attribute ``num_features``.
        class_names: Names in the labels' order; linked from the data on the command line. A checkpoint of other names
            is refused. None: "0", "1", ...
        embedding_dim: D of a linear layer on the features; None: the features as they are.
        optimizer: From parameters to an optimizer.
        lr_scheduler: From an optimizer to a learning-rate schedule.
        lr_scheduler_interval: Whether the schedule steps each ``epoch`` or each ``step``.
        class_weights: ``balanced``: an image's loss weighs N / (C * N_class), counts of the training part. None: 1.
        batch_mixing: ``CutMix`` or ``MixUp`` of the training images, each process within its own batch. None: no
            mixing.
        weight_decay_on: What the optimizer's weight decay acts on: ``all`` parameters, or ``weights`` of convolutions
            and dense layers alone, not biases and the parameters of norms.

    Raises:
        UserError: A class count that the names contradict, or a backbone without ``num_features``.
    """

    mean: Tensor
    std: Tensor
    temperature: Tensor
    class_weights: Tensor
    _fitted_temperature: Tensor | None

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        class_names: Sequence[str] | None = None,
        embedding_dim: int | None = None,
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Interval = "epoch",
        class_weights: ClassWeights | None = None,
        batch_mixing: Mixing | None = None,
        weight_decay_on: Decayed = "all",
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():  # a module among them is left out of the checkpoint, below
            warnings.filterwarnings("ignore", message="Attribute '.*' is an instance of `nn.Module`")
            self.save_hyperparameters()
        names = [str(label) for label in range(num_classes)] if class_names is None else list(class_names)
        if num_classes < 2:
            raise UserError(f"the data have {num_classes} class: at least 2 are needed to tell apart")
        if len(names) != num_classes:
            given = plural(len(names), "class name")
            raise UserError(f"{plural(num_classes, 'class')} and {given}: they must be equally many")
        check_choice("lr_scheduler_interval", lr_scheduler_interval, Interval)
        check_choice("class_weights", class_weights, ClassWeights | None)
        check_choice("weight_decay_on", weight_decay_on, Decayed)
        if embedding_dim is not None and embedding_dim < 1:
            raise UserError(
                f"embedding_dim is {embedding_dim}; it must be at least 1, or null for the features as they are"
            )
        if not isinstance(num_features := getattr(backbone, "num_features", None), int):
            raise UserError(f"backbone {type(backbone).__name__} has no num_features: give it the width of its output")
        self.num_classes = num_classes
        self.class_names = names
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.embedding = nn.Identity() if embedding_dim is None else nn.Linear(num_features, embedding_dim)
        self.embedding_dim = num_features if embedding_dim is None else embedding_dim
        self.optimizer = optimizer
        self._learning_rate: float | None = None
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.weight_decay_on = weight_decay_on
        self.balance_classes = class_weights == "balanced"
        self.batch_mixing = batch_mixing
        self.image_format: dict[str, int | None] | None = None
        self.split: dict[str, Any] | None = None  # what tells the images' split from others, in a run's checkpoints
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("std", torch.ones(1))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("class_weights", torch.ones(num_classes))

        accuracies: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
            "balanced_accuracy": BalancedAccuracy(num_classes),
        }
        if num_classes > 5:
            accuracies["top5_accuracy"] = MulticlassAccuracy(num_classes, 5, average="micro", validate_args=False)
        # Groups would be formed by the first batch, and join top-1 and top-5 for ever where they agree on that one.
        metrics = MetricCollection(accuracies, compute_groups=False)
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.loss_means = nn.ModuleDict()
        self.calibration = Temperature()
        check_optimizer(optimizer, lr_scheduler)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # What builds the optimizers is shared: on the command line it holds on to the whole program, data and all.
        memo |= {id(value): value for value in vars(self).values() if isinstance(value, functools.partial)}
        memo[id(self)] = twin = type(self).__new__(type(self))
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    # ------------------------------------------------------------------------------------------- what a regime says

    @abstractmethod
    def losses(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Loss of a batch: ``loss`` is what training minimises, the rest its unweighted parts, to be logged.

        Args:
            embeddings: (B, D).
            labels: (B,) int64 in [0, C).

        Returns:
            Scalars by name.
        """

    @abstractmethod
    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Scores (B, C) of embeddings (B, D); the largest is the prediction."""

    def metric_embeddings(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, D) in the space in which the regime compares them, to be drawn and measured; as they are."""
        return embeddings

    class_hierarchy: Hierarchy | None = None  # that the class_anchors are of
    kept_in_checkpoint: tuple[str, ...] = ()  # arguments that name what a checkpoint holds, and may be gone then

    anchor_name = "prototype"  # what pictures call one of the class_anchors

    @property
    def class_anchors(self) -> Tensor | None:
        """Points (C, D) that stand for the classes among :meth:`metric_embeddings`, to be drawn; None where there "
        "are none.
        """
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer; a regime may give some of its parameters settings of their own.

        With ``weight_decay_on="weights"``, a group without a weight decay of its own is parted before the optimizer
        gets it.
        """
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    @property
    def is_fitting(self) -> bool:
        """Return whether a Trainer is running `fit`, possibly resumed from a checkpoint."""
        try:
            return self.trainer.state.fn == TrainerFn.FITTING
        except RuntimeError:  # no Trainer is attached
            return False

    def reduce_loss(self, values: Tensor, labels: Tensor) -> Tensor:
        """Mean over the batch of per-image losses (B,), weighted by class where the regime was told to.

        The weights have mean 1 over the training images, so the divisor stays B and processes average exactly.
        """
        return (values * self.class_weights[labels]).mean() if self.balance_classes else values.mean()

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Rows (N, ...) of all processes as (N * processes, ...), gradients flowing back; N is the same on each."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return rows
        gathered = self.all_gather(rows, sync_grads=rows.requires_grad)
        assert isinstance(gathered, Tensor)
        return gathered.flatten(0, 1)

    # ----------------------------------------------------------------------------------------------------- the flow

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W), integers or floats in [0, 1], to embeddings (B, D)."""
        scale = 1.0 if images.is_floating_point() else float(torch.iinfo(images.dtype).max)
        shape = (-1, 1, 1)
        images = (images.to(self.mean.dtype) / scale - self.mean.view(shape)) / self.std.view(shape)
        embeddings: Tensor = self.embedding(self.backbone(images.contiguous(memory_format=torch.channels_last)))
        return embeddings

    def embed_views(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to embeddings (B, D); of views (B, V, C, H, W), the mean of :meth:`metric_embeddings`.

        The mean point has the logits that are the views' mean. Its cosines and its negative squared distances are the
        views' mean too, up to a factor or a term that is the same for all classes.
        """
        if images.ndim < 5:
            embeddings: Tensor = self(images)
            return embeddings
        return torch.stack([self.metric_embeddings(self(view)) for view in images.unbind(1)]).mean(0)

    def probabilities(self, class_scores: Tensor) -> Tensor:
        """softmax(class_scores / T), (B, C); T is fitted on the validation part and 1 where there is none."""
        return torch.softmax(class_scores.float() / self.temperature.float(), dim=1)

    # ----------------------------------------------------------------------------------------------------- training

    def setup(self, stage: str) -> None:
        self._chance = Chance()
        if stage != "fit":
            return
        data = getattr(self.trainer, "datamodule", None)
        self._fitted_temperature = None
        if isinstance(data, ImageDataModule):
            mean, std = data.normalization
            self.mean = torch.tensor(mean, dtype=self.mean.dtype, device=self.device)
            self.std = torch.tensor(std, dtype=self.std.dtype, device=self.device)
            self.image_format = data.image_format
        if self.balance_classes:
            if not isinstance(data, ImageDataModule):
                raise UserError("class_weights is 'balanced', which needs an ImageDataModule that counts the classes")
            if data.balanced_sampling or data.samples_per_class_in_batch is not None:
                setting = "balanced_sampling" if data.balanced_sampling else "samples_per_class_in_batch"
                raise UserError(f"class_weights and {setting} both even out the classes: choose one of them")
            counts = data.class_counts.to(self.device)
            self.class_weights.copy_(counts.sum() / (self.num_classes * counts))
        copy_module_again(self.trainer, self, stage)
        warn_of_late_start(self.trainer)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = self.parameter_groups()
        groups = decay_weights_alone(groups, self) if self.weight_decay_on == "weights" else groups
        own_rates = [group.get("lr") for group in groups]
        optimizer = self.optimizer(groups)
        if len(own_rates) != len(optimizer.param_groups):  # it has made groups of its own
            own_rates = [None] * len(optimizer.param_groups)
        self._own_rates = own_rates
        for group, own in zip(optimizer.param_groups, self._own_rates, strict=True):
            if own is None and self._learning_rate is not None:
                group["lr"] = self._learning_rate
        if self.lr_scheduler is None:
            return optimizer
        scheduler: Any = self.lr_scheduler(optimizer)
        check_end(scheduler, self.trainer)
        plan: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_scheduler_interval}
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            plan["monitor"] = getattr(scheduler, "monitor", "val/loss")
        return {"optimizer": optimizer, "lr_scheduler": plan}  # type: ignore[return-value]

    def on_train_epoch_start(self) -> None:
        # A pass without backward, as `StochasticWeightAveraging` makes one at the end, would step with them once more.
        self.zero_grad()

    @property
    def learning_rate(self) -> float | None:
        """The peak learning rate: that of the optimizer as it was given, unless set.

        Lightning's `LearningRateFinder` sets it. Parameter groups with a rate of their own keep that.
        """
        if self._learning_rate is not None:
            return self._learning_rate
        rate: float | None = self.optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0].get("lr")
        return rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._learning_rate = value
        for plan in self.trainer.lr_scheduler_configs if self.is_fitting else []:
            if hasattr(plan.scheduler, "base_lrs"):  # not where it follows a metric
                plan.scheduler.base_lrs = [value if own is None else own for own in self._own_rates]

    def on_train_start(self) -> None:
        start_epoch_after_finished_one(self.trainer)
        if self._learning_rate is not None:  # Lightning has set it in all groups
            for group, own in zip(self.trainer.optimizers[0].param_groups, self._own_rates, strict=True):
                group["lr"] = group["lr"] if own is None else own

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        for plan in self.trainer.lr_scheduler_configs:
            fill_in_length(plan.scheduler, self.trainer, self.lr_scheduler_interval)
        self._chance.seed_step(self.device, self.current_epoch, batch_idx, self.global_rank)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        try:
            losses = self._training_losses(*batch)
        except ValueError as error:
            if len(batch[1]) > 1 or not raised_in(error, "torch.nn"):
                raise
            raise UserError(
                "a process has one image in a training batch, and batch normalization needs two: raise "
                "data.batch_size, or give more images or fewer processes"
            ) from error
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if batch_idx == 0 or (every and (batch_idx + 1) % every == 0):
            self._check_finite(losses)
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), prog_bar=name == "loss", batch_size=len(batch[1]))
        return losses["loss"]

    def _training_losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if self.batch_mixing is None:
            return self.losses(self(images), labels)
        images, partners, share = self.batch_mixing(images)
        return self._mixed_losses(self(images), labels, labels[partners], share)

    def _mixed_losses(self, embeddings: Tensor, labels: Tensor, others: Tensor, share: float) -> dict[str, Tensor]:
        """Each part of the loss as share * L(labels) + (1 - share) * L(others), of one batch of embeddings."""
        own = self.losses(embeddings, labels)
        with keep_statistics(self):
            other = self.losses(embeddings, others)  # also where share is 1: all processes do alike
        return {name: share * value + (1 - share) * other[name] for name, value in own.items()}

    def _check_finite(self, losses: dict[str, Tensor]) -> None:
        for name, value in sorted(losses.items(), key=lambda item: item[0] == "loss"):  # the part before the total
            if not torch.isfinite(value):
                rates = ", ".join(f"{group['lr']:g}" for group in self.trainer.optimizers[0].param_groups)
                raise UserError(
                    f"train/{name} is {value.item()} at step {self.trainer.global_step} of epoch "
                    f"{self.current_epoch} (learning rate {rates}): lower the learning rate or the loss weight, or set "
                    "trainer.gradient_clip_val; the last checkpoint stays as it was"
                )

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step as Lightning does, also with a loss scaler after a pass without backward, where it would fail."""
        closure = optimizer_closure
        if closure is not None and getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            closure = functools.partial(_loss_with_gradients, closure, optimizer)
        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def lr_scheduler_step(self, scheduler: Any, metric: Any | None) -> None:
        fill_in_length(scheduler, self.trainer, self.lr_scheduler_interval)
        super().lr_scheduler_step(scheduler, metric)

    def on_train_end(self) -> None:
        self._chance.end()
        if self._fitted_temperature is not None:  # weight averaging has put an average in its place
            self.temperature.copy_(self._fitted_temperature)

    # --------------------------------------------------------------------------------------------------- evaluation

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "val", self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "test", self.test_metrics)

    def _evaluate(self, batch: tuple[Tensor, Tensor], part: str, metrics: MetricCollection) -> dict[str, Tensor]:
        images, labels = batch
        embeddings = self.embed_views(images)
        losses, scores = self.losses(embeddings, labels), self.class_scores(embeddings)
        metrics.update(scores, labels)
        if part == "val":
            self.calibration.update(scores, labels)
        for name, value in losses.items():
            self._loss_mean(part, name).update(value, len(labels))
        for name, metric in metrics.items():
            self.log(name, metric, prog_bar=name == "val/accuracy", on_step=False, on_epoch=True)
        predictions = scores.argmax(1)
        return {"loss": losses["loss"], "predictions": predictions, "labels": labels, "embeddings": embeddings}

    def _loss_mean(self, part: str, name: str) -> MeanMetric:
        """The mean of a part of the loss over all images of all processes, which Lightning's own mean is not quite."""
        key = f"{part}/{name}"
        if key not in self.loss_means:
            # Under bf16-true the default type within a step is bfloat16, too coarse for sums.
            self.loss_means[key] = MeanMetric().set_dtype(torch.float32).to(self.device)
        mean = self.loss_means[key]
        assert isinstance(mean, MeanMetric)
        return mean

    def on_validation_epoch_end(self) -> None:
        self._log_losses("val")
        fitted = self.calibration.compute()
        self.calibration.reset()
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.temperature.copy_(fitted)
            self._fitted_temperature = fitted

    def on_test_epoch_end(self) -> None:
        self._log_losses("test")

    def _log_losses(self, part: str) -> None:
        for key, mean in self.loss_means.items():
            if key.startswith(f"{part}/"):
                assert isinstance(mean, MeanMetric)
                self.log(key, mean.compute(), sync_dist=True)  # equal on all processes already
                mean.reset()

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Probabilities and embeddings of a batch: images, or (images, labels[, index])."""
        images, *rest = batch if isinstance(batch, (tuple, list)) else [batch]
        index = rest[1] if len(rest) > 1 else None
        embeddings = self.embed_views(images)
        predictions = {"probabilities": self.probabilities(self.class_scores(embeddings)), "embeddings": embeddings}
        return predictions if index is None else {"index": index, **predictions}

    def predict(self, images: ImageLike | Iterable[ImageLike], batch_size: int = 64) -> Predictions:
        """Return the class names and calibrated probabilities of images, prepared as the training images were.

        Args:
            images: Files, images of Pillow, arrays (H, W) or (H, W, 3), or tensors (C, H, W); or a single one of these.
                Arrays and tensors are uint8, uint16 or floating-point in [0, 1].
            batch_size: Images per step.

        Raises:
            UserError: An image cannot be read, or the training images were of no `ImageDataModule`.
        """
        return predict_images(self, images, batch_size)

    # -------------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        save_fitted_temperature(checkpoint)
        if name := tensor_not_finite(checkpoint["state_dict"]):
            raise UserError(
                f"{name} is not finite at step {checkpoint['global_step']}, so no checkpoint is written: lower the "
                "learning rate, or set trainer.gradient_clip_val; the last checkpoint stays as it was"
            )
        settings = plain_settings(checkpoint.get("hyper_parameters", {}))
        arguments = inspect.signature(type(self).__init__).parameters
        if not any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
            # The command line notes all that the data tell, also what this regime does not ask for.
            settings = {name: value for name, value in settings.items() if name in arguments or name.startswith("_")}
        checkpoint["hyper_parameters"] = settings
        checkpoint["class_names"] = self.class_names
        checkpoint["images"] = self.image_format
        for part in ("lr_schedulers", "callbacks"):
            if part in checkpoint:
                checkpoint[part] = _without_functions(checkpoint[part])
        checkpoint["split"] = self.split

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, classes: Iterable[type] = (), **kwargs: Any) -> Any:
        """Load a regime as Lightning does, from a sound file whose settings name nothing but trusted classes.

        Args:
            checkpoint_path: The file.
            args: Further arguments of Lightning's method.
            classes: Classes of a user's own that the settings may name, such as that of the backbone.
            kwargs: Further arguments of Lightning's method, and settings in place of those in the checkpoint.
        """
        settings: dict[str, Any] = {}
        classes, changed = list(classes), {}
        if isinstance(checkpoint_path, (str, Path)) and "://" not in str(checkpoint_path):
            saved = read_checkpoint(checkpoint_path)["hyper_parameters"]
            settings = with_given_classes(saved, classes)
            changed = {name: value for name, value in settings.items() if value != saved[name]}
        own = import_paths(classes)
        others = import_paths(kwargs) | own | {path for path in import_paths(settings) if import_paths(path) & own}
        try:
            with trusted_imports(f"checkpoint {checkpoint_path}", others):
                return super().load_from_checkpoint(checkpoint_path, *args, **{**changed, **kwargs})
        except ArgumentError as error:
            raise UserError(f"checkpoint {checkpoint_path} has settings that do not fit: {reason(error)}") from error

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights as torch does, except that the first tensor that does not fit is named in one line."""
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            if (line := where_states_differ(state_dict, self.state_dict())) is None:
                raise
            raise UserError(f"the checkpoint {line}: give the settings that it was trained with") from error

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if (names := checkpoint.get("class_names", self.class_names)) != self.class_names:
            raise UserError(f"the checkpoint {where_classes_differ(names, self.class_names)}")
        state = checkpoint["state_dict"]
        if name := tensor_not_finite(state):
            raise UserError(f"the checkpoint's {name} is not finite: it can't predict; take an earlier checkpoint")
        for name in ("std", "temperature"):
            if not (state.get(name, getattr(self, name)) > 0).all():
                raise UserError(f"the checkpoint's {name} is not above 0: it can't predict; take another checkpoint")
        if not self.is_fitting:
            evaluate_averaged_weights(checkpoint)
        self.image_format = checkpoint.get("images")
        self.split = checkpoint.get("split")
        for name in ("mean", "std"):  # as wide as the images have channels
            setattr(self, name, torch.empty_like(state.get(name, getattr(self, name))))


def _loss_with_gradients(closure: Callable[[], Any], optimizer: Optimizer | LightningOptimizer) -> Any:
    """Run the closure; return None, which tells Lightning not to unscale, where it has computed no gradients."""
    loss = closure()
    return loss if has_gradients(optimizer) else None


def _without_functions(state: Any) -> Any:
    """Return a nested state without functions, which `weights_only` refuses.

    Torch before 2.10 keeps one in the state of `SWALR`, whose constructor sets it anew.
    """
    if isinstance(state, dict):
        return {key: _without_functions(value) for key, value in state.items() if not inspect.isfunction(value)}
    return [_without_functions(value) for value in state] if isinstance(state, list) else state
