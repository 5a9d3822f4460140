import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metricloss_pl.backbones import PreActResNet


@pytest.mark.parametrize(
    ("in_channels", "embedding_dim", "parameters"),
    [(1, 2, 401_056), (1, 128, 418_570), (3, 2, 401_344), (3, 128, 418_858)],
)
def test_parameters_are_those_of_the_published_network(in_channels: int, embedding_dim: int, parameters: int):
    backbone = PreActResNet(in_channels)
    rest = nn.Sequential(nn.Linear(backbone.num_features, embedding_dim), nn.Linear(embedding_dim, 10))
    assert sum(weight.numel() for module in (backbone, rest) for weight in module.parameters()) == parameters


def _reference(state: dict[str, Tensor], images: Tensor) -> tuple[Tensor, list[int]]:
    """The network written out with functions, in evaluation mode, and the side of the maps after each part."""

    def norm(maps: Tensor, name: str) -> Tensor:
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(maps, *parts)

    def conv(maps: Tensor, name: str, **settings: int) -> Tensor:
        return F.conv2d(maps, state[f"{name}.weight"], state[f"{name}.bias"], **settings)

    maps = conv(images, "stem")
    sides = [maps.shape[-1]]
    for index, stride in enumerate((1, 2, 1, 2, 1)):
        block = f"blocks.{index}"
        active = norm(maps, f"{block}.activate.0").relu()
        inner = conv(active, f"{block}.residual.0", stride=stride, padding=1)
        inner = conv(norm(inner, f"{block}.residual.1").relu(), f"{block}.residual.3", padding=1)
        maps = inner + conv(active, f"{block}.skip", stride=stride)
        sides.append(maps.shape[-1])
    return norm(maps, "last.0").relu().mean((-1, -2)), sides


@pytest.mark.parametrize(("side", "sides"), [(28, [26, 26, 13, 13, 7, 7]), (32, [30, 30, 15, 15, 8, 8])])
def test_equals_the_network_written_out(side: int, sides: list[int]):
    backbone = PreActResNet(3)
    with torch.no_grad():  # norms away from their neutral start
        for tensor in backbone.state_dict().values():
            if tensor.ndim == 1:
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    images = torch.rand(2, 3, side, side)
    expected, expected_sides = _reference(backbone.state_dict(), images)
    assert expected_sides == sides
    assert expected.shape == (2, backbone.num_features)
    torch.testing.assert_close(backbone.eval()(images), expected)


def test_start():
    torch.manual_seed(0)
    convolutions = [module for module in PreActResNet(1).modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 1 + 5 * 3
    for convolution in convolutions:
        assert convolution.bias is not None
        assert not convolution.bias.any()
        expected = (2 / convolution.weight[0].numel()) ** 0.5
        assert convolution.weight.std().item() == pytest.approx(expected, rel=0.25)
