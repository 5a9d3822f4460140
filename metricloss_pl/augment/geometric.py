"""Flips, shifts, rotations and crops."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from metricloss_pl.augment import devices
from metricloss_pl.augment.base import ATTEMPTS, Augmentation, check_probability, check_range, draw_rectangles
from metricloss_pl.augment.keys import uniform
from metricloss_pl.errors import UserError, check_choice

Fill = Literal["reflect", "nearest", "zero"]
_FILLS: dict[Fill, str] = {"reflect": "reflection", "nearest": "border", "zero": "zeros"}  # torch's names


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Return positions mirrored into 0..size-1 at the first and last pixel (as often as needed)."""
    period = max(2 * (size - 1), 1)
    folded = positions.remainder(period)
    return torch.where(folded < size, folded, period - folded) if size > 1 else torch.zeros_like(positions)


def crop(images: Tensor, tops: Tensor, lefts: Tensor, height: int, width: int, fill: Fill = "reflect") -> Tensor:
    """Cut a window of (height, width) px out of each image, each at its own place.

    Args:
        images: (B, C, H, W).
        tops: (B,) int64, first row of each window; may lie outside the image.
        lefts: (B,) int64, first column of each window; may lie outside the image.
        height: Height of the window in px.
        width: Width of the window in px.
        fill: Content outside the image: the image mirrored at its border pixel, its border pixel repeated, or zero.

    Returns:
        (B, C, height, width), of the images' dtype.
    """
    batch, channels, full_height, full_width = images.shape
    rows = tops[:, None] + torch.arange(height, device=tops.device)
    columns = lefts[:, None] + torch.arange(width, device=lefts.device)
    if fill == "nearest":
        source_rows, source_columns = rows.clamp(0, full_height - 1), columns.clamp(0, full_width - 1)
    else:
        source_rows, source_columns = _reflect(rows, full_height), _reflect(columns, full_width)
    source = source_rows[:, :, None] * full_width + source_columns[:, None, :]
    source = source.reshape(batch, 1, height * width).expand(-1, channels, -1)
    window = images.flatten(2).gather(2, source).view(batch, channels, height, width)
    if fill == "zero":
        inside_rows, inside_columns = (rows >= 0) & (rows < full_height), (columns >= 0) & (columns < full_width)
        window = window * (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
    return window


class HorizontalFlip(Augmentation):
    """Random mirroring of left and right.

    Args:
        probability: Probability that an image is mirrored, in [0, 1].
    """

    _dimension = -1

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = check_probability(self, probability)

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        chosen = uniform(keys, 1)[:, 0] < self.probability
        return devices.change_some(images, chosen, lambda some: some.flip(self._dimension))


class VerticalFlip(HorizontalFlip):
    """Random mirroring of top and bottom.

    Args:
        probability: Probability that an image is mirrored, in [0, 1].
    """

    _dimension = -2


class ShiftCrop(Augmentation):
    """Random shift by whole pixels: each side is padded, and a window of the old size is cut out.

    Args:
        pixels: Largest shift in px, in each direction; at least 0.
        fill: Content of the padding: the image mirrored at its border pixel, its border pixel repeated, or zero.
    """

    def __init__(self, pixels: int = 4, fill: Fill = "reflect") -> None:
        if pixels < 0:
            raise UserError(f"ShiftCrop: pixels is {pixels}: at least 0 is needed")
        check_choice("fill of ShiftCrop", fill, Fill)
        self.pixels = pixels
        self.fill: Fill = fill

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        shift = (uniform(keys, 2) * (2 * self.pixels + 1)).floor().to(torch.int64) - self.pixels
        return crop(images, shift[:, 0], shift[:, 1], images.shape[2], images.shape[3], self.fill)


class Rotation(Augmentation):
    """Random rotation about the center by a uniformly drawn angle, with bilinear interpolation.

    Args:
        degrees: Largest angle, in either direction; at least 0.
        fill: Content of the corners: the image mirrored at its border, its border repeated, or zero.
    """

    def __init__(self, degrees: float = 5.0, fill: Fill = "zero") -> None:
        if not 0 <= degrees <= 180:
            raise UserError(f"Rotation: degrees is {degrees}: a number from 0 to 180 is needed")
        check_choice("fill of Rotation", fill, Fill)
        self.degrees = float(degrees)
        self.fill: Fill = fill

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        height, width = images.shape[2:]
        angle = torch.deg2rad((2 * uniform(keys, 1)[:, 0] - 1) * self.degrees).float()
        cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        # The grid counts each axis from -1 to 1, so an angle in px needs the ratio of the sides.
        matrix = torch.stack([cosine, -sine * height / width, zero, sine * width / height, cosine, zero], dim=1).view(
            -1, 2, 3
        )
        grid = nnf.affine_grid(matrix, list(images.shape), align_corners=False)
        rotated = nnf.grid_sample(
            images.float(), grid, mode="bilinear", padding_mode=_FILLS[self.fill], align_corners=False
        )
        return rotated.round_().to(torch.uint8) if images.dtype == torch.uint8 else rotated.clamp_(0, 1)


class Rotation90(Augmentation):
    """Random rotation by 0, 90, 180 or 270 degrees, each equally likely: for square images without an upright side.

    No pixel is interpolated. With a flip, all eight symmetries of the square are equally likely.
    """

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        height, width = images.shape[2:]
        if height != width:
            raise UserError(f"Rotation90 is for square images, and these have {width} x {height} px: set image_size")
        turns = (uniform(keys, 1)[:, 0] * 4).to(torch.int64)
        images = devices.change_some(images, turns % 2 == 1, lambda some: some.rot90(1, (2, 3)))
        return devices.change_some(images, turns >= 2, lambda some: some.flip(2, 3))


class RandomResizedCrop(Augmentation):
    """Random rectangle resized to the size of the crop, in place of the random crop (Szegedy et al. 2015).

    As torchvision's: the area is drawn uniformly and the aspect ratio log-uniformly, ten times at most until it fits
    into the image; if none does, it is the largest rectangle of an allowed ratio, in the center. Rectangles are cut
    from images as they were resized before: `train_resize` of the data module keeps more pixels for it.

    Args:
        area: Smallest and largest share of the image's area.
        aspect: Smallest and largest ratio of height to width.
        size: Side in px of the result. None: the data module's `image_size`, or the image's own size without one.
    """

    before_crop = True

    def __init__(
        self,
        area: tuple[float, float] = (0.08, 1.0),
        aspect: tuple[float, float] = (3 / 4, 4 / 3),
        size: int | None = None,
    ) -> None:
        if size is not None and size < 1:
            raise UserError(f"RandomResizedCrop: size is {size}: at least 1 is needed")
        self.area = check_range(self, "area", area, 1.0)
        self.aspect = check_range(self, "aspect", aspect, math.inf)
        self.size = size

    def for_size(self, image_size: int | None) -> RandomResizedCrop:
        """Return a crop of that size, unless it has a size of its own."""
        sized = copy.copy(self)
        sized.size = image_size if self.size is None else self.size
        return sized

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        size = list(images.shape[2:]) if self.size is None else [self.size, self.size]
        drawn = self.rectangles(images.shape[2], images.shape[3], keys)
        if not devices.on_cpu(images):
            return _resize_rectangles(images, *drawn, *size)
        rectangles = torch.stack(drawn, 1).tolist()
        crops = torch.stack(
            [
                transforms.resize(image[:, top : top + height, left : left + width], size, antialias=True)
                for image, (top, left, height, width) in zip(images, rectangles, strict=True)
            ]
        )
        return crops if crops.dtype == torch.uint8 else crops.clamp_(0, 1)

    def rectangles(self, height: int, width: int, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return top, left, height and width in px, each (B,) int64."""
        draws = uniform(keys, 2 + 2 * ATTEMPTS)
        heights, widths, found = draw_rectangles(height, width, self.area, self.aspect, draws[:, 2:])
        heights = torch.where(found, heights, min(height, max(1, round(width * self.aspect[1]))))
        widths = torch.where(found, widths, min(width, max(1, round(height / self.aspect[0]))))
        room = torch.stack([height - heights, width - widths], 1)
        places = torch.where(found[:, None], (draws[:, :2] * (room + 1)).floor().to(torch.int64), room // 2)
        return places[:, 0], places[:, 1], heights, widths


def _resize_rectangles(
    images: Tensor, tops: Tensor, lefts: Tensor, heights: Tensor, widths: Tensor, height: int, width: int
) -> Tensor:
    """Return one rectangle of each image resized to (height, width) px, as torchvision does to within one level."""
    rows = _resizing_weights(tops, heights, images.shape[2], height)
    columns = _resizing_weights(lefts, widths, images.shape[3], width)
    resized = rows[:, None] @ images.float() @ columns[:, None].transpose(2, 3)
    return resized.round_().to(torch.uint8) if images.dtype == torch.uint8 else resized.clamp_(0, 1)


def _resizing_weights(starts: Tensor, lengths: Tensor, full: int, size: int) -> Tensor:
    """Return the weights (B, size, full) of pixels in antialiased bilinear resizing of starts..starts + lengths."""
    scale = lengths[:, None, None] / size
    centers = scale * (torch.arange(size, device=starts.device)[:, None] + 0.5)
    pixels = torch.arange(full, device=starts.device) - starts[:, None, None]
    weights = (1 - (pixels + 0.5 - centers).abs() / scale.clamp(min=1)).clamp_(min=0)
    weights = weights * ((pixels >= 0) & (pixels < lengths[:, None, None]))
    return weights / weights.sum(2, keepdim=True)
