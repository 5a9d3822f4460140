import pytest
import torch

from metricloss_pl.backbones import TinyConvNet


@pytest.mark.parametrize("side", [4, 8, 28])
def test_features(side):
    assert TinyConvNet(width=8)(torch.rand(2, 1, side, side)).shape == (2, 16)


def test_dropout_acts_only_in_training():
    torch.manual_seed(0)
    images = torch.rand(16, 1, 8, 8)
    backbone = TinyConvNet(dropout=0.5)
    without = TinyConvNet()
    without.load_state_dict(backbone.state_dict())
    share = (backbone(images) == 0).float().mean() - (without(images) == 0).float().mean()
    assert 0.3 < share.item() < 0.6
    backbone.eval()
    torch.testing.assert_close(backbone(images), backbone(images), rtol=0, atol=0)
