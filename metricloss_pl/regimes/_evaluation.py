"""Passes over images in evaluation mode, which leave a training as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from metricloss_pl.data.preparation import ImageLike, prepare_batches
from metricloss_pl.errors import UserError

if TYPE_CHECKING:
    from metricloss_pl.regimes.base import Classifier


class Predictions(NamedTuple):
    """The most probable class of each image, and the probabilities (N, C) of all classes, on the CPU."""

    classes: list[str]
    probabilities: Tensor


@contextmanager
def evaluation_mode(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Evaluation mode in the Trainer's precision, without gradients.

    Each sub-module's mode and the random state come back at the end.
    """
    # An iterator over a DataLoader draws a seed, which would shift the training's own draws.
    with _without_training(module), isolate_rng(), trainer.precision_plugin.forward_context():
        yield


@contextmanager
def _without_training(module: LightningModule) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def predict_images(module: Classifier, images: ImageLike | Iterable[ImageLike], batch_size: int) -> Predictions:
    """Predict the classes of images given in Python, which are prepared as the training images were.

    Raises:
        UserError: An image cannot be read, or the regime does not know how its images were prepared.
    """
    if (image_format := module.image_format) is None:
        raise UserError(
            f"this {type(module).__name__} does not know how its images were prepared, since it was not trained on an "
            "ImageDataModule: call it with tensors, and class_scores with what it gives"
        )
    found = [torch.empty(0, module.num_classes)]
    with _without_training(module):
        for batch in prepare_batches(images, **image_format, batch_size=batch_size):  # type: ignore[arg-type]
            found.append(module.predict_step(batch.to(module.device), 0)["probabilities"].float().cpu())
    probabilities = torch.cat(found)
    return Predictions([module.class_names[label] for label in probabilities.argmax(1).tolist()], probabilities)
