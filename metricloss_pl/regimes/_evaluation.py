"""Passes over the data in evaluation mode from within a training, which leave the training as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng


@contextmanager
def evaluation_mode(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Evaluation mode in the Trainer's precision, without gradients.

    Each sub-module's mode and the random state come back at the end.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        # An iterator over a DataLoader draws a seed, which would shift the training's own draws.
        with isolate_rng(), torch.no_grad(), trainer.precision_plugin.forward_context():
            yield
    finally:
        for part, training in modes:
            part.training = training
