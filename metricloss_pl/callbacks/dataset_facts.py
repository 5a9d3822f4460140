"""Facts of the data module that a model needs when training starts."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from metricloss_pl.class_weights import balanced_weights
from metricloss_pl.data import ImageDataModule

__all__ = ["DatasetFacts"]


class DatasetFacts(Callback):
    """Pass facts of an `ImageDataModule` on to the model when `fit` is set up.

    These are the mean and standard deviation of the training images, how images are prepared (`image_format`), and the
    class weights for `class_weights="balanced"`. Without an `ImageDataModule` the model stays as it is.

    Raises:
        UserError: Balanced class weights without an `ImageDataModule`, or with one that balances the classes itself.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, ImageDataModule):
            pl_module.mean, pl_module.std = map(torch.tensor, data.normalization)
            pl_module.image_format = data.image_format  # type: ignore[assignment]
        if getattr(pl_module, "balance_classes", False):
            pl_module.class_weights = balanced_weights(data)
