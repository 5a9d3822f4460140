"""Small runs on the bundled digits."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.data import DigitsDataModule
from metricloss_pl.regimes import CenterSoftmaxClassifier, Classifier


def digits(**options) -> DigitsDataModule:
    """60 training, 20 validation and some 36 test images."""
    defaults = {"batch_size": 16, "samples_per_class": 8, "val_fraction": 0.25, "test_fraction": 0.02}
    return DigitsDataModule(**{**defaults, **options})


def regime(embedding_dim: int | None = 2, dropout: float = 0.3) -> Classifier:
    """Return a regime with batch norm and dropout, so that evaluation mode matters."""
    torch.manual_seed(0)
    names = [f"digit {k}" for k in range(10)]
    return CenterSoftmaxClassifier(10, TinyConvNet(width=4, dropout=dropout), names, embedding_dim=embedding_dim)


def trainer(folder: Path, *callbacks: Callback, **options) -> Trainer:
    defaults = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
    }
    return Trainer(**{**defaults, **options}, callbacks=list(callbacks))


def fit(folder: Path, *callbacks: Callback, model: Classifier | None = None, data=None, **options) -> Trainer:
    seed_everything(0, verbose=False)
    run = trainer(folder, *callbacks, **options)
    run.fit(model or regime(), data or digits())
    return run
