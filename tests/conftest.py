from __future__ import annotations

import os

# Before torch is loaded, and for the processes that tests start: so tiny networks train faster, and round alike on
# machines of one and of many cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from metricloss_pl.data import ArchiveDataModule, CIFAR100DataModule, ImageNetSubsetDataModule


@pytest.fixture
def miniatures(monkeypatch):
    """Published sets may hold other numbers of images and classes than were published."""
    for module in (*ArchiveDataModule.__subclasses__(), CIFAR100DataModule):
        monkeypatch.setattr(module, "statistics", None)
    monkeypatch.setattr(ImageNetSubsetDataModule, "published", {"vipriors": None, "deic": None})
