"""Facts of the data module that a model needs when training starts."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from metricloss_pl.backbones.base import InitializedFromImages
from metricloss_pl.class_weights import balanced_weights
from metricloss_pl.data import ImageDataModule
from metricloss_pl.data.training_settings import pretrained_weights
from metricloss_pl.errors import UserError

__all__ = ["DatasetFacts"]


class DatasetFacts(Callback):
    """Pass facts of an `ImageDataModule` on to the model when `fit` is set up.

    These are the mean and standard deviation of the training images, how images are prepared (`image_format`), and the
    class weights for `class_weights="balanced"`. A backbone with pretrained weights gets the mean and deviation that
    they were trained with, unless the data module was given others; a line says so. A backbone with layers that come
    from training images (`InitializedFromImages`) computes them from up to `images` of these. Without an
    `ImageDataModule` the model stays as it is.

    Args:
        images: Most training images, at least 1, from which layers of a backbone are computed.

    Raises:
        UserError: `images` is below 1. Balanced class weights without an `ImageDataModule`, or with one that balances
            the classes itself.
    """

    def __init__(self, images: int = 1000) -> None:
        if images < 1:
            raise UserError(f"images of DatasetFacts is {images}: at least 1 is needed")
        self.images = images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, ImageDataModule):
            pl_module.mean, pl_module.std = map(torch.tensor, _normalization(data, pl_module))
            pl_module.image_format = data.image_format  # type: ignore[assignment]
            backbone = getattr(pl_module, "backbone", None)
            if isinstance(backbone, InitializedFromImages) and not backbone.initialized:
                images = data.training_sample(self.images)
                backbone.initialize(pl_module.normalize(images))  # type: ignore[operator]
        if getattr(pl_module, "balance_classes", False):
            pl_module.class_weights = balanced_weights(data)


def _normalization(data: ImageDataModule, module: LightningModule) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel: as given, of the pretrained weights, or measured."""
    weights = pretrained_weights(module.trainer)
    if weights is None or (data.mean is not None and data.std is not None):
        return data.normalization
    mean, std = data.mean or weights.mean, data.std or weights.std
    shown = " and std ".join("[" + ", ".join(f"{value:.3g}" for value in values) + "]" for values in (mean, std))
    rank_zero_info(f"normalization: mean {shown} for {weights.source}; --data.mean and --data.std replace it")
    return mean, std
