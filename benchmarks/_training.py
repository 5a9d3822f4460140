"""Generated images for training, and a Trainer without extras."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer

from metricloss_pl.data import ImageDataModule
from metricloss_pl.data.samples import Samples, Split


@dataclass(kw_only=True, eq=False, repr=False)
class NoiseDataModule(ImageDataModule):
    """Training set of uniform noise with balanced labels, in memory.

    Args:
        side: Side of the images in px.
        count: Number of images.
        classes: Number of classes.
    """

    side: int
    count: int
    classes: int = 10
    val_fraction: float = 0.0

    @property
    def class_names(self) -> list[str]:
        """Names of the classes: their labels."""
        return [str(label) for label in range(self.classes)]

    def read(self, split: Split) -> Samples | None:
        """Draw the training set."""
        if split != "train":
            return None
        generator = torch.Generator().manual_seed(0)
        shape = (self.count, int(self.in_channels), self.side, self.side)
        return Samples(
            images=torch.randint(256, shape, dtype=torch.uint8, generator=generator),
            labels=torch.arange(self.count) % self.classes,
            names=[f"noise[{index}]" for index in range(self.count)],
        )


def bare_trainer(**settings: Any) -> Trainer:
    """Return a silent Trainer without logger, checkpoints, progress bar and summary."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    return Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
