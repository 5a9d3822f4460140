"""Image operations of the AutoAugment family, each image of a batch with its own operation and strength.

The results are those of torchvision's operations on tensors (`torchvision.transforms.v2.functional`), image by image,
with its default interpolation, nearest, and black outside the image.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import torch
import torch.nn.functional as nnf
from torch import Tensor

from metricloss_pl.augment import devices


class Operation(IntEnum):
    """Operation on an image. Its strength is called magnitude in torchvision's policies."""

    IDENTITY = 0
    SHEAR_X = 1  # tangent of the angle, about the top left corner
    SHEAR_Y = 2
    TRANSLATE_X = 3  # px, cut to whole pixels
    TRANSLATE_Y = 4
    ROTATE = 5  # degrees, counterclockwise
    COLOR = 6  # saturation minus 1
    SHARPNESS = 7  # factor minus 1, like those of the next two
    BRIGHTNESS = 8
    CONTRAST = 9
    POSTERIZE = 10  # bits that are kept
    SOLARIZE = 11  # share of the range from which values are inverted
    AUTOCONTRAST = 12
    EQUALIZE = 13
    INVERT = 14


def apply_operations(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    """Return the images, each changed by its own operation.

    Args:
        images: (B, 1 or 3, H, W), uint8 or float32 in [0, 1].
        operations: (B,) int64, values of `Operation`.
        strengths: (B,) float64; any number where the operation has none.

    Returns:
        (B, C, H, W), of the images' dtype.
    """
    if not devices.on_cpu(images):  # all changes of all images, because groups by operation are known only by waiting
        for first, change in _CHANGES.items():
            chosen = (operations >= first) & (operations <= _last(first))
            images = torch.where(chosen[:, None, None, None], change(images, operations, strengths), images)
        return images
    order = operations.argsort()  # images of one operation side by side
    counts = torch.bincount(operations, minlength=len(Operation)).tolist()
    sizes = [sum(counts[first : _last(first) + 1]) for first in _CHANGES]
    parts = zip(*(each.index_select(0, order).split(sizes) for each in (images, operations, strengths)), strict=True)
    changed = [change(*part) for change, part in zip(_CHANGES.values(), parts, strict=True)]
    return torch.cat(changed).index_select(0, order.argsort())  # much faster than index_copy


def _keep(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    return images


def _move(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    """Shear, translate and rotate: look each pixel up at its place in the old image."""
    channels, height, width = images.shape[1:]

    def of(operation: Operation, strength: Tensor, otherwise: float = 0.0) -> Tensor:
        return torch.where(operations == operation, strength, otherwise)

    # Rows of the inverse matrices, on pixels from the center of the image.
    angles = torch.deg2rad(strengths)
    cosine, sine = of(Operation.ROTATE, angles.cos(), 1.0), of(Operation.ROTATE, angles.sin())
    shear_x, shear_y = of(Operation.SHEAR_X, strengths), of(Operation.SHEAR_Y, strengths)
    shift_x, shift_y = (of(each, strengths.trunc()) for each in (Operation.TRANSLATE_X, Operation.TRANSLATE_Y))
    to_columns = torch.stack([cosine, shear_x - sine, shear_x * (height / 2) - shift_x], 1)
    to_rows = torch.stack([shear_y + sine, cosine, shear_y * (width / 2) - shift_y], 1)
    # From here in the order and the precision of torchvision's grid, since positions between two pixels are frequent:
    # a shear by 0.2 moves the row 2.5 px below the corner by exactly half a pixel.
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=images.device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=images.device)[:, None]
    columns, rows = _pixels(x, y, to_columns, width), _pixels(x, y, to_rows, height)
    # Pixels outside are those of a black border of 1 px.
    padded = nnf.pad(images, (1, 1, 1, 1)).flatten(2)
    sources = rows.clamp_(-1, height).mul_(width + 2).add_(columns.clamp_(-1, width)).add_(width + 3).to(torch.int64)
    return padded.gather(2, sources.flatten(1)[:, None].expand(-1, channels, -1)).view_as(images)


def _pixels(x: Tensor, y: Tensor, factors: Tensor, size: int) -> Tensor:
    """Return the pixels (N, H, W) along one axis that are nearest to factors (N, 3) times x, y and 1."""
    half = torch.full((), size / 2, device=x.device)  # a tensor: a GPU would multiply by the inverse of a number
    from_x, from_y, shift = (factors.float() / half)[..., None, None].unbind(1)
    return (x * from_x + y * from_y).add_(shift).add_(1).mul_(half).sub_(0.5).round_()


def _bound(images: Tensor) -> float:
    """Return the largest value."""
    return 255.0 if images.dtype == torch.uint8 else 1.0


def _gray(images: Tensor) -> Tensor:
    """Return (N, 1, H, W) float32, whole numbers for uint8 images."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().split(1, 1)
    gray: Tensor = (red * 0.2989).add_(green * 0.587).add_(blue * 0.114)
    return gray.floor_() if images.dtype == torch.uint8 else gray


def _blend_(values: Tensor, others: Tensor, strengths: Tensor) -> Tensor:
    """Move values away from others (strength above 0) or towards them (below 0), in place."""
    factors = (1 + strengths).float()
    return values.mul_(factors).add_(others.mul_(1 - factors))


def _saturate(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    values = _blend_(images.to(torch.float32, copy=True), _gray(images), strengths[:, None, None, None])
    return values.clamp_(0, _bound(images)).to(images.dtype)


def _sharpen(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    """Blend with the mean of 3 x 3 pixels, of which the middle one counts five times; the border stays."""
    if min(images.shape[2:]) <= 2:
        return images
    values = images.to(torch.float32, copy=True)
    rows = (values[:, :, :-2] + values[:, :, 1:-1]).add_(values[:, :, 2:])
    center = values[:, :, 1:-1, 1:-1]
    blurred = (rows[..., :-2] + rows[..., 1:-1]).add_(rows[..., 2:]).add_(center, alpha=4).div_(13)
    if images.dtype == torch.uint8:
        blurred.round_()
    _blend_(center, blurred, strengths[:, None, None, None])
    return values.clamp_(0, _bound(images)).to(images.dtype)


def _map_values(images: Tensor, operations: Tensor, strengths: Tensor) -> Tensor:
    """Change each value by a function of it: for uint8, a table of all 256 values per image and channel.

    On a CPU, images of one operation must be side by side, in the order of the operations.
    """
    pixels, strengths = images.flatten(2), strengths[:, None, None]
    levels = torch.arange(256, dtype=torch.float32, device=images.device).view(1, 1, 256)
    if devices.on_cpu(images):
        counts = torch.bincount(operations, minlength=len(Operation))[Operation.BRIGHTNESS :].tolist()
        groups = zip(pixels.split(counts), strengths.split(counts), strict=True)
        mapped = torch.cat(
            [
                change(levels if group.dtype == torch.uint8 else group, group, strength).expand(-1, pixels.shape[1], -1)
                for change, (group, strength) in zip(_FUNCTIONS.values(), groups, strict=True)
            ]
        )
    else:
        values = mapped = levels if images.dtype == torch.uint8 else pixels
        for operation, change in _FUNCTIONS.items():
            chosen = (operations == operation)[:, None, None]
            mapped = torch.where(chosen, change(values, pixels, strengths), mapped)
        mapped = mapped.expand(-1, pixels.shape[1], -1)
    mapped = mapped.to(images.dtype)
    return (mapped.gather(2, pixels.to(torch.int64)) if images.dtype == torch.uint8 else mapped).view_as(images)


# Functions of values (N or 1, C or 1, any), either the 256 levels or the values of the images (N, C, H * W) themselves.


def _brighten(values: Tensor, images: Tensor, strengths: Tensor) -> Tensor:
    return (values * (1 + strengths).float()).clamp_(0, _bound(images))


def _contrast(values: Tensor, images: Tensor, strengths: Tensor) -> Tensor:
    means = _gray(images).mean(2, keepdim=True, dtype=torch.float64).float()
    factors = (1 + strengths).float()
    return (values * factors).add_(means * (1 - factors)).clamp_(0, _bound(images))


def _posterize(values: Tensor, images: Tensor, strengths: Tensor) -> Tensor:
    levels = (1 << strengths.to(torch.int64)).float()
    step = (256 if images.dtype == torch.uint8 else 1) / levels
    return (values / step).floor_().minimum(levels - 1) * step


def _solarize(values: Tensor, images: Tensor, strengths: Tensor) -> Tensor:
    bound = _bound(images)
    return torch.where(values >= (strengths * bound).float(), bound - values, values)


def _autocontrast(values: Tensor, images: Tensor, strengths: Tensor) -> Tensor:
    bound = _bound(images)
    lowest, highest = images.amin(2, keepdim=True).float(), images.amax(2, keepdim=True).float()
    scale = (highest - lowest) * (1 / bound)
    flat = scale == 0
    return (values - lowest.masked_fill(flat, 0)).div_(scale.masked_fill(flat, 1)).clamp_(0, bound)


def _equalize(values: Tensor, images: Tensor, strengths: Tensor) -> Tensor:
    """Spread the values by their ranks, as Pillow does; float32 images take 256 values."""
    in_levels = images.dtype == torch.uint8
    pixels = (images if in_levels else images * 255.999).to(torch.uint8).to(torch.int64)
    offsets = torch.arange(0, 256 * pixels.shape[0] * pixels.shape[1], 256, device=pixels.device)
    places = (pixels + offsets.view(*pixels.shape[:2], 1)).flatten()
    counts = torch.zeros(256 * len(offsets), dtype=torch.int32, device=pixels.device)
    counts = counts.scatter_add_(0, places, counts.new_ones(1).expand_as(places)).view(*pixels.shape[:2], 256)
    below = (counts.cumsum(2) - counts).double()  # whole numbers, which torch divides faster as float64
    step = (pixels.shape[2] - counts.gather(2, pixels.amax(2, keepdim=True))) // 255
    tables = (below + step // 2).div_(step.clamp(min=1)).floor_().clamp_(max=255)
    tables = torch.where(step == 0, torch.arange(256, device=pixels.device), tables).float()
    return tables if in_levels else tables.gather(2, pixels).div_(255)


def _invert(values: Tensor, images: Tensor, strengths: Tensor) -> Tensor:
    return (_bound(images) - values).expand(len(images), -1, -1)


_FUNCTIONS: dict[Operation, Callable[[Tensor, Tensor, Tensor], Tensor]] = {  # in the order of the operations
    Operation.BRIGHTNESS: _brighten,
    Operation.CONTRAST: _contrast,
    Operation.POSTERIZE: _posterize,
    Operation.SOLARIZE: _solarize,
    Operation.AUTOCONTRAST: _autocontrast,
    Operation.EQUALIZE: _equalize,
    Operation.INVERT: _invert,
}
_CHANGES: dict[Operation, Callable[[Tensor, Tensor, Tensor], Tensor]] = {  # by the first operation that each makes
    Operation.IDENTITY: _keep,
    Operation.SHEAR_X: _move,
    Operation.COLOR: _saturate,
    Operation.SHARPNESS: _sharpen,
    Operation.BRIGHTNESS: _map_values,
}


def _last(first: Operation) -> int:
    """Return the last operation that the change of `first` makes."""
    return min((following for following in _CHANGES if following > first), default=len(Operation)) - 1
