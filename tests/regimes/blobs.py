"""A toy problem: 4 x 4 gray images of three classes that a small network without batch norm tells apart."""

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

C, D = 3, 4


class Flat(nn.Module):
    """Images (B, 1, 4, 4) to features (B, D)."""

    def __init__(self, in_channels: int = 1, num_features: int = D) -> None:
        super().__init__()
        self.num_features = num_features
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16 * in_channels, num_features))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)


def blobs(count: int = 48, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % C
    means = torch.randn(C, 1, 4, 4, generator=torch.Generator().manual_seed(7))
    return TensorDataset(means[labels] + 0.3 * torch.randn(count, 1, 4, 4, generator=generator), labels)


def loader(count: int = 48, batch_size: int = 12, seed: int = 0) -> DataLoader:
    return DataLoader(blobs(count, seed), batch_size=batch_size)


def trainer(folder, **options) -> Trainer:
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
    }
    return Trainer(**{**defaults, **options})
