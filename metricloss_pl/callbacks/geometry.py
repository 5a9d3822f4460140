"""How a regime's embeddings lie: tight within classes, far between, and how much better on training images."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from metricloss_pl.callbacks._embed import embedded, evaluation_loaders, evaluation_mode, is_due
from metricloss_pl.errors import UserError
from metricloss_pl.metrics import EmbeddingGeometry, nearest_mean
from metricloss_pl.regimes import Classifier

__all__ = ["GeometryMonitor"]


class GeometryMonitor(Callback):
    """Measure accuracy and embedding geometry on un-augmented training images and on the validation part.

    Both in evaluation mode and over all images, exact under several processes. Logged as ``geometry/train_<name>`` and
    ``geometry/val_<name>``: ``accuracy`` (the difference is the honest train-validation gap), ``intra_variance``,
    ``mean_distance``, ``min_distance`` and ``intra_inter_ratio`` of
    :class:`~metricloss_pl.metrics.EmbeddingGeometry` (on the unit sphere for the cosine regime, whose loss is blind to
    the norm), ``norm`` of the embeddings as they are, and ``nearest_mean_accuracy``, of the nearest mean of the
    *training* embeddings. Without an :class:`~metricloss_pl.data.ImageDataModule` the validation images alone, and
    without ``nearest_mean_accuracy``.

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
        loaders = evaluation_loaders(trainer)
        if "train" not in loaders:
            rank_zero_warn("GeometryMonitor measures no training images: that needs an ImageDataModule")
        measured: dict[str, Tensor] = {}
        class_means = None
        for part, loader in loaders.items():
            geometry = EmbeddingGeometry(pl_module.num_classes, pl_module.embedding_dim).to(pl_module.device)
            accuracy, nearest_mean_accuracy = (self._accuracy(pl_module) for _ in range(2))
            norm = MeanMetric().to(pl_module.device)
            seen: list[tuple[Tensor, Tensor]] = []  # training images, whose means are known only at the end
            with evaluation_mode(trainer, pl_module):
                for _, labels, embeddings in embedded(trainer, pl_module, loader):
                    accuracy.update(pl_module.class_scores(embeddings), labels)
                    norm.update(embeddings.float().norm(dim=1))
                    points = pl_module.points(embeddings)
                    geometry.update(points, labels)
                    if part == "train":
                        seen.append((points.float().cpu(), labels))
                    elif class_means is not None:
                        nearest_mean_accuracy.update(nearest_mean(points.float(), class_means), labels)
            values = {**geometry.compute(), "norm": norm.compute()}
            values["accuracy"] = accuracy.compute()
            if part == "train":
                class_means = geometry.class_means
            if class_means is not None:
                for points, labels in seen:
                    nearest_mean_accuracy.update(nearest_mean(points.to(class_means.device), class_means), labels)
                values["nearest_mean_accuracy"] = nearest_mean_accuracy.compute()
            measured |= {f"geometry/{part}_{name}": value for name, value in values.items()}
        return measured

    def _accuracy(self, module: Classifier) -> MulticlassAccuracy:
        return MulticlassAccuracy(module.num_classes, average="micro", validate_args=False).to(module.device)
