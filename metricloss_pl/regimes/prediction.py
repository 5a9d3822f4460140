"""Predictions for images and files of images, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from metricloss_pl.callbacks.evaluation import eval_mode
from metricloss_pl.data.file_checks import list_images
from metricloss_pl.data.preparation import ImageLike, prepare_batches, prepare_files
from metricloss_pl.errors import UserError

if TYPE_CHECKING:
    from metricloss_pl.regimes.base import Classifier

__all__ = ["FilePredictions", "Predictions", "predict_files", "predict_images"]


class Predictions(NamedTuple):
    """Most probable class of each image, and the probabilities (N, C) of all classes, on the CPU."""

    classes: list[str]
    probabilities: Tensor


class FilePredictions(NamedTuple):
    """Predictions for some image files, on the CPU."""

    files: list[Path]
    probabilities: Tensor  # (B, C)
    embeddings: Tensor  # (B, D), in the space in which the regime compares them
    rejected: Tensor | None  # (B,), True for images of no known class; None if the model has no threshold
    broken: dict[Path, str]  # the reason for each file that cannot be decoded


def predict_images(model: Classifier, images: ImageLike | Iterable[ImageLike], batch_size: int = 64) -> Predictions:
    """Return class names and probabilities of images, as `Classifier.predict` describes."""
    found = [torch.empty(0, model.num_classes)]
    with eval_mode(model):
        for batch in prepare_batches(images, **_image_format(model), batch_size=batch_size):
            found.append(model.probabilities(model(batch.to(model.device))).cpu())
    probabilities = torch.cat(found)
    return Predictions([model.class_names[label] for label in probabilities.argmax(1).tolist()], probabilities)


def predict_files(
    model: Classifier, paths: str | Path | Iterable[str | Path], batch_size: int = 64
) -> Iterator[FilePredictions]:
    """Predict image files batch by batch, so that memory does not grow with their number.

    Args:
        model: Regime that was trained on an `ImageDataModule`.
        paths: Image files, and folders, whose images are predicted with those in their subfolders.
        batch_size: Files per batch, at least 1.

    Yields:
        Predictions in the order of the files. Files that cannot be decoded are left out and named.

    Raises:
        UserError: A folder holds no image, the model does not know how its images were prepared, or it needs images of
            one size.
    """
    files = list_images(paths)
    for files_of_batch, images, broken in prepare_files(files, **_image_format(model), batch_size=batch_size):
        with eval_mode(model):
            if files_of_batch:
                embeddings = model.embed(images.to(model.device))
            else:
                embeddings = torch.empty(0, model.embedding_dim, device=model.device)
            probabilities, rejected = model.probabilities(model.class_scores(embeddings)), model.rejects(embeddings)
            points = model.metric_embeddings(embeddings).float()
        yield FilePredictions(
            files_of_batch,
            probabilities.cpu(),
            points.cpu(),
            None if rejected is None else rejected.cpu(),
            broken,
        )


def _image_format(model: Classifier) -> dict[str, Any]:
    if model.image_format is None:
        raise UserError(
            f"this {type(model).__name__} does not know how its images were prepared, since it was not trained on "
            "an ImageDataModule: call it with tensors instead"
        )
    return model.image_format
