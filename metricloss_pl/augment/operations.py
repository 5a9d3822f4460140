"""Image operations of the AutoAugment family, each image of a batch with its own operation and strength.

The results are those of torchvision's operations on tensors (`torchvision.transforms.v2.functional`), image by image,
with its default interpolation, nearest, and black outside the image.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor


class Operation(IntEnum):
    """Operation on an image; its strength is what torchvision's policies call magnitude."""

    IDENTITY = 0
    SHEAR_X = 1  # tangent of the angle, about the top left corner
    SHEAR_Y = 2
    TRANSLATE_X = 3  # px, cut to whole pixels
    TRANSLATE_Y = 4
    ROTATE = 5  # degrees, counterclockwise
    COLOR = 6  # saturation minus 1
    SHARPNESS = 7  # factor minus 1, as of the next two
    BRIGHTNESS = 8
    CONTRAST = 9
    POSTERIZE = 10  # bits that are kept
    SOLARIZE = 11  # share of the range from which values are inverted
    AUTOCONTRAST = 12
    EQUALIZE = 13
    INVERT = 14


_GEOMETRIC = slice(Operation.SHEAR_X, Operation.ROTATE + 1)
_POINTWISE = slice(Operation.BRIGHTNESS, Operation.INVERT + 1)


def apply_operations(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    """Return the images, each changed by its own operation.

    Args:
        images: (B, 1 or 3, H, W), uint8 or float32 in [0, 1].
        operations: (B,) int64, values of `Operation`.
        strengths: (B,) float64; any number where the operation has none.

    Returns:
        (B, C, H, W), of the images' dtype.
    """
    codes = torch.arange(len(Operation), device=operations.device)
    counts = (operations[:, None] == codes).sum(0).tolist()  # a GPU is waited for only here
    order = operations.argsort()
    groups = images.index_select(0, order).split(counts)  # one per operation, in the order of their values
    strengths = strengths.index_select(0, order)
    changed = torch.cat(
        [
            groups[Operation.IDENTITY],
            _move(groups[_GEOMETRIC], strengths.split(counts)[_GEOMETRIC]),
            _saturate(groups[Operation.COLOR], strengths.split(counts)[Operation.COLOR]),
            _sharpen(groups[Operation.SHARPNESS], strengths.split(counts)[Operation.SHARPNESS]),
            _map_values(groups[_POINTWISE], strengths.split(counts)[_POINTWISE]),
        ]
    )
    return changed.index_select(0, order.argsort())  # many times faster than index_copy on a CPU


def _move(groups: tuple[Tensor, ...], strengths: tuple[Tensor, ...]) -> Tensor:
    """Shear, translate and rotate: look each pixel up at its place in the old image."""
    images = torch.cat(groups)
    batch, channels, height, width = images.shape
    # Inverse matrices, on pixels from the center of the image.
    matrices = torch.eye(2, 3, dtype=torch.float64, device=images.device).repeat(batch, 1, 1)
    shear_x, shear_y, translate_x, translate_y, rotate = matrices.split([len(group) for group in groups])
    shear_x[:, 0, 1], shear_x[:, 0, 2] = strengths[0], strengths[0] * (height / 2)
    shear_y[:, 1, 0], shear_y[:, 1, 2] = strengths[1], strengths[1] * (width / 2)
    translate_x[:, 0, 2] = -strengths[2].trunc()
    translate_y[:, 1, 2] = -strengths[3].trunc()
    angle = torch.deg2rad(strengths[4])
    rotate[:, 0, 0] = rotate[:, 1, 1] = angle.cos()
    rotate[:, 1, 0] = angle.sin()
    rotate[:, 0, 1] = -rotate[:, 1, 0]
    # From here in the order and the precision of torchvision's grid, since positions between two pixels are frequent:
    # a shear by 0.2 moves the row 2.5 px below the corner by exactly half a pixel.
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=images.device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=images.device)[:, None]
    cells = matrices.float()[..., None, None]
    columns, rows = (
        _pixels(x * (cells[:, axis, 0] / half) + y * (cells[:, axis, 1] / half) + cells[:, axis, 2] / half, half)
        for axis, half in ((0, width / 2), (1, height / 2))
    )
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    source = (rows.clamp_(0, height - 1).mul_(width) + columns.clamp_(0, width - 1)).to(torch.int64)
    source = source.flatten(1)[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, source).view_as(images).mul_(inside[:, None])


def _pixels(positions: Tensor, half: float) -> Tensor:
    """Return the nearest pixel of positions that run from -1 to 1 across 2 * half px."""
    return ((positions + 1) * half - 0.5).round_()


