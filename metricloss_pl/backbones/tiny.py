"""Network for tiny images, fast on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from metricloss_pl.backbones.base import Backbone


class TinyConvNet(Backbone):
    """Network of four 3x3 convolutions with batch norm, two 2x2 max-poolings and a global average, for 4 to some 40 px.

    Args:
        in_channels: Channels of the images, at least 1.
        width: Channels of the first two convolutions; the last two, and so the features, have twice as many.
        dropout: Share of the features set to zero in training, in [0, 1).
    """

    def __init__(self, in_channels: int = 1, width: int = 32, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_features = 2 * width
        self.maps = nn.Sequential(
            *_convolution(in_channels, width),
            *_convolution(width, width),
            nn.MaxPool2d(2),
            *_convolution(width, 2 * width),
            nn.MaxPool2d(2),
            *_convolution(2 * width, 2 * width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, 2 * width) of images (B, in_channels, H, W)."""
        maps: Tensor = self.maps(images)
        features: Tensor = self.dropout(maps.mean((2, 3)))
        return features


def _convolution(in_channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
