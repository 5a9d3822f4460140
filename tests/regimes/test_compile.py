"""Regimes train compiled as they do without."""

import shutil

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from metricloss_pl.regimes import (
    CenterSoftmaxClassifier,
    CosineClassifier,
    SoftmaxClassifier,
    StandaloneCenterClassifier,
)
from tests.regimes.blobs import C, D, loader, trainer

REGIMES = (SoftmaxClassifier, CosineClassifier, CenterSoftmaxClassifier, StandaloneCenterClassifier)


class Convolutions(nn.Module):
    """Two layers with a batch norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = D
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, D))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)


class Losses(Callback):
    """The training loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler on a CPU")
@pytest.mark.parametrize("regime", REGIMES)
def test_losses_are_the_same(regime, tmp_path):
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model, losses = regime(C, Convolutions()), Losses()
        if compiled:
            model.backbone.compile()  # as --compile true does
        trainer(tmp_path, max_epochs=2, callbacks=[losses], limit_val_batches=0).fit(model, loader())
        found.append(losses.values)
    assert len(found[0]) == 8
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-4)
