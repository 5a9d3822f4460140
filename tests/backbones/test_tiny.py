import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metricloss_pl.backbones import TinyConvNet


@pytest.mark.parametrize("side", [4, 8, 28])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_features(side: int, in_channels: int) -> None:
    backbone = TinyConvNet(in_channels, width=8)
    assert backbone.num_features == 16
    assert backbone(torch.rand(2, in_channels, side, side)).shape == (2, 16)


def test_dropout_is_for_training_alone() -> None:
    torch.manual_seed(0)
    images = torch.rand(16, 1, 8, 8)
    backbone = TinyConvNet(dropout=0.5)
    without = TinyConvNet()
    without.load_state_dict(backbone.state_dict())
    share = (backbone(images) == 0).float().mean() - (without(images) == 0).float().mean()
    assert 0.3 < share.item() < 0.6
    backbone.eval()
    torch.testing.assert_close(backbone(images), backbone(images), rtol=0, atol=0)


def test_learns_where_a_stroke_runs() -> None:
    """Horizontal and vertical strokes at random places: no single pixel tells them apart."""
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    images = torch.zeros(64, 1, 8, 8)
    images[torch.arange(64), 0, torch.randint(8, (64,))] = 1
    images[labels == 1] = images[labels == 1].transpose(2, 3)
    backbone = TinyConvNet(width=8)
    network = nn.Sequential(backbone, nn.Linear(backbone.num_features, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    assert (network.eval()(images).argmax(1) == labels).all()
