"""Convolutions whose filters are learned sums of fixed cosine filters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["HarmonicConv2d", "cosine_filters", "is_harmonic", "use_harmonic"]


def cosine_filters(size: int) -> Tensor:
    """Return the filters (size^2, size, size) of the two-dimensional discrete cosine transform (DCT-II).

    Filter (i, j) is cos(pi (y + 1/2) i / size) cos(pi (x + 1/2) j / size), divided by the sum of its absolute values.
    """
    positions = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(torch.pi * (positions + 0.5) * positions[:, None] / size)  # (frequency, position)
    filters = (waves[:, None, :, None] * waves[None, :, None, :]).flatten(0, 1)
    return (filters / filters.abs().sum((1, 2), keepdim=True)).float()


class HarmonicConv2d(nn.Module):
    """Convolution whose k x k filters are learned sums of the k^2 filters of the discrete cosine transform.

    The filters are summed first, so that the work is that of an ordinary convolution (Ulicny, Krylov and Dahyot 2019,
    "Harmonic networks for image classification").

    Args:
        convolution: Convolution with square filters, whose settings, filters and bias are taken over.
    """

    basis: Tensor

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.settings = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
        self.bias = convolution.bias
        self.register_buffer("basis", cosine_filters(convolution.kernel_size[0]), persistent=False)
        inverse = torch.linalg.inv(self.basis.double().flatten(1))
        coefficients = convolution.weight.detach().double().flatten(2) @ inverse
        self.coefficients = nn.Parameter(coefficients.to(convolution.weight.dtype))  # (out, in, k^2)

    def filters(self) -> Tensor:
        """Return the filters (out, in, k, k) that the coefficients make up."""
        size = self.basis.shape[-1]
        filters: Tensor = (self.coefficients @ self.basis.flatten(1)).unflatten(2, (size, size))
        return filters

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps (B, out, H', W') of maps (B, in, H, W)."""
        stride, padding, dilation, groups = self.settings
        return F.conv2d(maps, self.filters(), self.bias, stride, padding, dilation, groups)


def use_harmonic(network: nn.Module) -> None:
    """Replace each 3 x 3 convolution of a network by a harmonic one with the same filters."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3):
                setattr(parent, name, HarmonicConv2d(child))


def is_harmonic(state: Mapping[str, Tensor] | None) -> bool:
    """Return whether a state dict is that of a network with harmonic convolutions."""
    return state is not None and any(name.endswith(".coefficients") for name in state)
