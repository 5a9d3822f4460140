"""Passes over the data in evaluation mode from within a training, which leave the training as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from metricloss_pl.data import ImageDataModule


def run_folder(trainer: Trainer) -> Path:
    """The run's folder; a collective call, so on every process."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def is_due(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether the epoch just trained is one of every n, or the last."""
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


def thinned(loader: DataLoader[Any], limit: int) -> DataLoader[Any]:
    """A loader of at most so many images, evenly spread over the data set, whose order is often that of the classes."""
    size = len(loader.dataset)  # type: ignore[arg-type]
    chosen = np.linspace(0, size - 1, min(limit, size)).round().astype(int).tolist()
    subset = Subset(loader.dataset, chosen)
    return DataLoader(subset, batch_size=loader.batch_size, collate_fn=loader.collate_fn)


@contextmanager
def evaluation_mode(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Evaluation mode in the Trainer's precision, without gradients.

    Each sub-module's mode and the random state come back at the end.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        # An iterator over a DataLoader draws a seed, which would shift the training's own draws.
        with torch.random.fork_rng(devices=[]), torch.no_grad(), trainer.precision_plugin.forward_context():
            yield
    finally:
        for part, training in modes:
            part.training = training


def embedded(
    trainer: Trainer, module: LightningModule, loader: Iterable[Any]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images, labels and embeddings of each batch, within :func:`evaluation_mode`."""
    for batch in loader:
        images, labels = trainer.strategy.batch_to_device(batch, module.device)[:2]
        yield images, labels, module(images)
