import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metricloss_pl.backbones import CifarResNet
from metricloss_pl.errors import UserError

# In millions, with a classifier of ten classes: He et al. 2016, Table 6.
PUBLISHED = {20: "0.27", 32: "0.46", 44: "0.66", 56: "0.85", 110: "1.7", 1202: "19.4"}


def parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize("depth", PUBLISHED)
def test_parameters_are_those_published(depth: int):
    with torch.device("meta"):
        backbone = CifarResNet(depth=depth)
        whole = parameters(backbone) + parameters(nn.Linear(backbone.num_features, 10))
    digits = len(PUBLISHED[depth].partition(".")[2])
    assert f"{whole / 1e6:.{digits}f}" == PUBLISHED[depth]
    assert sum(isinstance(module, nn.Conv2d) for module in backbone.modules()) == depth - 1


@pytest.mark.parametrize(("in_channels", "width_factor"), [(1, 1), (3, 1), (3, 2)])
def test_parameters_counted_by_hand(in_channels: int, width_factor: int):
    """resnet-110, and with twice the width the paper's resnet-110-wfc: 32, 64 and 128 maps."""
    first, second, third = (width_factor * width for width in (16, 32, 64))
    kernels = in_channels * first + 36 * first**2 + (first + 35 * second) * second + (second + 35 * third) * third
    norms = 37 * first + 36 * second + 36 * third
    with torch.device("meta"):
        backbone = CifarResNet(in_channels, depth=110, width_factor=width_factor)
    assert parameters(backbone) == 9 * kernels + 2 * norms
    assert backbone.num_features == third


def written_out(state: dict[str, Tensor], images: Tensor, shortcut: str) -> tuple[Tensor, list[tuple[int, ...]]]:
    """ResNet-8 with functions, in evaluation mode, and the shape of the maps after each part."""

    def convolve(maps: Tensor, path: str, number: int, stride: int = 1) -> Tensor:
        maps = F.conv2d(maps, state[f"{path}{number}.weight"], stride=stride, padding=1)
        norm = f"{path}{number + 1}."
        parts = (state[norm + part] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(maps, *parts)

    def halve(maps: Tensor) -> Tensor:
        rows = []
        for row in range(0, maps.shape[2], 2):
            windows = [maps[:, :, row : row + 2, column : column + 2] for column in range(0, maps.shape[3], 2)]
            rows.append(torch.stack([w.mean((2, 3)) if shortcut == "average" else w[:, :, 0, 0] for w in windows], 2))
        return torch.stack(rows, 2)

    maps = convolve(images, "maps.", 0).relu()
    shapes = [tuple(maps.shape[1:])]
    for block, stride in ((3, 1), (4, 2), (5, 2)):
        residual = convolve(maps, f"maps.{block}.residual.", 0, stride).relu()
        residual = convolve(residual, f"maps.{block}.residual.", 3)
        if stride == 2:
            zeros = torch.zeros_like(halve(maps)[:, ::2])  # half as many channels, before and behind
            maps = torch.cat([zeros, halve(maps), zeros], 1)
        maps = (maps + residual).relu()
        shapes.append(tuple(maps.shape[1:]))
    return maps.mean((2, 3)), shapes


@pytest.mark.parametrize("shortcut", ["average", "subsample"])
@pytest.mark.parametrize(
    ("in_channels", "side", "sides"), [(3, 32, (32, 16, 8)), (1, 28, (28, 14, 7)), (3, 9, (9, 5, 3))]
)
@torch.no_grad()
def test_equals_the_network_written_out(in_channels: int, side: int, sides: tuple[int, int, int], shortcut: str):
    torch.manual_seed(0)
    backbone = CifarResNet(in_channels, depth=8, shortcut=shortcut)  # type: ignore[arg-type]
    for tensor in backbone.state_dict().values():  # norms away from their neutral start
        if tensor.ndim == 1:
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    images = torch.rand(2, in_channels, side, side)
    expected, shapes = written_out(backbone.state_dict(), images, shortcut)
    assert shapes == [(16, side, side), *((w, s, s) for w, s in zip((16, 32, 64), sides, strict=True))]
    torch.testing.assert_close(backbone.eval()(images), expected)


@pytest.mark.parametrize("shortcut", ["average", "subsample"])
def test_every_parameter_has_a_gradient_and_maps_stay_channels_last(shortcut: str):
    backbone = CifarResNet(1, depth=14, width_factor=2, shortcut=shortcut)  # type: ignore[arg-type]
    backbone = backbone.to(memory_format=torch.channels_last)
    strides = []
    for module in backbone.maps:
        module.register_forward_hook(
            lambda _module, _inputs, maps: strides.append(maps.is_contiguous(memory_format=torch.channels_last))
        )
    features = backbone(torch.rand(4, 1, 16, 16).contiguous(memory_format=torch.channels_last))
    features.square().sum().backward()
    assert features.shape == (4, 128)
    assert len(strides) == 9
    assert all(strides)
    assert all(weight.grad is not None and weight.grad.any() for weight in backbone.parameters())


@pytest.mark.parametrize("settings", [{"depth": 2}, {"depth": 18}, {"depth": 101}, {"shortcut": "conv"}])
def test_impossible_settings_are_refused(settings):
    ((name, value),) = settings.items()
    with pytest.raises(UserError, match=f"{name} .*{value}"):
        CifarResNet(**settings)
