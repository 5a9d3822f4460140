"""Small pre-activation ResNet of the standalone center loss."""

from __future__ import annotations

from torch import Tensor, nn

from metricloss_pl.backbones.base import Backbone


class PreActResNet(Backbone):
    """ResNet of five pre-activation blocks of widths 32, 32, 64, 64, 128 on a 3x3 convolution to 16 maps; 128 features.

    Blocks are those of He et al. 2016 ("Identity mappings in deep residual networks"); the second and the fourth halve
    the sides. The first convolution has no padding. Convolutions start Kaiming-normal, biases at zero. The last maps
    are averaged, so any size from 3 px fits.

    Args:
        in_channels: Channels of the images, at least 1.
    """

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        widths, strides = (32, 32, 64, 64, 128), (1, 2, 1, 2, 1)
        self.num_features = widths[-1]
        self.stem = nn.Conv2d(in_channels, 16, 3)
        self.blocks = nn.Sequential(
            *(
                _PreActBlock(before, width, stride)
                for before, width, stride in zip((16, *widths), widths, strides, strict=False)
            )
        )
        self.last = nn.Sequential(nn.BatchNorm2d(self.num_features), nn.ReLU())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, 128) of images (B, in_channels, H, W)."""
        maps: Tensor = self.last(self.blocks(self.stem(images)))
        return maps.mean((2, 3))


class _PreActBlock(nn.Module):
    """Block BN-ReLU-conv-BN-ReLU-conv with a 1x1 convolution of the activated input as skip."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.skip = nn.Conv2d(in_channels, width, 1, stride)

    def forward(self, maps: Tensor) -> Tensor:
        activated = self.activate(maps)
        result: Tensor = self.skip(activated) + self.residual(activated)
        return result
