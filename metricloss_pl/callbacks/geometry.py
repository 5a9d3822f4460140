"""Geometry of the embeddings: how tight classes are, how far apart, and how much better on training images."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from metricloss_pl.callbacks.evaluation import check_model, embed_batches, evaluation_loaders, evaluation_mode, is_due
from metricloss_pl.errors import UserError
from metricloss_pl.metrics import BalancedAccuracy, EmbeddingGeometry, nearest_mean

__all__ = ["GeometryMonitor"]


class GeometryMonitor(Callback):
    """Accuracy and embedding geometry on training images without augmentation and on the validation set.

    Logs the values of `measure` as `geometry/train_<name>` and `geometry/val_<name>`. The difference of the two
    accuracies is the generalization gap. Without an `ImageDataModule` only the validation set is measured.

    Args:
        every_n_epochs: Epochs from one measurement to the next, at least 1; the last epoch is always measured.

    Raises:
        UserError: `every_n_epochs` is below 1.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise UserError(f"every_n_epochs of GeometryMonitor is {every_n_epochs}; it must be at least 1")
        self.every_n_epochs = every_n_epochs
        self._measured = 0  # epochs trained at the last measurement

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_model(self, pl_module)
        self._measured = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_due(trainer, self.every_n_epochs):
            pl_module.log_dict(self._scalars(trainer, pl_module), sync_dist=True)  # equal on all processes already
            self._measured = trainer.current_epoch + 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._measured == trainer.current_epoch:
            return
        # Early stopping may decide after the end of an epoch, when Lightning logs nothing any more.
        values = self._scalars(trainer, pl_module)
        trainer.callback_metrics.update(values)
        scalars = {"epoch": trainer.current_epoch - 1.0, **{name: value.item() for name, value in values.items()}}
        for logger in trainer.loggers:
            logger.log_metrics(scalars, trainer.global_step - 1)  # the step of all that an epoch's end logs

    def _scalars(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        measured = self.measure(trainer, pl_module)
        if "train" not in measured:
            rank_zero_warn("GeometryMonitor measures no training images: that needs an ImageDataModule")
        return {f"geometry/{name}_{key}": value for name, values in measured.items() for key, value in values.items()}

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, dict[str, Tensor]]:
        """Measure all training images without augmentation and the validation set, in evaluation mode.

        This is a collective call; its results are the same on every process.

        Args:
            trainer: Trainer of a running `fit`, whose data are measured.
            pl_module: Model, which stays as it is.

        Returns:
            Scalars by `train` and `val` and by name: `accuracy`, `balanced_accuracy`, `intra_variance`,
            `mean_distance`, `min_distance` and `intra_inter_ratio` of `metricloss_pl.metrics.EmbeddingGeometry` (on the
            unit sphere for losses that ignore the norm), the mean `norm` of the embeddings, and
            `nearest_mean_accuracy`, of the nearest mean of the *training* embeddings.
        """
        model = check_model(self, pl_module)
        measured: dict[str, dict[str, Tensor]] = {}
        class_means = None
        for name, loader in evaluation_loaders(trainer).items():
            metrics: dict[str, Metric] = {
                "accuracy": _accuracy(model.num_classes),
                "balanced_accuracy": BalancedAccuracy(model.num_classes),
                "nearest_mean_accuracy": _accuracy(model.num_classes),
                "norm": MeanMetric(),
            }
            for metric in metrics.values():
                metric.to(pl_module.device)
            geometry = EmbeddingGeometry(model.num_classes, model.embedding_dim).to(pl_module.device)
            seen: list[tuple[Tensor, Tensor]] = []  # training images, whose means are known only at the end
            with evaluation_mode(trainer, pl_module):
                for _, labels, embeddings in embed_batches(trainer, pl_module, loader):
                    scores, points = model.class_scores(embeddings), model.metric_embeddings(embeddings)
                    metrics["accuracy"].update(scores, labels)
                    metrics["balanced_accuracy"].update(scores, labels)
                    metrics["norm"].update(embeddings.float().norm(dim=1))
                    geometry.update(points, labels)
                    if name == "train":
                        seen.append((points.float().cpu(), labels))
                    elif class_means is not None:
                        metrics["nearest_mean_accuracy"].update(nearest_mean(points.float(), class_means), labels)
            values = geometry.compute()
            if name == "train":
                class_means = geometry.class_means
                for points, labels in seen:
                    nearest = nearest_mean(points.to(class_means.device), class_means)
                    metrics["nearest_mean_accuracy"].update(nearest, labels)
            if class_means is None:
                del metrics["nearest_mean_accuracy"]
            measured[name] = values | {key: metric.compute() for key, metric in metrics.items()}
        return measured


def _accuracy(num_classes: int) -> MulticlassAccuracy:
    return MulticlassAccuracy(num_classes, average="micro", validate_args=False)
