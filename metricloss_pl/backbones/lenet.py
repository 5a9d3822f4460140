"""LeNet++, the network of the center loss paper's MNIST figures."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from metricloss_pl.backbones.base import Backbone

_SIDE = 3  # of the last feature maps for images of 28 px, after three poolings


class LeNetPlusPlus(Backbone):
    """LeNet++: three pairs of 5x5 convolutions with PReLU and 2x2 max-pooling (Wen et al. 2016, Table 1).

    Images of 28 px leave 128 maps of 3x3, flattened to 1152 features. Other sizes, from 8 px, are averaged to 3x3.

    Args:
        in_channels: Channels of the images, at least 1.
        num_features: Length of the features; null for the 1152 as they are, a number for a fully connected layer with
            PReLU on top (2 for features that can be drawn).
    """

    def __init__(self, in_channels: int = 1, num_features: int | None = None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in (32, 64, 128):
            layers += [nn.Conv2d(channels, width, 5, padding=2), nn.PReLU()]
            layers += [nn.Conv2d(width, width, 5, padding=2), nn.PReLU(), nn.MaxPool2d(2)]
            channels = width
        self.maps = nn.Sequential(*layers)
        flat = channels * _SIDE * _SIDE
        self.num_features = flat if num_features is None else num_features
        self.project = (
            nn.Identity() if num_features is None else nn.Sequential(nn.Linear(flat, num_features), nn.PReLU())
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, num_features) of images (B, in_channels, H, W)."""
        maps = self.maps(images)
        if maps.shape[-2:] != (_SIDE, _SIDE):  # left out at 28 px: its CUDA backward is not deterministic
            maps = F.adaptive_avg_pool2d(maps, _SIDE)
        features: Tensor = self.project(maps.flatten(1))
        return features
