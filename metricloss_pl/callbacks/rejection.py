"""Rejection of images of no known class, by their distance to the nearest class."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, Self

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import CatMetric, MeanMetric

from metricloss_pl.callbacks.evaluation import check_model, embed_batches, evaluation_loaders, evaluation_mode
from metricloss_pl.checkpoints import AtomicCheckpointIO, read_checkpoint
from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import UserError, plural
from metricloss_pl.losses import functional as F
from metricloss_pl.metrics import EmbeddingGeometry

__all__ = ["Rejection", "RejectionThreshold"]


class _Regime(Protocol):
    embedding_dim: int

    @property
    def class_anchors(self) -> Tensor | None: ...

    def metric_embeddings(self, embeddings: Tensor) -> Tensor: ...


class Rejection(NamedTuple):
    """Distance to the nearest class above which an image is rejected as unknown."""

    threshold: float
    quantile: float  # expected share of rejected images of known classes, at most
    class_means: Tensor | None  # (K, D) of the training images, for a regime without class anchors

    def distances(self, model: _Regime, embeddings: Tensor) -> Tensor:
        """Return the Euclidean distance (B,) of embeddings (B, D) to the nearest class, among `metric_embeddings`."""
        points = model.metric_embeddings(embeddings).float()
        classes = model.class_anchors if self.class_means is None else self.class_means
        assert classes is not None
        return F.squared_distances(points, classes.to(points)).amin(1).sqrt()

    def plain(self) -> dict[str, Any]:
        """Return the content for a checkpoint."""
        means = self.class_means
        return {**self._asdict(), "class_means": None if means is None else means.cpu()}

    @classmethod
    def from_plain(cls, content: Any, model: _Regime) -> Self | None:
        """Return what a checkpoint of a regime holds; None for one without a threshold.

        Raises:
            UserError: The content is of another kind, or does not fit the regime.
        """
        if content is None:
            return None
        try:
            found = cls(**content)
            means = found.class_means
            is_right = math.isfinite(found.threshold) and 0 < found.quantile < 1
            if means is None:
                is_right &= model.class_anchors is not None
            else:
                is_right &= means.ndim == 2 and means.shape[1] == model.embedding_dim and len(means) > 0
                is_right &= bool(means.isfinite().all())
        except (TypeError, AttributeError):
            is_right = False
        if not is_right:
            raise UserError("the checkpoint's rejection is of a kind that no training writes: take another one")
        return found


class RejectionThreshold(Callback):
    """Threshold on the distance to the nearest class, beyond which `predict` calls an image unknown.

    The distance is the Euclidean one to the nearest of the `class_anchors` (centers, class embeddings or class
    weights), among the `metric_embeddings`. In a regime without them, such as softmax, the means of the training images
    of each class, not augmented, take their place. The threshold is the ceil((n + 1)(1 - quantile))-th smallest
    distance of the n validation images, which a new image of a known class exceeds with a probability of at most
    `quantile` (split conformal prediction, Vovk et al. 2005), if the validation images are as new to the network.

    With a quantile, each validation of `fit` fits the threshold, for the checkpoints written after it; without class
    anchors this takes a pass over the training images. `validate` fits it for a trained network, and writes it into the
    checkpoint. `test` logs the share of rejected test images as `test/false_reject_rate`.

    Args:
        quantile: Share of images of the known classes, in (0, 1), that may be rejected. None: nothing is fitted.

    Raises:
        UserError: The quantile is out of its range, there are too few validation images for it, or class means are
            needed and the data are no `ImageDataModule`.
    """

    def __init__(self, quantile: float | None = None) -> None:
        if quantile is not None and not 0 < quantile < 1:
            raise UserError(f"reject_quantile is {quantile}; it must be above 0 and below 1, such as 0.05")
        self.quantile = quantile
        self._class_means: Tensor | None = None
        self._distances: CatMetric | None = None
        self._rejected: MeanMetric | None = None

    # Fit

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is None or self.quantile is None:  # an earlier threshold belongs to other weights
            pl_module.rejection = None  # type: ignore[assignment]
        data = getattr(trainer, "datamodule", None)
        if self.quantile is not None and isinstance(data, ImageDataModule):
            _rank(len(data.samples("val")) if data.has_validation else 0, self.quantile)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fits = self.quantile is not None and not trainer.sanity_checking and not trainer.fast_dev_run  # type: ignore[attr-defined]
        self._distances = CatMetric().to(pl_module.device) if fits else None

    # In the steps, when averaged weights and the statistics of batch norms are in place.
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._distances is not None and batch_idx == 0:
            has_anchors = pl_module.class_anchors is not None
            self._class_means = None if has_anchors else _class_means(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._distances is not None and isinstance(outputs, dict) and "embeddings" in outputs:
            measure = Rejection(math.inf, math.nan, self._class_means)
            self._distances.update(measure.distances(pl_module, outputs["embeddings"]))  # type: ignore[arg-type]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._distances is None or self.quantile is None:
            return
        distances = torch.as_tensor(self._distances.compute()).flatten().sort().values
        threshold = distances[_rank(len(distances), self.quantile) - 1].item()
        pl_module.rejection = Rejection(threshold, self.quantile, self._class_means)  # type: ignore[assignment]
        self._distances = self._class_means = None
        if trainer.state.fn == TrainerFn.VALIDATING and trainer.ckpt_path is not None:
            _store(trainer, pl_module.rejection, len(distances))  # type: ignore[arg-type]

    # Test

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        has_threshold = getattr(pl_module, "rejection", None) is not None
        self._rejected = MeanMetric().to(pl_module.device) if has_threshold else None

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._rejected is not None and isinstance(outputs, dict) and "embeddings" in outputs:
            self._rejected.update(pl_module.rejects(outputs["embeddings"]).float())  # type: ignore[operator]

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._rejected is not None:
            pl_module.log("test/false_reject_rate", self._rejected.compute(), sync_dist=True)  # equal on all already
            self._rejected = None


def _rank(images: int, quantile: float) -> int:
    """Return the rank, from 1, of the threshold among the distances of the validation images."""
    rank = max(1, math.ceil((images + 1) * (1 - quantile) - 1e-9))
    if rank > images:
        least = math.ceil(1 / quantile - 1e-9) - 1
        raise UserError(
            f"reject_quantile is {quantile}: it needs at least {plural(least, 'validation image')}, and there are "
            f"{images}"
        )
    return rank


def _class_means(trainer: Trainer, module: LightningModule) -> Tensor:
    """Return the mean of each class (K, D) that has training images, in evaluation mode; a collective call."""
    model, loader = check_model(RejectionThreshold(), module), evaluation_loaders(trainer).get("train")
    if loader is None:
        raise UserError(f"reject_quantile with {type(module).__name__} needs an ImageDataModule for the class means")
    geometry = EmbeddingGeometry(model.num_classes, model.embedding_dim).to(module.device)
    with evaluation_mode(trainer, module):
        for _, labels, embeddings in embed_batches(trainer, module, loader):
            geometry.update(model.metric_embeddings(embeddings), labels)
    means = geometry.class_means
    return means[~means.isnan().any(1)]


def _store(trainer: Trainer, rejection: Rejection, images: int) -> None:
    """Write the threshold into the checkpoint that is validated."""
    path = str(trainer.ckpt_path)
    if trainer.is_global_zero:
        content = read_checkpoint(path)
        AtomicCheckpointIO().save_checkpoint({**content, "rejection": rejection.plain()}, path)
    rank_zero_info(
        f"rejection: threshold {rejection.threshold:.4g} from {plural(images, 'validation image')}, in {path}"
    )
