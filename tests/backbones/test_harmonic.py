import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metricloss_pl.backbones import TorchvisionBackbone
from metricloss_pl.backbones.harmonic import HarmonicConv2d, cosine_filters, use_harmonic
from metricloss_pl.errors import UserError


@pytest.mark.parametrize("size", [2, 3, 5])
def test_cosine_filters_are_the_formula(size: int):
    filters = cosine_filters(size)
    for i in range(size):
        for j in range(size):
            expected = torch.tensor(
                [
                    [
                        math.cos(math.pi * (y + 0.5) * i / size) * math.cos(math.pi * (x + 0.5) * j / size)
                        for x in range(size)
                    ]
                    for y in range(size)
                ]
            )
            torch.testing.assert_close(filters[i * size + j], expected / expected.abs().sum(), atol=1e-6, rtol=0)
    products = filters.flatten(1) @ filters.flatten(1).T
    torch.testing.assert_close(products, products.diag().diag(), atol=1e-6, rtol=0)  # orthogonal


@pytest.mark.parametrize(
    "settings", [{}, {"stride": 2, "padding": 1}, {"padding": 2, "dilation": 2}, {"groups": 2, "bias": False}]
)
def test_starts_as_the_convolution_that_it_replaces(settings: dict[str, int]):
    convolution = nn.Conv2d(4, 6, 3, **settings)
    maps = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(HarmonicConv2d(convolution)(maps), convolution(maps), atol=1e-5, rtol=1e-5)


def test_filters_are_sums_of_cosine_filters():
    harmonic = HarmonicConv2d(nn.Conv2d(1, 1, 3, bias=False))
    with torch.no_grad():
        harmonic.coefficients.copy_(torch.arange(9.0).view(1, 1, 9))
    expected = sum(value * basis for value, basis in enumerate(cosine_filters(3)))
    torch.testing.assert_close(harmonic.filters()[0, 0], expected)
    maps = torch.randn(1, 1, 5, 5)
    torch.testing.assert_close(harmonic(maps), F.conv2d(maps, expected[None, None]))


def test_networks_keep_their_function_and_other_layers():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 3, padding=1)))
    images = torch.randn(2, 3, 8, 8)
    expected = network(images)
    use_harmonic(network)
    assert [type(layer).__name__ for layer in (network[0], *network[1])] == [
        "HarmonicConv2d",
        "Conv2d",
        "HarmonicConv2d",
    ]
    torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-5)


def test_resnets_of_torchvision(tmp_path):
    torch.manual_seed(0)
    plain = TorchvisionBackbone("resnet18", small_stem=True).eval()
    images = torch.randn(1, 3, 16, 16)
    torch.save(plain.network.state_dict(), tmp_path / "plain.pt")
    harmonic = TorchvisionBackbone(
        "resnet18", small_stem=True, harmonic=True, weights=str(tmp_path / "plain.pt")
    ).eval()
    assert sum(isinstance(layer, HarmonicConv2d) for layer in harmonic.modules()) == 17
    torch.testing.assert_close(harmonic(images), plain(images), atol=1e-3, rtol=1e-3)
    torch.save(harmonic.network.state_dict(), tmp_path / "harmonic.pt")
    again = TorchvisionBackbone(
        "resnet18", small_stem=True, harmonic=True, weights=str(tmp_path / "harmonic.pt")
    ).eval()
    torch.testing.assert_close(again(images), harmonic(images))


def test_other_networks_are_refused():
    with pytest.raises(UserError, match=r"harmonic.*vgg11"):
        TorchvisionBackbone("vgg11", harmonic=True)