def _gray(images: Tensor) -> Tensor:
    """Return (B, 1, H, W) float32, whole numbers for uint8 images."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().split(1, 1)
    gray: Tensor = red * 0.2989 + green * 0.587 + blue * 0.114
    return gray.floor_() if images.dtype == torch.uint8 else gray


def _blend(values: Tensor, others: Tensor, strengths: Tensor, bound: float) -> Tensor:
    """Return values moved away from others (strength above 0) or towards them (below 0), within 0 and the bound."""
    factors = (1 + strengths).float()
    return (values * factors + others * (1 - factors)).clamp_(0, bound)


def _saturate(images: Tensor, strengths: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    bound = 255 if images.dtype == torch.uint8 else 1
    return _blend(images.float(), _gray(images), strengths[:, None, None, None], bound).to(images.dtype)


def _sharpen(images: Tensor, strengths: Tensor) -> Tensor:
    """Blend with the mean of 3 x 3 pixels, of which the middle one counts five times; the border stays."""
    if min(images.shape[2:]) <= 2:
        return images
    values = images.float()
    center = values[:, :, 1:-1, 1:-1]
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    blurred = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * center) / 13
    if images.dtype == torch.uint8:
        blurred.round_()
    bound = 255 if images.dtype == torch.uint8 else 1
    sharpened = images.clone()
    sharpened[:, :, 1:-1, 1:-1] = _blend(center, blurred, strengths[:, None, None, None], bound)
    return sharpened


def _map_values(groups: tuple[Tensor, ...], strengths: tuple[Tensor, ...]) -> Tensor:
    """Change each value by a function of it: for uint8, a table of all 256 values per image and channel."""
    images = torch.cat(groups).flatten(2)
    if images.dtype == torch.uint8:
        levels = torch.arange(256, dtype=torch.float32, device=images.device)
        values = [levels.expand(*group.shape[:2], 256) for group in groups]
        bound = 255.0
    else:
        values, bound = [group.flatten(2) for group in groups], 1.0
    mapped = torch.cat(
        [
            change(value, group, strength[:, None, None], bound)
            for change, value, group, strength in zip(_CHANGES, values, groups, strengths, strict=True)
        ]
    ).to(images.dtype)
    if images.dtype == torch.uint8:
        mapped = mapped.gather(2, images.to(torch.int64))
    return mapped.view(-1, *groups[0].shape[1:])


def _brighten(values: Tensor, images: Tensor, strengths: Tensor, bound: float) -> Tensor:
    return (values * (1 + strengths).float()).clamp_(0, bound)


def _contrast(values: Tensor, images: Tensor, strengths: Tensor, bound: float) -> Tensor:
    mean = _gray(images).mean((1, 2, 3), dtype=torch.float64).float()
    return _blend(values, mean[:, None, None], strengths, bound)


def _posterize(values: Tensor, images: Tensor, strengths: Tensor, bound: float) -> Tensor:
    levels = (1 << strengths.to(torch.int64)).float()
    step = (256 if bound > 1 else 1) / levels
    return (values / step).floor_().minimum(levels - 1) * step


def _solarize(values: Tensor, images: Tensor, strengths: Tensor, bound: float) -> Tensor:
    return torch.where(values >= (strengths * bound).float(), bound - values, values)


def _autocontrast(values: Tensor, images: Tensor, strengths: Tensor, bound: float) -> Tensor:
    pixels = images.flatten(2)
    lowest, highest = pixels.amin(2, keepdim=True).float(), pixels.amax(2, keepdim=True).float()
    scale = (highest - lowest) * (1 / bound)
    flat = scale == 0
    return ((values - lowest.masked_fill(flat, 0)) / scale.masked_fill(flat, 1)).clamp_(0, bound)


def _equalize(values: Tensor, images: Tensor, strengths: Tensor, bound: float) -> Tensor:
    """Spread the values by their ranks, as Pillow does; float32 images take 256 values."""
    if images.dtype != torch.uint8:
        images = (images * 255.999).to(torch.uint8)
    pixels = images.flatten(2).to(torch.int64)
    channels = torch.arange(pixels.shape[0] * pixels.shape[1], device=pixels.device).view(*pixels.shape[:2], 1)
    histograms = torch.zeros(channels.numel() * 256, dtype=torch.int64, device=pixels.device)
    places = (pixels + 256 * channels).flatten()
    histograms = histograms.scatter_add_(0, places, torch.ones_like(places)).view(*pixels.shape[:2], 256)
    below = histograms.cumsum(2) - histograms
    count_of_highest = histograms.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - count_of_highest) // 255
    tables = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    tables = torch.where(step == 0, torch.arange(256, device=pixels.device), tables)
    return tables.float() if bound > 1 else tables.gather(2, pixels) / 255


def _invert(values: Tensor, images: Tensor, strengths: Tensor, bound: float) -> Tensor:
    return bound - values


_CHANGES: tuple[Callable[[Tensor, Tensor, Tensor, float], Tensor], ...] = (  # in the order of `_POINTWISE`
    _brighten,
    _contrast,
    _posterize,
    _solarize,
    _autocontrast,
    _equalize,
    _invert,
)
