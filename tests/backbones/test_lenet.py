import pytest
import torch
from torch import nn

from metricloss_pl.backbones import LeNetPlusPlus


def test_parameters_are_those_of_the_published_network():
    backbone = LeNetPlusPlus(num_features=2)
    head = nn.Linear(backbone.num_features, 10)
    assert sum(weight.numel() for module in (backbone, head) for weight in module.parameters()) == 797_191


@pytest.mark.parametrize("side", [8, 28, 32, 64])
def test_features(side):
    """Those of 28 px are the maps as they are."""
    images = torch.rand(2, 1, side, side)
    backbone = LeNetPlusPlus()
    assert backbone(images).shape == (2, backbone.num_features) == (2, 1152)
    if side == 28:
        torch.testing.assert_close(backbone(images), backbone.maps(images).reshape(2, 1152))
    assert LeNetPlusPlus(num_features=2)(images).shape == (2, 2)


def test_convolutions_are_followed_by_prelu():
    backbone = LeNetPlusPlus(num_features=2)
    kinds = [type(module) for module in backbone.modules() if not isinstance(module, nn.Sequential | LeNetPlusPlus)]
    pair = [nn.Conv2d, nn.PReLU]
    assert kinds == [*pair, *pair, nn.MaxPool2d] * 3 + [nn.Linear, nn.PReLU]
