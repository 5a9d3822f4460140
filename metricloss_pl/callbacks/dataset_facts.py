"""Facts of the data module that a model needs when training starts."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from metricloss_pl.class_weights import balanced_weights

__all__ = ["DatasetFacts"]


class DatasetFacts(Callback):
    """Pass facts of the data module on to the model when `fit` is set up.

    These are the mean and standard deviation of the training images (`normalization`), how images are prepared
    (`image_format`), and, for `class_weights="balanced"`, the images per class (`class_counts`). A fact that the data
    module does not have leaves the model as it is.

    Raises:
        UserError: Balanced class weights with a data module that does not count the classes, or balances them itself.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        data: Any = getattr(trainer, "datamodule", None)
        if hasattr(data, "normalization"):
            pl_module.mean, pl_module.std = data.normalization
        if hasattr(data, "image_format"):
            pl_module.image_format = data.image_format
        if getattr(pl_module, "balance_classes", False):
            pl_module.class_weights = balanced_weights(data)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if getattr(pl_module, "class_weights", None) is not None:
            pl_module.class_weights = pl_module.class_weights.to(pl_module.device)
