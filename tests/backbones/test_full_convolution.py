import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metricloss_pl.backbones import TorchvisionBackbone
from metricloss_pl.errors import UserError

STRIDE = 32  # of the whole network
PATTERN = 34  # px; such that the stem's maps have an even side, of which max-pooling drops nothing


def convolve_fully(maps: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Each pixel throws the flipped kernel, times itself, onto a larger plane; of that each stride-th stays."""
    (_, _, height, width), (size, _) = maps.shape, kernel.shape[2:]
    plane = torch.zeros(len(maps), len(kernel), height + size - 1, width + size - 1)
    stamp = kernel.flip(2, 3)
    for row in range(height):
        for column in range(width):
            thrown = torch.einsum("bi,oihw->bohw", maps[:, :, row, column], stamp)
            plane[:, :, row : row + size, column : column + size] += thrown
    return plane[:, :, ::stride, ::stride]


def evaluate(block: nn.Module, maps: Tensor, shortcut_padding: int) -> Tensor:
    """A residual block written out, in evaluation mode; the padding of its shortcut as in the authors' code."""

    def norm(maps: Tensor, layer: nn.Module) -> Tensor:
        scale = layer.weight / (layer.running_var + layer.eps).sqrt()
        return (maps - layer.running_mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]

    result = maps
    for number in (1, 2, 3):
        if hasattr(block, f"conv{number}"):
            convolution = getattr(block, f"conv{number}")
            result = result.relu() if number > 1 else result
            result = convolve_fully(result, convolution.weight, convolution.stride[0])
            result = norm(result, getattr(block, f"bn{number}"))
    shortcut = F.pad(maps, (shortcut_padding,) * 4)
    if isinstance(block.downsample, nn.Sequential):
        convolution, layer = block.downsample
        shortcut = shortcut[:, :, :: convolution.stride[0], :: convolution.stride[0]]
        shortcut = norm(torch.einsum("oi,bihw->bohw", convolution.weight[:, :, 0, 0], shortcut), layer)
    return (result + shortcut).relu()


@pytest.mark.parametrize(
    ("name", "path", "padding"),
    [
        ("resnet18", "layer1.0", 2),
        ("resnet18", "layer2.0", 3),
        ("resnet50", "layer1.0", 1),
        ("resnet50", "layer1.1", 1),
        ("resnet50", "layer2.0", 1),
    ],
)
@torch.no_grad()
def test_blocks_equal_those_written_out(name: str, path: str, padding: int):
    torch.manual_seed(0)
    block = TorchvisionBackbone(name, full_convolution=True).network.get_submodule(path).eval()
    for tensor in block.state_dict().values():  # norms away from their neutral start
        if tensor.ndim == 1:
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    maps = torch.rand(2, block.conv1.in_channels, 4, 5)
    torch.testing.assert_close(block(maps), evaluate(block, maps, padding), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "side", "sides"),
    [
        ("resnet50", 224, [115, 57, 63, 39, 31, 21]),
        ("resnet50", 32, [19, 9, 15, 15, 19, 15]),
        ("resnet18", 224, [115, 57, 65, 40, 27, 21]),
    ],
)
def test_sides_of_the_maps(name: str, side: int, sides: list[int]):
    """By hand: ceil(n / 2) + 3 in the stem, n / 2, then 2 px a 3x3 convolution, of ceil(n / 2) + 1 with stride 2."""
    with torch.device("meta"):
        network = TorchvisionBackbone(name, full_convolution=True).network
        maps, found = torch.empty(1, 3, side, side), []
        for part in ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            maps = network.get_submodule(part)(maps)
            found.append(maps.shape[-1])
    assert found == sides


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_are_finite_and_every_parameter_has_a_gradient(name: str):
    backbone = TorchvisionBackbone(name, in_channels=1, small_stem=True, full_convolution=True)
    assert isinstance(backbone.network.maxpool, nn.Identity)
    assert backbone.network.conv1(torch.rand(1, 1, 8, 8)).shape[2:] == (10, 10)
    features = backbone(torch.rand(2, 1, 8, 8))
    assert features.shape == (2, backbone.num_features)
    assert features.isfinite().all()
    features.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in backbone.parameters())


def test_other_networks_know_no_full_convolution():
    with pytest.raises(UserError, match=r"full_convolution: .* vgg11.* resnet, resnext, wide_resnet"):
        TorchvisionBackbone("vgg11", full_convolution=True)


# --------------------------------------------------------------------------------------------- effect at the border


def pair(left: int, right: int, row: int, column: int) -> Tensor:
    """A black image (1, 3, 98, 98) with two bars side by side, in these colors; rows and columns are 0, 1 or 2."""
    image = torch.zeros(1, 3, 2 * STRIDE + PATTERN, 2 * STRIDE + PATTERN)
    place = image[:, :, row * STRIDE : row * STRIDE + PATTERN, column * STRIDE : column * STRIDE + PATTERN]
    place[:, left, :, : PATTERN // 2] = 1
    place[:, right, :, PATTERN // 2 :] = 1
    return image


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_a_pattern_is_recognized_wherever_it_lies(name: str):
    """The authors' red-green test, on random features and the nearest example.

    The examples are red-green at the upper border and green-red at the lower one. For the plain network, which feels
    the border, what lies at the upper one is like the first example, whatever it is. With full convolutions a pattern's
    features are the same in all places (in steps of the network's stride), at the border and inside, so that its order
    is told. At the start biases are zero, and black stays zero throughout.
    """
    torch.manual_seed(0)
    plain = TorchvisionBackbone(name).eval()
    full = TorchvisionBackbone(name, full_convolution=True).eval()
    full.load_state_dict(plain.state_dict())
    (red, green), (upper, lower) = (0, 1), ((0, 1), (2, 1))
    order_is_told = {}
    for backbone in (plain, full):
        examples = torch.cat([backbone(pair(red, green, *upper)), backbone(pair(green, red, *lower))])
        images = torch.cat([pair(red, green, *lower), pair(green, red, *upper)])
        order_is_told[backbone] = torch.cdist(backbone(images), examples).argmin(1).tolist() == [0, 1]
    assert order_is_told[full]
    assert not order_is_told[plain]

    places = [(row, column) for row in range(3) for column in range(3)]
    for backbone in (plain, full):
        features = backbone(torch.cat([pair(red, green, *place) for place in places]))
        spread = (features - features[4]).norm(dim=1) / features[4].norm()  # 4 is the center
        assert (spread < 1e-5).all() if backbone is full else (spread[[0, 1, 2, 3, 5, 6, 7, 8]] > 0.1).all()
