"""A LightningModule and a datamodule as a user of Lightning writes them, without anything of this package."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class MyDigits(LightningDataModule):
    def __init__(self, samples_per_class=None, val_fraction=0.0, seed=0):
        super().__init__()
        self.samples_per_class, self.val_fraction, self.seed = samples_per_class, val_fraction, seed

    def setup(self, stage=None):
        images, labels = load_digits(return_X_y=True)
        images, labels = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
        self.test = TensorDataset(images[1500:], labels[1500:])
        order = torch.randperm(1500, generator=torch.Generator().manual_seed(self.seed))
        if self.samples_per_class is not None:
            of_class = [order[labels[order] == label][: self.samples_per_class] for label in range(10)]
            order = torch.stack(of_class, dim=1).flatten()
        held_out = round(self.val_fraction * len(order))
        self.val = TensorDataset(images[order[:held_out]], labels[order[:held_out]])
        self.train = TensorDataset(images[order[held_out:]], labels[order[held_out:]])

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=64)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=64)


class MyClassifier(LightningModule):
    def __init__(self, lr):
        super().__init__()
        self.lr = lr
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class MyProbabilities(MyClassifier):
    """One that predicts probabilities."""

    def predict_step(self, batch, batch_idx):
        return self(batch[0]).softmax(1)


def my_data(settings):
    return MyDigits(settings["samples_per_class"], settings["val_fraction"], settings["split"])


def my_factory(settings):
    return MyClassifier(settings["lr"]), my_data(settings), {"max_epochs": 3, "accelerator": "cpu"}


def my_probabilities(settings):
    return MyProbabilities(settings["lr"]), my_data(settings), {"max_epochs": 3, "accelerator": "cpu"}


def softmax_factory(settings):
    """Return a regime of this package on the stranger's data."""
    from metricloss_pl import SoftmaxClassifier
    from metricloss_pl.backbones import TinyConvNet

    def optimizer(parameters):
        return torch.optim.SGD(parameters, lr=settings["lr"])

    model = SoftmaxClassifier(10, TinyConvNet(in_channels=1), optimizer=optimizer)
    return model, my_data(settings), {"max_epochs": 3, "accelerator": "cpu"}
