"""Passes over the data from within a training, for callbacks that measure and draw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from metricloss_pl.data import ImageDataModule

__all__ = ["embedded", "evaluation_loaders", "is_due", "subsample"]


def is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether the epoch just trained is one of every n, or the last as far as is known before its end."""
    epochs = trainer.current_epoch + 1
    return epochs % every_n_epochs == 0 or epochs == trainer.max_epochs or trainer.should_stop


def evaluation_loaders(trainer: Trainer) -> dict[str, DataLoader[Any]]:
    """Loaders of un-augmented images: ``train`` and ``val`` where the data module has them, else ``val`` alone."""
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, ImageDataModule):
        loaders = trainer.val_dataloaders or []
        first = loaders if isinstance(loaders, DataLoader) else next(iter(loaders), None)
        return {} if first is None else {"val": first}
    val = data.val_dataloader()
    return {"train": data.train_eval_dataloader(), **({"val": val} if isinstance(val, DataLoader) else {})}


def subsample(loader: DataLoader[Any], limit: int) -> DataLoader[Any]:
    """A loader of at most so many images, the same at each call.

    They are drawn by chance: the first ones are often of one class, and so are evenly spaced ones where classes take
    turns.
    """
    size = len(loader.dataset)  # type: ignore[arg-type]
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(0))[:limit].sort().values
    subset = Subset(loader.dataset, chosen.tolist())
    return DataLoader(subset, batch_size=loader.batch_size, collate_fn=loader.collate_fn)


def embedded(
    trainer: Trainer, module: LightningModule, loader: Iterable[Any]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images, labels and embeddings of each batch (of the first few in a fast development run).

    To be used within `evaluation_mode`.
    """
    for batch in islice(loader, int(trainer.fast_dev_run) or None):  # type: ignore[attr-defined]
        images, labels = trainer.strategy.batch_to_device(batch, module.device)[:2]
        yield images, labels, module(images)
