"""Rectangles of an image that are filled: random erasing and Cutout."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from metricloss_pl.augment import devices
from metricloss_pl.augment.base import ATTEMPTS, Augmentation, check_probability, check_range, draw_rectangles
from metricloss_pl.augment.keys import random_bytes, stream, uniform
from metricloss_pl.errors import UserError, check_choice

AreaFill = Literal["noise", "mean", "zero"]


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
        self.probability = check_probability(self, probability)
        self.area = check_range(self, "area", area, 1.0)
        self.aspect = check_range(self, "aspect", aspect, math.inf)
        check_choice(f"fill of {type(self).__name__}", fill, AreaFill)
        self.fill: AreaFill = fill
        self.before_crop = before_crop

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        tops, lefts, heights, widths = self.rectangles(images.shape[2], images.shape[3], keys)
        return _fill_rectangles(images, tops, lefts, tops + heights, lefts + widths, self.fill, stream(keys, 0))

    def rectangles(self, height: int, width: int, keys: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return top, left, height and width in px, each (B,) int64; height and width are 0 if nothing is erased."""
        draws = uniform(keys, 3 + 2 * ATTEMPTS)
        heights, widths, found = draw_rectangles(height, width, self.area, self.aspect, draws[:, 3:])
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

    def __call__(self, images: Tensor, keys: Tensor) -> Tensor:
        height, width = images.shape[2:]
        draws = uniform(keys, 2)
        tops = (draws[:, 0] * height).floor().to(torch.int64) - self.pixels // 2
        lefts = (draws[:, 1] * width).floor().to(torch.int64) - self.pixels // 2
        bottoms, rights = tops + self.pixels, lefts + self.pixels
        return _fill_rectangles(images, tops, lefts, bottoms, rights, self.fill, stream(keys, 0))


def _fill_rectangles(
    images: Tensor, tops: Tensor, lefts: Tensor, bottoms: Tensor, rights: Tensor, fill: AreaFill, keys: Tensor
) -> Tensor:
    height, width = images.shape[2:]
    tops, bottoms = tops.clamp(0, height), bottoms.clamp(0, height)
    lefts, rights = lefts.clamp(0, width), rights.clamp(0, width)
    if fill == "noise" and devices.on_cpu(images):
        return _fill_with_noise(images, tops, lefts, bottoms, rights, keys)
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    inside_rows = (rows >= tops[:, None]) & (rows < bottoms[:, None])
    inside_columns = (columns >= lefts[:, None]) & (columns < rights[:, None])
    inside = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
    if fill == "zero":
        return images.masked_fill(inside, 0)
    if fill == "mean":
        mean = images.float().mean((2, 3), keepdim=True)
        return torch.where(inside, mean.round().to(torch.uint8) if images.dtype == torch.uint8 else mean, images)
    # The same bytes as on the CPU, but drawn for whole images, since their number must be known.
    noise = _as_pixels(random_bytes(keys, images[0].numel()), images)
    place = (rows - tops[:, None])[:, :, None] * (rights - lefts)[:, None, None] + (columns - lefts[:, None])[:, None]
    areas = (bottoms - tops) * (rights - lefts)
    starts = torch.arange(images.shape[1], device=images.device) * areas[:, None]
    place = (starts[:, :, None, None] + place[:, None]).clamp_(0, noise.shape[1] - 1)
    return torch.where(inside, noise.gather(1, place.flatten(1)).view_as(images), images)


def _fill_with_noise(
    images: Tensor, tops: Tensor, lefts: Tensor, bottoms: Tensor, rights: Tensor, keys: Tensor
) -> Tensor:
    filled, channels = images.clone(), images.shape[1]
    counts = channels * (bottoms - tops) * (rights - lefts)
    chosen = counts.nonzero()[:, 0]
    if len(chosen):
        noise = _as_pixels(random_bytes(keys[chosen], int(counts.max())), images)
        boxes = torch.stack([chosen, tops[chosen], bottoms[chosen], lefts[chosen], rights[chosen]], 1).tolist()
        for (image, top, bottom, left, right), values in zip(boxes, noise, strict=True):
            box = filled[image, :, top:bottom, left:right]
            box.copy_(values[: box.numel()].view(box.shape))
    return filled


def _as_pixels(noise: Tensor, images: Tensor) -> Tensor:
    return noise if images.dtype == torch.uint8 else noise.float() / 255
