from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image
from torch import Tensor

from metricloss_pl.data.base import ImageDataModule
from metricloss_pl.data.samples import Samples, Split


def make_samples(counts: list[int], *, side: int = 8, channels: int = 3, seed: int = 0, part: str = "train") -> Samples:
    """Random images, counts[c] of class c, in a mixed order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    images = torch.randint(0, 256, (len(labels), channels, side, side), dtype=torch.uint8, generator=generator)
    return Samples(images=images, labels=labels, names=[f"{part}[{index}]" for index in range(len(labels))])


@dataclass(kw_only=True, eq=False, repr=False)
class ToyDataModule(ImageDataModule):
    """Samples given by hand.

    Args:
        parts: What `read` returns.
        names: The class names.
    """

    parts: dict[str, Samples] = field(default_factory=dict)
    names: list[str] = field(default_factory=lambda: ["ant", "bee", "cat"])

    def __post_init__(self) -> None:
        super().__post_init__()
        self.has_read: list[str] = []

    @property
    def class_names(self) -> list[str]:
        return self.names

    def read(self, split: Split) -> Samples | None:
        self.has_read.append(split)
        return self.parts.get(split)


class ToyClassifier(LightningModule):
    """A linear classifier that remembers what it saw."""

    def __init__(self, num_features: int = 192, num_classes: int = 3) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(num_features, num_classes)
        self.seen: list[tuple[int, int, list[int], int]] = []
        self.validated = 0
        self.tested = 0
        self.stop_at: tuple[int, int] | None = None

    def _loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        return torch.nn.functional.cross_entropy(self.linear(batch[0].float().flatten(1) / 255), batch[1])

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        self.seen.append((self.current_epoch, batch_idx, batch[1].tolist(), int(batch[0].long().sum())))
        if self.stop_at == (self.current_epoch, batch_idx):
            raise RuntimeError("killed")
        return self._loss(batch)

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self.validated += len(batch[1])

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self.tested += len(batch[1])

    def predict_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        return batch[2]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.fixture
def samples() -> Callable[..., Samples]:
    return make_samples


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Color images of different sizes."""
    paths = []
    for index, (height, width) in enumerate([(20, 30), (25, 18), (16, 16), (40, 17), (9, 31)]):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
            paths[-1]
        )
    return paths


@pytest.fixture
def toy() -> Callable[..., ToyDataModule]:
    return ToyDataModule


@pytest.fixture
def classifier() -> Callable[..., ToyClassifier]:
    return ToyClassifier
