"""Passes over images in evaluation mode, from within a training and outside of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import UserError

__all__ = [
    "EmbeddingClassifier",
    "check_model",
    "embed_batches",
    "eval_mode",
    "evaluation_loaders",
    "evaluation_mode",
    "is_due",
    "subsample",
]


@runtime_checkable
class EmbeddingClassifier(Protocol):
    """Model that callbacks can measure and draw; every regime is one."""

    num_classes: int
    class_names: list[str]
    embedding_dim: int
    anchor_name: str

    def embed(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, D) of images (B, C, H, W)."""

    def embed_views(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, D) of images (B, C, H, W) or of views (B, V, C, H, W)."""

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Return the class scores (B, C) of embeddings (B, D)."""

    def metric_embeddings(self, embeddings: Tensor) -> Tensor:
        """Return embeddings (B, D) in the space in which the model compares them."""


def check_model(callback: Callback, model: LightningModule) -> EmbeddingClassifier:
    """Return the model as one that callbacks can measure.

    Raises:
        UserError: It lacks embeddings or class scores.
    """
    if not isinstance(model, EmbeddingClassifier):
        raise UserError(f"{type(callback).__name__} needs a regime of metricloss_pl, not {type(model).__name__}")
    return model


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode without gradients, and restore the mode of each sub-module at the end."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for layer, training in modes:
            layer.training = training


@contextmanager
def evaluation_mode(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Switch to evaluation mode in the Trainer's precision, and restore modes and random state at the end."""
    # An iterator over a DataLoader draws a seed, which would shift the draws of the training.
    with eval_mode(module), isolate_rng(), trainer.precision_plugin.forward_context():
        yield


def is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Return whether the epoch just trained is one of every n, or the last as far as is known before its end."""
    epochs = trainer.current_epoch + 1
    return epochs % every_n_epochs == 0 or epochs == trainer.max_epochs or trainer.should_stop


def evaluation_loaders(trainer: Trainer) -> dict[str, DataLoader[Any]]:
    """Return loaders of images without augmentation: `train` and `val` of an `ImageDataModule`, else `val` alone."""
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, ImageDataModule):
        loaders = trainer.val_dataloaders or []
        first = loaders if isinstance(loaders, DataLoader) else next(iter(loaders), None)
        return {} if first is None else {"val": first}
    val = data.val_dataloader()
    return {"train": data.train_eval_dataloader(), **({"val": val} if isinstance(val, DataLoader) else {})}


def subsample(loader: DataLoader[Any], limit: int) -> DataLoader[Any]:
    """Return a loader of at most `limit` images, the same at each call, drawn at random.

    The first images are often of one class, and so are evenly spaced ones where classes alternate.
    """
    size = len(loader.dataset)  # type: ignore[arg-type]
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:limit].sort().values
    subset = Subset(loader.dataset, chosen.tolist())
    return DataLoader(subset, batch_size=loader.batch_size, collate_fn=loader.collate_fn)


def embed_batches(
    trainer: Trainer, module: LightningModule, loader: Iterable[Any]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield images, labels and embeddings of each batch, or of the first few in a fast development run.

    To be used within `evaluation_mode`.
    """
    for batch in islice(loader, int(trainer.fast_dev_run) or None):  # type: ignore[attr-defined]
        images, labels = trainer.strategy.batch_to_device(batch, module.device)[:2]
        yield images, labels, module.embed(images)  # type: ignore[operator]
