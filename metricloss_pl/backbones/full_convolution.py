"""Full convolutions (F-Conv) for torchvision's ResNets."""

from __future__ import annotations

from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

__all__ = ["use_full_convolution"]


def use_full_convolution(network: ResNet) -> None:
    """Turn a ResNet's convolutions into full ones, in place (Kayhan & van Gemert, CVPR 2020).

    A k x k convolution gets k - 1 zeros on each side, so that every weight of the kernel meets every pixel, also at the
    border. A first max-pooling becomes 2x2 with stride 2 and without padding. Since the maps grow, a block's shortcut
    gets as many zeros on each side as its convolutions add: for 3x3 kernels 1 in a bottleneck, and 1 + stride in a
    basic block. Parameters and their names stay, so that weights of the plain network fit.
    """
    blocks = [module for module in network.modules() if isinstance(module, BasicBlock | Bottleneck)]
    growths = [_growth(block) for block in blocks]
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.padding = tuple(size - 1 for size in module.kernel_size)
    if isinstance(network.maxpool, nn.MaxPool2d):
        network.maxpool = nn.MaxPool2d(kernel_size=2, stride=2)
    for block, growth in zip(blocks, growths, strict=True):
        if block.downsample is None:
            block.downsample = nn.ZeroPad2d(growth)
        else:
            block.downsample[0].padding = (growth, growth)


def _growth(block: nn.Module) -> int:
    """Return the pixels that full convolutions add to each side of a block's maps, in pixels of its input."""
    growth, stride = 0, 1
    for convolution in block.children():
        if isinstance(convolution, nn.Conv2d):
            growth += stride * (convolution.kernel_size[0] - 1 - int(convolution.padding[0]))
            stride *= convolution.stride[0]
    return growth
