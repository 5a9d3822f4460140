"""Scatter plots of the embeddings during training, and a GIF of all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from metricloss_pl.callbacks.evaluation import (
    check_model,
    embed_batches,
    evaluation_loaders,
    evaluation_mode,
    is_due,
    subsample,
)
from metricloss_pl.callbacks.run_folder import run_folder
from metricloss_pl.errors import UserError

__all__ = ["EmbeddingPlot"]

_TITLES = {"train": "training", "val": "validation"}
_THUMBNAIL = 32  # side in px
_MAX_THUMBNAILS = 1000


class EmbeddingPlot(Callback):
    """Scatter plots of training and validation embeddings side by side, with the centers or class embeddings.

    Writes a PNG in `<run>/figures/embeddings/` and a TensorBoard figure at the chosen epochs. At the end it writes one
    GIF, `<run>/figures/embeddings.gif`, and for more than two dimensions the TensorBoard projector with class names and
    thumbnails. Images are embedded in evaluation mode and without augmentation, by process 0 alone.

    Args:
        every_n_epochs: Epochs from one plot to the next, at least 1; the last epoch is always drawn.
        max_images: Images per set, a random subset that is the same each time; at least 2.
        method: Projection of more than two dimensions: `pca` of the training images, rotated to match the previous
            plot, or `tsne`. Two dimensions are drawn as they are.
        gif: Whether to join the plots to a GIF.
        projector: Whether to write the TensorBoard projector.

    Raises:
        UserError: A number is outside its range.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        max_images: int = 2000,
        method: Literal["pca", "tsne"] = "pca",
        gif: bool = True,
        projector: bool = True,
    ) -> None:
        if every_n_epochs < 1 or max_images < 2:
            raise UserError(
                f"every_n_epochs and max_images of EmbeddingPlot are {every_n_epochs} and {max_images}; "
                "they must be at least 1 and 2"
            )
        self.every_n_epochs = every_n_epochs
        self.max_images = max_images
        self.method = method
        self.gif = gif
        self.projector = projector
        self._folder = Path()
        self._before: list[Any] | None = None  # the training points of the previous plot
        self._drawn = 0  # epochs trained at the last plot

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_model(self, pl_module)
        self._folder = run_folder(trainer) / "figures"
        self._before, self._drawn = None, 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_due(trainer, self.every_n_epochs):
            self._draw(trainer, pl_module, trainer.current_epoch + 1)

    def _draw(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        """Draw the embeddings after `epoch` epochs; on process 0, and not in a fast development run."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        from metricloss_pl import plots

        model = check_model(self, pl_module)
        self._drawn = epoch
        embedded = self._embed(trainer, pl_module)
        if not embedded:
            return
        if not all(embeddings.isfinite().all() for _, embeddings, _ in embedded.values()):
            rank_zero_warn(f"EmbeddingPlot draws nothing after epoch {epoch}: some embeddings are not finite")
            return
        points, stars = self._project([embeddings.numpy() for _, embeddings, _ in embedded.values()], pl_module)
        figure = plots.embedding_scatter(
            {
                _TITLES[name]: (projected, labels.numpy())
                for (name, (_, _, labels)), projected in zip(embedded.items(), points, strict=True)
            },
            model.class_names,
            anchors=stars,
            anchor_name=model.anchor_name,
            title=f"{type(pl_module).__name__}, epoch {epoch}",
            axis_labels=self._axis_labels(model.embedding_dim),
        )
        plots.save_figure(figure, self._folder / "embeddings" / f"epoch_{epoch:04d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("embeddings", figure, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # on_fit_end: on the CPU already
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        from metricloss_pl import plots

        if self._drawn != trainer.current_epoch:  # stopped after the epoch's end
            self._draw(trainer, pl_module, trainer.current_epoch)
        frames = sorted((self._folder / "embeddings").glob("epoch_*.png"))
        if self.gif and len(frames) > 1:
            plots.save_gif(frames, self._folder / "embeddings.gif")
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        model = check_model(self, pl_module)
        if self.projector and loggers and model.embedding_dim > 2:
            for name, (images, embeddings, labels) in self._embed(trainer, pl_module, _MAX_THUMBNAILS).items():
                names = [model.class_names[label] for label in labels.tolist()]
                for logger in loggers:
                    pictures = _thumbnails(images) if images.ndim == 4 else None  # of features there are none
                    logger.experiment.add_embedding(embeddings, names, pictures, trainer.global_step, name)

    def _embed(
        self, trainer: Trainer, pl_module: LightningModule, limit: int | None = None
    ) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Return images (empty unless limited), embeddings (N, D) and labels (N,) of each set, on the CPU."""
        model, embedded = check_model(self, pl_module), {}
        with evaluation_mode(trainer, pl_module):
            for name, loader in evaluation_loaders(trainer).items():
                batches = [
                    (
                        images.cpu() if limit else images[:0].cpu(),
                        model.metric_embeddings(embeddings).float().cpu(),
                        labels.cpu(),
                    )
                    for images, labels, embeddings in embed_batches(
                        trainer, pl_module, subsample(loader, min(limit or self.max_images, self.max_images))
                    )
                ]
                images, embeddings, labels = (torch.cat(column) for column in zip(*batches, strict=True))
                embedded[name] = (images, embeddings, labels)
        return embedded

    def _project(self, arrays: list[Any], pl_module: LightningModule) -> tuple[list[Any], Any]:
        from metricloss_pl import plots

        anchors, model = getattr(pl_module, "class_anchors", None), check_model(self, pl_module)
        stars = [] if anchors is None else [anchors.detach().float().cpu().numpy()]
        points = plots.project(*arrays, *stars, method=self.method)
        if model.embedding_dim > 2:
            if self._before is not None and self.method == "pca":
                points = plots.align(points, [points[0]], self._before)
            self._before = [points[0]]
        return points[: len(arrays)], points[len(arrays)] if stars else None

    def _axis_labels(self, embedding_dim: int) -> tuple[str, str]:
        if embedding_dim <= 2:
            return "embedding 1", "embedding 2"
        return ("principal component 1", "principal component 2") if self.method == "pca" else ("t-SNE 1", "t-SNE 2")


def _thumbnails(images: Tensor) -> Tensor:
    """Return color thumbnails (N, 3, 32, 32) in [0, 1]; of other channels than color, the mean."""
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    small = torch.nn.functional.interpolate(images.float() / scale, size=(_THUMBNAIL, _THUMBNAIL), mode="area")
    return small if small.shape[1] == 3 else small.mean(1, keepdim=True).expand(-1, 3, -1, -1)
