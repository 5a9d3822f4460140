"""Baselines without a network: the most frequent class, and a forest on statistics of colors and edges."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from metricloss_pl.compare.config import ComparisonConfig, Variant
from metricloss_pl.compare.run_files import RunFileFactory
from metricloss_pl.data import ImageDataModule

__all__ = [
    "ForestClassifier",
    "MajorityClassifier",
    "TrivialClassifier",
    "TrivialFactory",
    "color_and_edge_statistics",
    "with_trivial",
]

_TREES = 300
_BINS = 8  # of hues and of directions of edges
_FOR_QUANTILES = 4096  # pixels: sorting all would take most of the time


class TrivialClassifier(LightningModule):
    """Classifier that is fitted to the training images of an `ImageDataModule` when a training starts.

    Its steps change nothing, so one is enough (`max_epochs=1, limit_train_batches=1`).

    Args:
        num_classes: Number of classes C.
        seed: Random seed.
    """

    def __init__(self, num_classes: int, seed: int = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.num_classes = num_classes
        self.seed = seed

    @abstractmethod
    def fit_images(self, data: ImageDataModule) -> None:
        """Learn from the training images of a data module."""

    def on_train_start(self) -> None:
        self.fit_images(self.trainer.datamodule)  # type: ignore[attr-defined]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> None:
        pass


class MajorityClassifier(TrivialClassifier):
    """Class frequencies of the training set as the probabilities of every image."""

    def fit_images(self, data: ImageDataModule) -> None:
        counts = data.class_counts + 1.0  # a class without training images has a probability, too
        self.log_probabilities = (counts / counts.sum()).log()

    def forward(self, images: Tensor) -> Tensor:
        """Return log-probabilities (B, C) of images (B, ...)."""
        return self.log_probabilities.expand(len(images), -1)


class ForestClassifier(TrivialClassifier):
    """Extremely randomized trees on `color_and_edge_statistics`."""

    def fit_images(self, data: ImageDataModule) -> None:
        from sklearn.ensemble import ExtraTreesClassifier

        batches = [(self._statistics(images), labels) for images, labels in data.train_eval_dataloader()]
        statistics, labels = (np.concatenate(column) for column in zip(*batches, strict=True))
        self.forest = ExtraTreesClassifier(_TREES, random_state=self.seed).fit(statistics, labels)

    def forward(self, images: Tensor) -> Tensor:
        """Return log-probabilities (B, C) of images (B, C, H, W), or of the first of their views (B, V, C, H, W)."""
        votes = np.ones((len(images), self.num_classes))  # of the trees, and one for each class
        votes[:, self.forest.classes_] += _TREES * self.forest.predict_proba(self._statistics(images))
        return torch.from_numpy(np.log(votes / votes.sum(1, keepdims=True)))

    def _statistics(self, images: Tensor) -> np.ndarray:
        return color_and_edge_statistics(images if images.ndim == 4 else images[:, 0]).numpy(force=True)


@dataclass(frozen=True)
class TrivialFactory:
    """Factory of a trivial classifier of the images of a run file.

    Args:
        base: Run file of the images.
        model: Class of the classifier.
    """

    base: RunFileFactory
    model: type[TrivialClassifier]

    def __call__(self, settings: Mapping[str, Any]) -> tuple[TrivialClassifier, ImageDataModule, dict[str, Any]]:
        """Return classifier, data and Trainer arguments."""
        data = self.base(settings)[1]
        arguments = {"max_epochs": 1, "limit_train_batches": 1, "accelerator": "cpu"}
        return self.model(data.num_classes, settings["seed"]), data, arguments

    def decisive(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that decide a result."""
        return {"data": self.base.decisive(settings)["data"], "model": self.model.__name__}


def with_trivial(config: ComparisonConfig) -> ComparisonConfig:
    """Return a comparison with the variants `majority` and `color_and_edges` of the images of the baseline.

    Args:
        config: Comparison, as `ComparisonConfig.checked` returns it; one whose baseline is no run file stays as it is.
    """
    baseline = config.variants[str(config.baseline)]
    if baseline.config is None:
        return config
    base = RunFileFactory(str(baseline.config), config.resolved_overrides(str(config.baseline)))
    factories = {"majority": TrivialFactory(base, MajorityClassifier)}
    factories["color_and_edges"] = TrivialFactory(base, ForestClassifier)
    added = {name: Variant(factory=factory, kind="trivial") for name, factory in factories.items()}
    return replace(config, variants={**config.variants, **added, **config.variants})


def color_and_edge_statistics(images: Tensor) -> Tensor:
    """Return statistics of the colors and edges of images, 48 of color and 28 of gray images.

    They are mean, deviation and three quantiles of each channel; for color, mean and deviation of the chroma and a
    histogram of the hues; mean, deviation and quantiles of the strength of edges, its mean at half the resolution and a
    histogram of their directions; and the brightness in a grid of 3 x 3.

    Args:
        images: (N, C, H, W) of at least 6 px, integers of their type's whole range, or floats in [0, 1].
    """
    scale = 1.0 if images.is_floating_point() else float(torch.iinfo(images.dtype).max)
    images = images.float() / scale
    brightness = images.mean(1, keepdim=True)
    dx, dy, strength = _edges(brightness)
    parts = [
        _moments(images.flatten(2), (0.1, 0.5, 0.9)),
        _moments(strength, (0.5, 0.9, 0.99)),
        _edges(nn.functional.avg_pool2d(brightness, 2))[2].mean(2),
        _histogram(torch.atan2(dy, dx) / math.pi, strength),  # opposite directions are the same edge
        nn.functional.adaptive_avg_pool2d(brightness, 3).flatten(1),
    ]
    if images.shape[1] == 3:
        red, green, blue = images.flatten(2).unbind(1)
        chroma = (images.amax(1) - images.amin(1)).flatten(1)
        hue = torch.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * math.pi)
        parts += [_moments(chroma[:, None], ()), _histogram(hue[:, None], chroma[:, None])]
    return torch.cat(parts, 1)


def _moments(values: Tensor, quantiles: tuple[float, ...]) -> Tensor:
    """Return mean, deviation and quantiles of values (N, C, P) as (N, C * n)."""
    ordered = values[:, :, :: math.ceil(values.shape[2] / _FOR_QUANTILES)].sort(2).values
    of_quantiles = [ordered[:, :, round(share * (ordered.shape[2] - 1))] for share in quantiles]
    return torch.stack([values.mean(2), values.std(2, correction=0), *of_quantiles], 2).flatten(1)


def _edges(brightness: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return horizontal and vertical differences of brightness (N, 1, H, W) and their norm, each (N, 1, P)."""
    dx = (brightness[:, :, 1:-1, 2:] - brightness[:, :, 1:-1, :-2]).flatten(2)
    dy = (brightness[:, :, 2:, 1:-1] - brightness[:, :, :-2, 1:-1]).flatten(2)
    return dx, dy, torch.hypot(dx, dy)


def _histogram(turns: Tensor, weights: Tensor) -> Tensor:
    """Return the mean weight (N, bins) in each bin of a circle, from turns and weights (N, 1, P)."""
    bins = (turns.remainder(1.0) * _BINS).long().clamp(max=_BINS - 1)
    histogram = torch.zeros(len(turns), 1, _BINS).scatter_add_(2, bins, weights)
    return histogram.flatten(1) / turns.shape[2]
