"""Network for few and small images, on a fixed layer of whitened patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metricloss_pl.backbones.base import Backbone
from metricloss_pl.backbones.harmonic import cosine_filters, use_harmonic
from metricloss_pl.errors import UserError

__all__ = ["WhitenedConvNet", "patch_whitening_filters"]

_PATCH = 2  # side of a patch in px
_SPREAD = 8.0  # the largest values of normalized maps are about 3: logits start small, which trains better


def patch_whitening_filters(images: Tensor, size: int, floor: float = 5e-4) -> Tensor:
    """Return filters (C * size^2, C, size, size) whose outputs on the patches of the images are uncorrelated.

    They are the eigenvectors of the patches' second moments, largest eigenvalue first, each divided by
    sqrt(eigenvalue + floor), so that the outputs have about unit variance.

    Args:
        images: (N, C, H, W) floating-point, normalized, on the CPU; at least `size` px high and wide.
        size: Side of a patch in px.
        floor: Added to the eigenvalues, so that directions without variance do not become noise; above 0.
    """
    channels = images.shape[1]
    moments = torch.zeros(channels * size**2, channels * size**2, dtype=torch.float64)
    for chunk in images.split(64):  # patches need size^2 times the memory of the images
        patches = nn.functional.unfold(chunk.float(), size).transpose(1, 2).flatten(0, 1)  # (patches, C * size^2)
        moments += patches.T.double() @ patches.double() / len(patches) * len(chunk) / len(images)
    eigenvalues, vectors = torch.linalg.eigh(moments)
    filters: Tensor = vectors.T.flip(0) / (eigenvalues.flip(0)[:, None].clamp(min=0) + floor).sqrt()
    return filters.float().view(-1, channels, size, size)


class WhitenedConvNet(Backbone):
    """Network of three stages of 3 x 3 convolutions on a fixed layer of whitened patches, for 28 to 128 px.

    The first layer, its max-pooling and the stages follow Jordan 2024 ("94% on CIFAR-10 in 3.29 seconds on a single
    GPU"): 2 x 2 filters that whiten the patches of the training images, and their negatives; in each stage convolution,
    max-pooling, batch norm, GELU, and then `depth - 1` times convolution, batch norm, GELU. Batch norms have no scale.
    Convolutions start as the identity on their first channels. Images of more than one and a half times `working_size`
    are pooled to about that size after the first layer, so that the work hardly grows with the size of the images.

    The filters of the first layer are set by `initialize`, which training calls with training images. Before, they are
    those of the discrete cosine transform.

    Args:
        in_channels: Channels of the images, at least 1.
        width: Channels of the first stage; the second has twice and the third four times as many, and so have the
            features.
        depth: Convolutions per stage, at least 1.
        harmonic: Learn the filters as sums of cosine filters (`HarmonicConv2d`).
        working_size: Side in px of the maps on which the learned convolutions start, at least 1. A larger one keeps
            finer detail; the work grows with its square.

    Raises:
        UserError: An argument is below 1.
    """

    def __init__(
        self,
        in_channels: int = 3,
        width: int = 64,
        depth: int = 2,
        harmonic: bool = False,
        working_size: int = 32,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("depth", depth), ("working_size", working_size)):
            if value < 1:
                raise UserError(f"{name} of WhitenedConvNet is {value}: at least 1 is needed")
        widths = [width, 2 * width, 4 * width]
        self.num_features = widths[-1]
        self.working_size = working_size
        filters = _cosine_patches(in_channels)
        self.whitening = nn.Conv2d(in_channels, 2 * len(filters), _PATCH)
        self.whitening.weight.requires_grad_(False)
        self._set_filters(filters)
        before = 2 * len(filters)
        self.stages = nn.Sequential()
        for channels in widths:
            self.stages.append(_stage(before, channels, depth))
            before = channels
        if harmonic:
            use_harmonic(self.stages)

    def initialize(self, images: Tensor) -> None:
        """Whiten the patches of training images (N, C, H, W), normalized, with the first layer.

        Raises:
            UserError: The images are smaller than a patch.
        """
        height, width = images.shape[-2:]
        if min(height, width) < _PATCH:
            raise UserError(
                f"images of {height} x {width} px: WhitenedConvNet takes at least {_PATCH} x {_PATCH} px (image_size "
                "of the data)"
            )
        self._set_filters(patch_whitening_filters(images, _PATCH))

    @property
    def initialized(self) -> bool:
        """True once the first layer differs from its start, so that trained weights stay as they are."""
        filters = _cosine_patches(self.whitening.in_channels).to(self.whitening.weight)
        return not torch.equal(self.whitening.weight[: len(filters)], filters)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, 4 * width) of images (B, in_channels, H, W)."""
        side = min(images.shape[-2:])
        maps = nn.functional.gelu(self.whitening(images))
        if (factor := math.ceil(side / self.working_size - 0.5)) > 1:
            maps = nn.functional.max_pool2d(maps, factor)
        features: Tensor = self.stages(maps).amax((2, 3)) / _SPREAD
        return features

    def extra_repr(self) -> str:
        return f"working_size={self.working_size}"

    def _set_filters(self, filters: Tensor) -> None:
        with torch.no_grad():
            self.whitening.weight.copy_(torch.cat([filters, -filters]))


def _cosine_patches(in_channels: int) -> Tensor:
    """Return the filters of the first layer before `initialize`: cosine filters of each channel alone."""
    waves = cosine_filters(_PATCH)
    waves = waves / waves.square().sum((1, 2), keepdim=True).sqrt()
    filters = torch.zeros(in_channels, len(waves), in_channels, _PATCH, _PATCH)
    for channel in range(in_channels):
        filters[channel, :, channel] = waves
    return filters.transpose(0, 1).flatten(0, 1)


def _stage(in_channels: int, channels: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for position in range(depth):
        layers.append(_convolution(in_channels if position == 0 else channels, channels))
        if position == 0:
            layers.append(_MaxPool(2))
        layers += [_norm(channels), nn.GELU()]
    return nn.Sequential(*layers)


def _convolution(in_channels: int, channels: int) -> nn.Conv2d:
    """Return a 3 x 3 convolution whose first outputs are its inputs; the others start as usual."""
    convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(convolution.weight[: min(in_channels, channels)])
    return convolution


def _norm(channels: int) -> nn.BatchNorm2d:
    """Return a batch norm whose scale stays 1."""
    norm = nn.BatchNorm2d(channels)
    norm.weight.requires_grad_(False)
    return norm


class _MaxPool(nn.MaxPool2d):
    """Max-pooling that leaves maps of one pixel as they are, so that images of a few pixels fit."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps) if min(maps.shape[-2:]) > 1 else maps
