"""ResNets for images of 32 px."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from metricloss_pl.backbones.base import Backbone
from metricloss_pl.errors import UserError, check_choice

__all__ = ["CifarResNet"]

Shortcut = Literal["average", "subsample"]


class CifarResNet(Backbone):
    """ResNet of depth 6n + 2 for small images: three stages of n basic blocks on a 3x3 convolution.

    He et al. 2016 ("Deep residual learning for image recognition", section 4.2): the stages have 16, 32 and 64 maps,
    the second and the third halve the sides, and the last maps are averaged. Shortcuts have no parameters (option A):
    missing channels are zeros, as many before as behind. `depth=110, width_factor=2` is the network that Barz &
    Denzler (WACV 2020) train on CIFAR-100, resnet-110-wfc; its last linear layer is a regime's `embedding_dim`.

    Args:
        in_channels: Channels of the images, at least 1.
        depth: Layers with weights, a classifier included: 20, 32, 44, 56, 110 or any other 6n + 2.
        width_factor: Factor of the stages' maps, at least 1; there are 64 * width_factor features.
        shortcut: Shortcut of a block that halves the sides: `average` over 2x2 (Barz & Denzler) or `subsample`, every
            other pixel (He et al.).

    Raises:
        UserError: A depth that is not 6n + 2, or an unknown shortcut.
    """

    def __init__(
        self, in_channels: int = 3, depth: int = 20, width_factor: int = 1, shortcut: Shortcut = "average"
    ) -> None:
        super().__init__()
        check_choice("shortcut", shortcut, Shortcut)
        if depth < 8 or depth % 6 != 2:
            raise UserError(f"depth of CifarResNet is {depth}; it must be 6n + 2, as 20, 32, 44, 56 or 110")
        widths = [width_factor * width for width in (16, 32, 64)]
        self.num_features = widths[-1]
        layers: list[nn.Module] = [*_convolution(in_channels, widths[0], 1), nn.ReLU(inplace=True)]
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(depth // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(_BasicBlock(before, width, stride, shortcut))
                before = width
        self.maps = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, num_features) of images (B, in_channels, H, W)."""
        maps: Tensor = self.maps(images)
        return maps.mean((2, 3))


class _BasicBlock(nn.Module):
    """Block relu(x + BN-conv-ReLU-BN-conv(x)), x pooled and padded with zero channels where the shape changes."""

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.stride = stride
        self.shortcut = shortcut
        self.new_channels = width - in_channels
        self.residual = nn.Sequential(
            *_convolution(in_channels, width, stride), nn.ReLU(inplace=True), *_convolution(width, width, 1)
        )

    def forward(self, maps: Tensor) -> Tensor:
        residual: Tensor = self.residual(maps)
        if self.stride > 1:
            if self.shortcut == "average":
                maps = F.avg_pool2d(maps, self.stride, ceil_mode=True)  # an odd side's last row has an output, too
            else:
                maps = maps[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            maps = F.pad(maps, (0, 0, 0, 0, before, self.new_channels - before))
        return (maps + residual).relu_()


def _convolution(in_channels: int, width: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width)]
