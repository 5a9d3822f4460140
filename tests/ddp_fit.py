"""Fit every regime in one or two processes and save how each ends: ``python ddp_fit.py PROCESSES FILE``."""

import os
import sys

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from metricloss_pl.data import DigitsDataModule, ShiftCrop
from metricloss_pl.regimes import (
    CenterSoftmaxClassifier,
    CosineClassifier,
    SoftmaxClassifier,
    StandaloneCenterClassifier,
)


class Dense(nn.Module):
    """A network without batch norm, whose statistics would differ between processes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 6
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 6))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)


REGIMES = {
    "softmax": lambda **o: SoftmaxClassifier(10, Dense(), **o),
    "cosine": lambda **o: CosineClassifier(10, Dense(), head="none", **o),
    "center": lambda **o: CenterSoftmaxClassifier(10, Dense(), center_weight=0.1, **o),
    "center_gradient": lambda **o: CenterSoftmaxClassifier(10, Dense(), center_rule="gradient", **o),
    "center_means": lambda **o: CenterSoftmaxClassifier(10, Dense(), center_init="class-means", **o),
    "standalone": lambda **o: StandaloneCenterClassifier(10, Dense(), **o),
    "standalone_centers": lambda **o: StandaloneCenterClassifier(10, Dense(), inter="centers", **o),
}


def fit(name: str, processes: int) -> dict[str, dict]:
    seed_everything(0)
    data = DigitsDataModule(
        batch_size=32 // processes, samples_per_class=37, val_fraction=0.3, augment=[ShiftCrop(pixels=1)]
    )
    model = REGIMES[name](optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), class_weights="balanced")
    trainer = Trainer(
        max_epochs=6,
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
    metrics.update(trainer.test(model, data, verbose=False)[0])
    trainer.strategy.barrier()
    return {"state": model.state_dict(), "metrics": metrics}


if __name__ == "__main__":
    ends = {name: fit(name, int(sys.argv[1])) for name in REGIMES}
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        torch.save(ends, sys.argv[2])
