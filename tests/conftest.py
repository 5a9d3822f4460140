from __future__ import annotations

import pytest

from metricloss_pl.data import ArchiveDataModule, CIFAR100DataModule, ImageNetSubsetDataModule


@pytest.fixture
def miniatures(monkeypatch):
    """Published sets may hold other numbers of images and classes than were published."""
    for module in (*ArchiveDataModule.__subclasses__(), CIFAR100DataModule):
        monkeypatch.setattr(module, "statistics", None)
    monkeypatch.setattr(ImageNetSubsetDataModule, "published", {"vipriors": None, "deic": None})
