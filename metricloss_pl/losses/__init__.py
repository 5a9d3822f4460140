"""Losses of labelled embeddings. They import torch alone, so any project can take them."""

from metricloss_pl.losses import functional
from metricloss_pl.losses.center import CenterLoss
from metricloss_pl.losses.cosine import CosineLoss
from metricloss_pl.losses.standalone import StandaloneCenterLoss

__all__ = ["CenterLoss", "CosineLoss", "StandaloneCenterLoss", "functional"]
