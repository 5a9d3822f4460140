"""Any number of channels: every backbone takes it, and pretrained first kernels are adapted to it."""

import pytest
import torch
from torch import nn

from metricloss_pl.backbones import (
    CifarResNet,
    LeNetPlusPlus,
    PreActResNet,
    TimmBackbone,
    TinyConvNet,
    TorchvisionBackbone,
)

BACKBONES = {
    "CifarResNet": lambda channels, weights=None: CifarResNet(channels, depth=8),
    "LeNetPlusPlus": lambda channels, weights=None: LeNetPlusPlus(channels),
    "PreActResNet": lambda channels, weights=None: PreActResNet(channels),
    "TinyConvNet": lambda channels, weights=None: TinyConvNet(channels, width=4),
    "resnet18": lambda channels, weights=None: TorchvisionBackbone("resnet18", channels, weights),
    "convnext_tiny": lambda channels, weights=None: TorchvisionBackbone("convnext_tiny", channels, weights),
    "timm": lambda channels, weights=None: TimmBackbone("stubnet", channels, weights),
}


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("channels", [1, 3, 4, 13])
def test_every_backbone_takes_any_number_of_channels(name, channels):
    backbone = BACKBONES[name](channels).eval()
    features = backbone(torch.rand(2, channels, 32, 32))
    assert features.shape == (2, backbone.num_features)
    assert features.isfinite().all()


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "timm"])
def test_first_kernels_are_adapted_as_timm_does(name, tmp_path):
    """Summed for one channel; else repeated and scaled, so that an image of alike channels gives alike maps."""
    torch.manual_seed(0)
    network = BACKBONES[name](3).network
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    kernel = next(module for module in network.modules() if isinstance(module, nn.Conv2d)).weight
    red, green, blue = kernel.unbind(1)
    expected = {
        1: [red + green + blue],
        3: [red, green, blue],
        4: [c * 3 / 4 for c in (red, green, blue, red)],
        13: [c * 3 / 13 for c in [red, green, blue] * 4 + [red]],
    }
    for channels, kernels in expected.items():
        adapted = BACKBONES[name](channels, str(tmp_path / "weights.pth")).network.state_dict()
        weight = next(value for value in adapted.values() if value.ndim == 4)
        torch.testing.assert_close(weight, torch.stack(kernels, 1))


def test_untrained_kernels_of_other_channels_differ_and_keep_their_spread():
    torch.manual_seed(0)
    three = TorchvisionBackbone("resnet18").network.conv1.weight
    for channels in (1, 13):
        kernel = TorchvisionBackbone("resnet18", channels).network.conv1.weight
        assert kernel.shape == (64, channels, 7, 7)
        assert kernel.std().item() == pytest.approx(three.std().item() * (3 / channels) ** 0.5, rel=0.1)
    assert not torch.equal(kernel[:, 0], kernel[:, 3])
    assert not TorchvisionBackbone("convnext_tiny", 1).network.features[0][0].bias.any()  # as torchvision starts it
