import pytest
import torch
from torch import nn

from metricloss_pl.backbones import LeNetPlusPlus


def test_parameters_are_those_of_the_published_network() -> None:
    backbone = LeNetPlusPlus(num_features=2)
    head = nn.Linear(backbone.num_features, 10)
    assert sum(weight.numel() for module in (backbone, head) for weight in module.parameters()) == 797_191


@pytest.mark.parametrize("side", [8, 28, 32, 64])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_features(side: int, in_channels: int) -> None:
    images = torch.rand(2, in_channels, side, side)
    backbone = LeNetPlusPlus(in_channels)
    assert backbone.num_features == 1152
    assert backbone(images).shape == (2, 1152)
    assert LeNetPlusPlus(in_channels, num_features=2)(images).shape == (2, 2)


def test_maps_of_28_px_are_flattened_as_they_are() -> None:
    backbone = LeNetPlusPlus()
    images = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(backbone(images), backbone.maps(images).reshape(2, 1152))


def test_convolutions_are_followed_by_prelu() -> None:
    backbone = LeNetPlusPlus(num_features=2)
    kinds = [type(module) for module in backbone.modules() if not isinstance(module, nn.Sequential | LeNetPlusPlus)]
    pair = [nn.Conv2d, nn.PReLU]
    assert kinds == [*pair, *pair, nn.MaxPool2d] * 3 + [nn.Linear, nn.PReLU]
