"""Augmentations of whole batches, drawn from keys that depend on the seed, the epoch and the image alone."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as transforms

from metricloss_pl.data.keys import Keys, random_bytes, stream, uniform
from metricloss_pl.errors import UserError, check_choice

Fill = Literal["reflect", "nearest", "zero"]
AreaFill = Literal["noise", "mean", "zero"]
_FILLS: dict[Fill, str] = {"reflect": "reflection", "nearest": "border", "zero": "zeros"}  # torch's names

_ATTEMPTS = 10  # at a rectangle that fits


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
    rows = tops[:, None] + torch.arange(height)
    columns = lefts[:, None] + torch.arange(width)
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


class Augmentation(ABC):
    """Random change of training images; in YAML a class name, or `class_path` and `init_args`.

    Called with images (B, C, H, W), uint8 or float32 in [0, 1], and the images' keys (B,), it returns images of the
    same dtype, shape and range. All of its randomness comes from the keys.

    With `before_crop` it is applied to the resized images and may change their size, else to the crops. With
    `changes_color` the images must be gray or color.
    """

    before_crop: bool = False
    changes_color: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, images: Tensor, keys: Keys) -> Tensor:
        """Return the changed images (B, C, H, W)."""

    def for_size(self, image_size: int | None) -> Augmentation:
        """Return the augmentation for crops of this side in px (None: images as they are), by default itself."""
        return self

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({arguments})"


def _check_probability(owner: Augmentation, probability: float) -> float:
    if not 0 <= probability <= 1:
        raise UserError(f"{type(owner).__name__}: probability is {probability}: a number from 0 to 1 is needed")
    return float(probability)


def _check_range(owner: Augmentation, name: str, values: tuple[float, float], upper: float) -> tuple[float, float]:
    low, high = values
    if not 0 < low <= high <= upper:
        limit = f"at most {upper:g}" if math.isfinite(upper) else "finite"
        raise UserError(f"{type(owner).__name__}: {name} is {list(values)}: 0 < low <= high, {limit}, is needed")
    return float(low), float(high)


def _draw_fitting(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], draws: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first of several random rectangles that fits into (height, width) px.

    Args:
        height: Height of the image in px.
        width: Width of the image in px.
        area: Smallest and largest share of the image's area, drawn uniformly.
        aspect: Smallest and largest ratio of height to width, drawn log-uniformly.
        draws: (B, 2 * _ATTEMPTS) numbers in [0, 1).

    Returns:
        Heights and widths in px, (B,) int64, and whether any fits, (B,) bool.
    """
    shares = area[0] + (area[1] - area[0]) * draws[:, :_ATTEMPTS]
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratios = (low + (high - low) * draws[:, _ATTEMPTS:]).exp()
    heights = (shares * height * width * ratios).sqrt().round().to(torch.int64)
    widths = (shares * height * width / ratios).sqrt().round().to(torch.int64)
    fits = (heights >= 1) & (widths >= 1) & (heights <= height) & (widths <= width)
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    return heights.gather(1, first)[:, 0], widths.gather(1, first)[:, 0], fits.any(1)


class HorizontalFlip(Augmentation):
    """Random mirroring of left and right.

    Args:
        probability: Probability that an image is mirrored, in [0, 1].
    """

    _dimension = -1

    def __init__(self, probability: float = 0.5) -> None:
        self.probability = _check_probability(self, probability)

    def __call__(self, images: Tensor, keys: Keys) -> Tensor:
        rows = (uniform(keys, 1)[:, 0] < self.probability).nonzero()[:, 0]
        return images.index_copy(0, rows, images.index_select(0, rows).flip(self._dimension))


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

    def __call__(self, images: Tensor, keys: Keys) -> Tensor:
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

    def __call__(self, images: Tensor, keys: Keys) -> Tensor:
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
        self.area = _check_range(self, "area", area, 1.0)
        self.aspect = _check_range(self, "aspect", aspect, math.inf)
        self.size = size

    def for_size(self, image_size: int | None) -> RandomResizedCrop:
        """Return a crop of that size, unless it has a size of its own."""
        sized = copy.copy(self)
        sized.size = image_size if self.size is None else self.size
        return sized

    def __call__(self, images: Tensor, keys: Keys) -> Tensor:
        size = list(images.shape[2:]) if self.size is None else [self.size, self.size]
        rectangles = torch.stack(self.rectangles(images.shape[2], images.shape[3], keys), 1).tolist()
        crops = torch.stack(
            [
                transforms.resize(image[:, top : top + height, left : left + width], size, antialias=True)
                for image, (top, left, height, width) in zip(images, rectangles, strict=True)
            ]
        )
        return crops if crops.dtype == torch.uint8 else crops.clamp_(0, 1)

    def rectangles(self, height: int, width: int, keys: Keys) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return top, left, height and width in px, each (B,) int64."""
        draws = uniform(keys, 2 + 2 * _ATTEMPTS)
        heights, widths, found = _draw_fitting(height, width, self.area, self.aspect, draws[:, 2:])
        heights = torch.where(found, heights, min(height, max(1, round(width * self.aspect[1]))))
        widths = torch.where(found, widths, min(width, max(1, round(height / self.aspect[0]))))
        room = torch.stack([height - heights, width - widths], 1)
        places = torch.where(found[:, None], (draws[:, :2] * (room + 1)).floor().to(torch.int64), room // 2)
        return places[:, 0], places[:, 1], heights, widths


class RandomErasing(Augmentation):
    """Random rectangle that is filled (Zhong et al. 2020, "Random Erasing Data Augmentation").

    The aspect ratio is drawn log-uniformly, so that lying and standing rectangles are equally likely. A rectangle that
    does not fit into the image is drawn again, ten times at most; the image stays whole if none fits.

    Args:
        probability: Probability that an image is changed, in [0, 1].
        area: Smallest and largest share of the image's area.
        aspect: Smallest and largest ratio of height to width.
        fill: Content of the area: uniform noise, the image's mean of each channel, or zero.
        before_crop: Erase in the whole image, and crop afterwards; else in the crop.
    """

    def __init__(
        self,
        probability: float = 0.5,
        area: tuple[float, float] = (0.02, 0.3),
        aspect: tuple[float, float] = (0.3, 3.33),
        fill: AreaFill = "noise",
        before_crop: bool = False,
    ) -> None:
        self.probability = _check_probability(self, probability)
        self.area = _check_range(self, "area", area, 1.0)
        self.aspect = _check_range(self, "aspect", aspect, math.inf)
        check_choice(f"fill of {type(self).__name__}", fill, AreaFill)
        self.fill: AreaFill = fill
        self.before_crop = before_crop

    def __call__(self, images: Tensor, keys: Keys) -> Tensor:
        tops, lefts, heights, widths = self.rectangles(images.shape[2], images.shape[3], keys)
        return _fill_rectangles(images, tops, lefts, tops + heights, lefts + widths, self.fill, stream(keys, 0))

    def rectangles(self, height: int, width: int, keys: Keys) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return top, left, height and width in px, each (B,) int64; height and width are 0 if nothing is erased."""
        draws = uniform(keys, 3 + 2 * _ATTEMPTS)
        heights, widths, found = _draw_fitting(height, width, self.area, self.aspect, draws[:, 3:])
        erased = (draws[:, 0] < self.probability) & found
        chosen_height = heights * erased
        chosen_width = widths * erased
        tops = (draws[:, 1] * (height - chosen_height + 1)).floor().to(torch.int64)
        lefts = (draws[:, 2] * (width - chosen_width + 1)).floor().to(torch.int64)
        return tops, lefts, chosen_height, chosen_width


