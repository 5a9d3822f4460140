"""How a regime's embeddings lie: tight within classes, far between, and how much better on training images."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
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
    ``mean_distance``, ``min_distance``, ``intra_inter_ratio`` and ``norm`` of
    :class:`~metricloss_pl.metrics.EmbeddingGeometry`, and ``nearest_mean_accuracy``, of the nearest mean of the
    *training* embeddings.

    Args:
        every_n_epochs: Epochs from one measurement to the next, at least 1; the last epoch is always measured.

    Raises:
        UserError: every_n_epochs below 1.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise UserError(f"every_n_epochs of GeometryMonitor is {every_n_epochs}; it must be at least 1")
        self.every_n_epochs = every_n_epochs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, Classifier):
            raise UserError(f"GeometryMonitor measures regimes of this package, not {type(pl_module).__name__}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_due(trainer, self.every_n_epochs):
            return
        assert isinstance(pl_module, Classifier)
        loaders = evaluation_loaders(trainer)
        if "train" not in loaders:
            rank_zero_warn("GeometryMonitor measures no training images: that needs an ImageDataModule")
        class_means = None
        for part, loader in loaders.items():
            geometry = EmbeddingGeometry(pl_module.num_classes, pl_module.embedding_dim).to(pl_module.device)
            accuracy, nearest_mean_accuracy = (self._accuracy(pl_module) for _ in range(2))
            seen: list[Any] = []
            with evaluation_mode(trainer, pl_module):
                for _, labels, embeddings in embedded(trainer, pl_module, loader):
                    accuracy.update(pl_module.class_scores(embeddings), labels)
                    geometry.update(embeddings, labels)
                    seen.append((embeddings.float().cpu(), labels))
            values = dict(geometry.compute())
            class_means = geometry.class_means if class_means is None else class_means
            for embeddings, labels in seen:
                nearest_mean_accuracy.update(nearest_mean(embeddings.to(class_means.device), class_means), labels)
            values["accuracy"] = accuracy.compute()
            values["nearest_mean_accuracy"] = nearest_mean_accuracy.compute()
            pl_module.log_dict({f"geometry/{part}_{name}": value for name, value in values.items()})

    def _accuracy(self, module: Classifier) -> MulticlassAccuracy:
        return MulticlassAccuracy(module.num_classes, average="micro", validate_args=False).to(module.device)
