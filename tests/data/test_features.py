from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from metricloss_pl.data.features import FeatureDataset


def test_evaluation_takes_the_plain_image_and_training_any_view() -> None:
    features = torch.arange(12.0).view(3, 2, 2)
    labels = torch.tensor([2, 0, 1])
    dataset = FeatureDataset(features, labels, seed=0)
    batch, of_batch = dataset.__getitems__([2, 0])
    assert torch.equal(batch, features[[2, 0], 0])
    assert torch.equal(of_batch, labels[[2, 0]])
    assert [part.tolist() for part in dataset[1]] == [[4.0, 5.0], 0]
    draws = [(1, draw) for draw in range(200)]
    seen = dataset.__getitems__(draws)[0]
    assert torch.equal(seen, dataset.__getitems__(draws)[0])
    assert 70 < int((seen == features[1, 1]).all(1).sum()) < 130  # half of 200
    assert int((seen == features[1, 0]).all(1).sum() + (seen == features[1, 1]).all(1).sum()) == 200


def test_loaders_yield_features_in_place_of_images(toy: Callable[..., Any], samples: Callable[..., Any]) -> None:
    module = toy(batch_size=8, parts={"train": samples([10, 10, 10])}, val_fraction=0.2)
    module.setup("fit")
    sizes = {split: len(module.samples(split)) for split in ("train", "val")}
    module.features = {split: torch.rand(size, 2, 5) for split, size in sizes.items()}
    images, labels = next(iter(module.train_dataloader()))
    assert (images.shape, labels.shape) == ((8, 5), (8,))
    val = torch.cat([features for features, _ in module.val_dataloader()])
    assert torch.equal(val, module.features["val"][:, 0])
    train = torch.cat([features for features, _ in module.train_eval_dataloader()])
    assert torch.equal(train, module.features["train"][:, 0])