class Cutout(Augmentation):
    """Square around a random pixel that is filled, cut off at the border (DeVries and Taylor 2017).

    Args:
        pixels: Side of the square in px; at least 1.
        fill: Content of the area: uniform noise, the image's mean of each channel, or zero.
    """

    def __init__(self, pixels: int = 16, fill: AreaFill = "mean") -> None:
        if pixels < 1:
            raise UserError(f"Cutout: pixels is {pixels}: at least 1 is needed")
        self.pixels = pixels
        check_choice(f"fill of {type(self).__name__}", fill, AreaFill)
        self.fill: AreaFill = fill

    def __call__(self, images: Tensor, keys: Keys) -> Tensor:
        center = (uniform(keys, 2) * torch.tensor(images.shape[2:])).floor().to(torch.int64)
        start = center - self.pixels // 2
        end = start + self.pixels
        return _fill_rectangles(images, start[:, 0], start[:, 1], end[:, 0], end[:, 1], self.fill, stream(keys, 0))


def _fill_rectangles(
    images: Tensor, tops: Tensor, lefts: Tensor, bottoms: Tensor, rights: Tensor, fill: AreaFill, keys: Keys
) -> Tensor:
    channels, height, width = images.shape[1:]
    rows, columns = torch.arange(height), torch.arange(width)
    inside_rows = (rows >= tops[:, None]) & (rows < bottoms[:, None])
    inside_columns = (columns >= lefts[:, None]) & (columns < rights[:, None])
    inside = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
    if fill == "zero":
        return images.masked_fill(inside, 0)
    if fill == "mean":
        mean = images.float().mean((2, 3), keepdim=True)
        return torch.where(inside, mean.round().to(torch.uint8) if images.dtype == torch.uint8 else mean, images)
    filled = images.clone()
    for image in inside.flatten(1).any(1).nonzero()[:, 0].tolist():  # noise is costly: only as much as is shown
        noise = random_bytes(keys[image : image + 1], channels * int(inside[image].sum()))[0]
        filled[image, inside[image].expand(channels, -1, -1)] = (
            noise if images.dtype == torch.uint8 else noise.float() / 255
        )
    return filled


class _PerImage(Augmentation):
    """An augmentation of torchvision, applied image by image under a random state that the image's key seeds."""

    _transform: nn.Module

    changes_color = True

    def __call__(self, images: Tensor, keys: Keys) -> Tensor:
        generator = torch.default_generator
        state = generator.get_state()
        try:
            changed = []
            for image, key in zip(images, keys.tolist(), strict=True):
                generator.manual_seed(key)
                changed.append(self._transform(image))
        finally:
            generator.set_state(state)
        return torch.stack(changed)


class RandAugment(_PerImage):
    """torchvision's RandAugment (Cubuk et al. 2020): random operations of one strength, image by image.

    Args:
        num_ops: Operations per image; at least 0.
        magnitude: Strength of the operations, from 0 to 30.
    """

    def __init__(self, num_ops: int = 2, magnitude: int = 9) -> None:
        if num_ops < 0:
            raise UserError(f"RandAugment: num_ops is {num_ops}: at least 0 is needed")
        if not 0 <= magnitude <= 30:
            raise UserError(f"RandAugment: magnitude is {magnitude}: a whole number from 0 to 30 is needed")
        self.num_ops = num_ops
        self.magnitude = magnitude
        self._transform = v2.RandAugment(num_ops=num_ops, magnitude=magnitude, interpolation=_BILINEAR)


class TrivialAugment(_PerImage):
    """torchvision's TrivialAugmentWide (Mueller and Hutter 2021): one random operation of random strength per image."""

    def __init__(self) -> None:
        self._transform = v2.TrivialAugmentWide(interpolation=_BILINEAR)


_BILINEAR = v2.InterpolationMode.BILINEAR
