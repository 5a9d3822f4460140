"""How a regime's embeddings lie: tight within classes, far between, and how much better on training images."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from metricloss_pl.callbacks._embed import embedded, evaluation_loaders, is_due
from metricloss_pl.errors import UserError
from metricloss_pl.metrics import BalancedAccuracy, EmbeddingGeometry, nearest_mean
from metricloss_pl.regimes import Classifier
from metricloss_pl.regimes._evaluation import evaluation_mode

__all__ = ["GeometryMonitor", "measure_parts"]


class GeometryMonitor(Callback):
    """Measure accuracy and embedding geometry on un-augmented training images and on the validation part.

    Logged are the values of :func:`measure_parts`, as ``geometry/train_<name>`` and ``geometry/val_<name>``; the
    difference of the two accuracies is the honest train-validation gap. Without an
    :class:`~metricloss_pl.data.ImageDataModule` they are of the validation images alone.

    Args:
        every_n_epochs: Epochs from one measurement to the next, at least 1; the last epoch is always measured.

    Raises:
        UserError: every_n_epochs below 1.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise UserError(f"every_n_epochs of GeometryMonitor is {every_n_epochs}; it must be at least 1")
        self.every_n_epochs = every_n_epochs
        self._measured = 0  # epochs trained at the last measurement

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Classifier):
            raise UserError(f"GeometryMonitor measures regimes of this package, not {type(pl_module).__name__}")
        self._measured = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_due(trainer, self.every_n_epochs):
            pl_module.log_dict(self._measure(trainer, pl_module), sync_dist=True)  # equal on all processes already
            self._measured = trainer.current_epoch + 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._measured == trainer.current_epoch:
            return
        # What stops a training early may decide so only after the epoch's end, when nothing can be logged as usual.
        values = self._measure(trainer, pl_module)
        trainer.callback_metrics.update(values)
        scalars = {"epoch": trainer.current_epoch - 1.0, **{name: value.item() for name, value in values.items()}}
        for logger in trainer.loggers:
            logger.log_metrics(scalars, trainer.global_step - 1)  # the step of all that an epoch's end logs

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """The scalars to be logged, the same on every process."""
        assert isinstance(pl_module, Classifier)
        measured = measure_parts(trainer, pl_module)
        if "train" not in measured:
            rank_zero_warn("GeometryMonitor measures no training images: that needs an ImageDataModule")
        return {f"geometry/{part}_{name}": value for part, values in measured.items() for name, value in values.items()}


def measure_parts(trainer: Trainer, module: Classifier) -> dict[str, dict[str, Tensor]]:
    """Accuracy and embedding geometry of the un-augmented training images and of the validation part.

    Each in evaluation mode and over all its images, the same on every process: a collective call.

    Args:
        trainer: Of a running ``fit``, whose data are measured.
        module: The network, which stays as it was.

    Returns:
        Scalars by ``train`` and ``val`` and by name: ``accuracy``, ``balanced_accuracy``, ``intra_variance``,
        ``mean_distance``, ``min_distance`` and ``intra_inter_ratio`` of
        :class:`~metricloss_pl.metrics.EmbeddingGeometry` (on the unit sphere for the cosine regime, whose loss is blind
        to the norm), ``norm`` of the embeddings as they are, and ``nearest_mean_accuracy``, of the nearest mean of the
        *training* embeddings. A part that is not there is left out: the training images, and with them
        ``nearest_mean_accuracy``, without an :class:`~metricloss_pl.data.ImageDataModule`.
    """
    measured: dict[str, dict[str, Tensor]] = {}
    class_means = None
    for part, loader in evaluation_loaders(trainer).items():
        accuracies: dict[str, Metric] = {
            "accuracy": _accuracy(module),
            "balanced_accuracy": BalancedAccuracy(module.num_classes).to(module.device),
        }
        geometry = EmbeddingGeometry(module.num_classes, module.embedding_dim).to(module.device)
        nearest_mean_accuracy, norm = _accuracy(module), MeanMetric().to(module.device)
        seen: list[tuple[Tensor, Tensor]] = []  # training images, whose means are known only at the end
        with evaluation_mode(trainer, module):
            for _, labels, embeddings in embedded(trainer, module, loader):
                scores, points = module.class_scores(embeddings), module.metric_embeddings(embeddings)
                for accuracy in accuracies.values():
                    accuracy.update(scores, labels)
                norm.update(embeddings.float().norm(dim=1))
                geometry.update(points, labels)
                if part == "train":
                    seen.append((points.float().cpu(), labels))
                elif class_means is not None:
                    nearest_mean_accuracy.update(nearest_mean(points.float(), class_means), labels)
        values = {**geometry.compute(), "norm": norm.compute()}
        values |= {name: accuracy.compute() for name, accuracy in accuracies.items()}
        if part == "train":
            class_means = geometry.class_means
        if class_means is not None:
            for points, labels in seen:
                nearest_mean_accuracy.update(nearest_mean(points.to(class_means.device), class_means), labels)
            values["nearest_mean_accuracy"] = nearest_mean_accuracy.compute()
        measured[part] = values
    return measured


def _accuracy(module: Classifier) -> MulticlassAccuracy:
    return MulticlassAccuracy(module.num_classes, average="micro", validate_args=False).to(module.device)
