"""The torch data set that returns features of a frozen network in place of the images of one set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from metricloss_pl.augment.keys import image_keys, uniform
from metricloss_pl.data.dataset import ImageDataset


class FeatureDataset(Dataset[Any]):
    """Features and labels of one set, fetched a whole batch at a time like those of `ImageDataset`.

    An item is a position in the set, which gives the features of the plain image, or (position, draw) from the training
    sampler, which gives those of a view that the draw determines.

    Args:
        features: (N, V, F) of V views of each image, the plain one first.
        labels: (N,) int64.
        seed: Seed of the views.
    """

    defer = None  # nothing is left to do on the device

    def __init__(self, features: Tensor, labels: Tensor, seed: int) -> None:
        self.features = features
        self.labels = labels
        self.seed = seed

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Tensor, ...]:
        """Return the features (F,) and the label () of one image."""
        return tuple(part[0] for part in self.__getitems__([item]))

    def __getitems__(self, items: Sequence[int | tuple[int, int]]) -> tuple[Tensor, ...]:
        """Return the finished batch: features (B, F) and labels (B,)."""
        indices = [item[0] if isinstance(item, tuple) else item for item in items]
        views = torch.zeros(len(items), dtype=torch.int64)
        if all(isinstance(item, tuple) for item in items):
            keys = image_keys(self.seed, [draw for _, draw in items], indices)  # type: ignore[misc]
            views = (uniform(keys, 1)[:, 0] * self.features.shape[1]).long()
        return self.features[indices, views], self.labels[indices]


AnyDataset = ImageDataset | FeatureDataset
