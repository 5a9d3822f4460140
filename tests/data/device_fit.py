"""Training in which images are augmented by the loader, or after the transfer as on a GPU; the batches are kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor

from metricloss_pl.augment import HorizontalFlip, RandomErasing, RandomResizedCrop, Rotation, Rotation90, ShiftCrop
from metricloss_pl.data.base import ImageDataModule
from metricloss_pl.data.samples import Samples, Split

AUGMENT = [
    HorizontalFlip(),
    RandomErasing(before_crop=True),
    Rotation90(),
    ShiftCrop(2, fill="zero"),
    Rotation(20),
    RandomErasing(fill="mean"),
]
KINDS: dict[str, dict[str, Any]] = {  # by what they show, the images and settings
    "kept on the device": {"resize": 12},
    "larger than the device's memory": {"resize": 12, "cache_gb": 1e-9},
    "kept on the device, crops of different sizes": {"augment": [RandomResizedCrop(), HorizontalFlip()]},
    "files in memory": {"files": True},
    "files decoded at each use": {"files": True, "cache_gb": 0.0},
    "16 bits": {"files": True, "deep": True, "in_channels": 1},
    "kept on the device, 16 bits": {"files": True, "deep": True, "in_channels": 1, "widening": 0},
    "unchanged": {"augment": [], "image_size": None},
}


@dataclass(kw_only=True, eq=False, repr=False)
class NoiseDataModule(ImageDataModule):
    """25 images for training and 4 for validation, as a tensor or as files of different sizes.

    Args:
        folder: Folder for the files.
        files: Whether they are files.
        deep: Whether they have 16 bits.
        widening: Difference of the widths of files in px.
    """

    folder: Path
    files: bool = False
    deep: bool = False
    widening: int = 2
    batch_size: int = 4
    image_size: int | None = 8

    @property
    def class_names(self) -> list[str]:
        return ["ant", "bee"]

    def read(self, split: Split) -> Samples | None:
        if split == "test":
            return None
        count = 25 if split == "train" else 4
        generator = np.random.default_rng(count)
        images = [
            generator.integers(0, 2**16 if self.deep else 256, (12, 12 + self.widening * self.files * (index % 3), 3))
            for index in range(count)
        ]
        paths = [self.folder / f"{split}{index}.png" for index in range(count)]
        if not self.files:
            stacked = torch.from_numpy(np.stack(images)).to(torch.uint8).permute(0, 3, 1, 2)
        elif not paths[0].exists():
            for path, image in zip(paths, images, strict=True):
                pixels = image[..., 0].astype(np.uint16) if self.deep else image.astype(np.uint8)
                Image.fromarray(pixels).save(path)
        return Samples(
            images=paths if self.files else stacked, labels=torch.arange(count) % 2, names=[path.name for path in paths]
        )


class Recorder(LightningModule):
    """A network that keeps the batches."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.validated: list[Tensor] = []
        self.stop_at = stop_at

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        if len(self.batches) == self.stop_at:
            raise RuntimeError("killed")
        self.batches.append((images.clone(), labels.clone()))
        return self.weight * images.float().mean()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validated.append(batch[0].clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(
    kind: str, folder: Path, *, on_device: bool, model: Recorder | None = None, **arguments: Any
) -> tuple[Recorder, NoiseDataModule]:
    """Train for two epochs, with a checkpoint in the middle of the second, and return model and data."""
    settings = {"augment": AUGMENT} | KINDS[kind]
    settings |= {"num_workers": arguments.pop("num_workers", 0)}
    data = NoiseDataModule(folder=folder, **settings)
    if on_device:
        data._trains_on_gpu = lambda: True  # type: ignore[method-assign]
    saver = ModelCheckpoint(folder, "middle", every_n_train_steps=4, save_top_k=-1, enable_version_counter=False)
    model = model or Recorder()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=arguments.pop("devices", 1),
        precision=arguments.pop("precision", "32-true"),
        callbacks=[saver],
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data, **arguments)
    return model, data


def fit_in_processes(processes: int, folder: Path) -> None:
    """Save the batches that each process sees on both ways."""
    rank = int(os.environ.get("RANK", "0"))
    for kind in ("kept on the device", "larger than the device's memory"):
        for on_device in (False, True):
            batches = fit(kind, folder, on_device=on_device, devices=processes)[0].batches
            torch.save(batches, folder / f"{kind} {on_device} {rank}.pt")
