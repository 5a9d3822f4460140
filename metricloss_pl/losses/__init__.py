"""Losses of labeled embeddings. They import only torch, so that any project can use them."""

from metricloss_pl.losses import functional
from metricloss_pl.losses.center import CenterLoss
from metricloss_pl.losses.cosine import CosineCrossEntropyLoss, CosineLoss
from metricloss_pl.losses.standalone import StandaloneCenterLoss

__all__ = ["CenterLoss", "CosineCrossEntropyLoss", "CosineLoss", "StandaloneCenterLoss", "functional"]
