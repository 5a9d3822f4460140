import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metricloss_pl.backbones import WhitenedConvNet
from metricloss_pl.backbones.base import InitializedFromImages
from metricloss_pl.backbones.harmonic import HarmonicConv2d
from metricloss_pl.backbones.whitened import patch_whitening_filters
from metricloss_pl.errors import UserError


def _smooth_images(count: int, channels: int, side: int) -> torch.Tensor:
    """Return images whose neighboring pixels are correlated."""
    generator = torch.Generator().manual_seed(0)
    return F.avg_pool2d(torch.randn(count, channels, side + 2, side + 2, generator=generator), 3, stride=1)


@pytest.mark.parametrize(("channels", "size"), [(3, 2), (1, 3), (4, 2)])
def test_whitened_patches_are_uncorrelated_with_unit_variance(channels: int, size: int):
    images = _smooth_images(100, channels, 12)  # more than one chunk
    outputs = F.conv2d(images, patch_whitening_filters(images, size, floor=1e-9)).transpose(0, 1).flatten(1)
    moments = outputs @ outputs.T / outputs.shape[1]
    torch.testing.assert_close(moments, torch.eye(len(outputs)), atol=2e-3, rtol=0)


def test_directions_without_variance_stay_finite():
    images = torch.zeros(3, 2, 4, 4)
    assert patch_whitening_filters(images, 2).isfinite().all()


def _reference(state: dict[str, torch.Tensor], images: torch.Tensor, depth: int, pooled: int) -> torch.Tensor:
    """The network written out with functions, in evaluation mode."""
    maps = F.gelu(F.conv2d(images, state["whitening.weight"], state["whitening.bias"]))
    if pooled > 1:
        maps = F.max_pool2d(maps, pooled)
    for stage in range(3):
        for position in range(depth):
            first = 0 if position == 0 else 4 + 3 * (position - 1)
            maps = F.conv2d(maps, state[f"stages.{stage}.{first}.weight"], padding=1)
            norm = first + 1
            if position == 0:
                maps, norm = F.max_pool2d(maps, 2), 2
            parts = (
                state[f"stages.{stage}.{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
            )
            maps = F.gelu(F.batch_norm(maps, *parts))
    return maps.amax((2, 3)) / 8


@pytest.mark.parametrize(
    ("side", "depth", "pooled", "working_size"),
    [
        *((28, 2, 1, 32), (32, 1, 1, 32), (47, 2, 1, 32), (48, 2, 1, 32), (49, 2, 2, 32), (96, 3, 3, 32)),
        *((128, 1, 4, 32), (96, 2, 2, 48), (96, 2, 1, 96)),
    ],
)
def test_equals_the_network_written_out(side: int, depth: int, pooled: int, working_size: int):
    backbone = WhitenedConvNet(width=8, depth=depth, working_size=working_size)
    with torch.no_grad():  # norms away from their neutral start
        for name, tensor in backbone.state_dict().items():
            if tensor.ndim == 1 and "whitening" not in name:
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    images = torch.randn(2, 3, side, side)
    expected = _reference(backbone.state_dict(), images, depth, pooled)
    assert expected.shape == (2, backbone.num_features)
    torch.testing.assert_close(backbone.eval()(images), expected, atol=1e-4, rtol=1e-4)


def test_initialize_sets_the_first_layer_and_nothing_else():
    backbone = WhitenedConvNet(in_channels=2, width=4)
    assert isinstance(backbone, InitializedFromImages)
    assert not backbone.initialized
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    images = _smooth_images(8, 2, 8)
    backbone.initialize(images)
    assert backbone.initialized
    filters = patch_whitening_filters(images, 2)
    for name, value in backbone.state_dict().items():
        expected = torch.cat([filters, -filters]) if name == "whitening.weight" else before[name]
        torch.testing.assert_close(value, expected)
    loaded = WhitenedConvNet(in_channels=2, width=4)
    loaded.load_state_dict(backbone.state_dict())
    assert loaded.initialized


def test_fixed_layers_do_not_train_and_convolutions_start_as_the_identity():
    backbone = WhitenedConvNet(width=8)
    fixed = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    norms = [name for name, layer in backbone.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    assert fixed == {"whitening.weight", *(f"{name}.weight" for name in norms)}
    second = backbone.stages[0][4]  # as many inputs as outputs
    maps = torch.randn(1, 8, 5, 5)
    torch.testing.assert_close(second(maps), maps)


def test_harmonic_learns_sums_of_cosine_filters():
    backbone = WhitenedConvNet(width=4, harmonic=True)
    assert sum(isinstance(layer, HarmonicConv2d) for layer in backbone.modules()) == 6
    assert not any(isinstance(layer, nn.Conv2d) for layer in backbone.stages.modules())


@pytest.mark.parametrize("arguments", [{"width": 0}, {"depth": 0}, {"working_size": 0}])
def test_wrong_arguments_are_refused(arguments: dict[str, int]):
    with pytest.raises(UserError, match=next(iter(arguments))):
        WhitenedConvNet(**arguments)


@pytest.mark.parametrize("side", [2, 5, 8])
def test_images_of_a_few_pixels(side: int):
    assert WhitenedConvNet(width=2, depth=1)(torch.randn(2, 3, side, side)).shape == (2, 8)


def test_images_without_a_patch_are_refused():
    """An automatic size is that of the shorter side, as of spectra of one row."""
    with pytest.raises(UserError, match=r"1 x 9 px: .* 2 x 2 px"):
        WhitenedConvNet().initialize(torch.rand(4, 3, 1, 9))
