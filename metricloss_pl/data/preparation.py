"""Preparation of images given in Python, as a data module prepares its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np
import torch
from torch import Tensor

from metricloss_pl.augment.geometric import crop
from metricloss_pl.data.file_checks import check_readable
from metricloss_pl.data.reading import (
    DECODING_THREADS,
    channels_tensor,
    decode_image,
    deep_tensor,
    one_thread,
    read_image,
)
from metricloss_pl.data.store import prepare
from metricloss_pl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

ImageLike: TypeAlias = Union[str, os.PathLike[str], "Image.Image", np.ndarray, Tensor]


def prepare_batches(
    images: ImageLike | Iterable[ImageLike],
    *,
    in_channels: int,
    resize: int | None = None,
    image_size: int | None = None,
    batch_size: int = 64,
) -> Iterator[Tensor]:
    """Read, convert, resize and crop images as `predict` on the command line does.

    Args:
        images: Files, images of Pillow, arrays (H, W) or (H, W, C), or tensors (C, H, W); or a single one of these.
            Arrays and tensors are uint8, uint16 (divided by 65535) or floating-point in [0, 1].
        in_channels: Channels C of the batches; gray (1) and color (3) are converted into each other.
        resize: Shorter side in px to which images are resized before the crop. None: `image_size`.
        image_size: Side in px of the square crop at the center. None: images as they are, of one size per batch.
        batch_size: Images per batch, at least 1.

    Yields:
        (B, in_channels, H, W), uint8, or float32 in [0, 1] where an image of the batch has more than 8 bits.

    Raises:
        UserError: An image cannot be read, or has another number of channels.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: at least 1 is needed")
    listed = _as_list(images)
    check_readable([Path(image) for image in listed if isinstance(image, (str, os.PathLike))], in_channels)
    resize = image_size if resize is None else resize

    def prepared(index: int) -> Tensor:
        image = prepare(_to_tensor(listed[index], in_channels, f"images[{index}]", resize), in_channels, resize)
        return image if image_size is None else _crop_center(image, image_size)

    for start in range(0, len(listed), batch_size):
        with one_thread(), ThreadPoolExecutor(DECODING_THREADS) as pool:
            batch = list(pool.map(prepared, range(start, min(start + batch_size, len(listed)))))
        for index, image in enumerate(batch, start):
            if image.shape != batch[0].shape:
                size, first = (f"{shape[2]} x {shape[1]} px" for shape in (image.shape, batch[0].shape))
                raise UserError(
                    f"images[{index}] has {size} and images[{start}] {first}: the network was trained on images as "
                    "they are, without image_size, so give images of one size"
                )
        if any(image.is_floating_point() for image in batch):
            batch = [image if image.is_floating_point() else image.float() / 255 for image in batch]
        yield torch.stack(batch)


def _as_list(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    from PIL import Image

    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim < 4:
        return [images]
    return list(images)


def _to_tensor(image: ImageLike, in_channels: int, name: str, resize: int | None) -> Tensor:
    """Return an image as a file of its pixels would be read; tensors and arrays may have kept their size."""
    from PIL import Image

    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image), in_channels, resize)
    if isinstance(image, Image.Image):
        return decode_image(image, in_channels, Path(name), resize)
    if isinstance(image, Tensor):
        image = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"{name} is {type(image).__name__}: a file's path, an image of Pillow, an array or a tensor is needed"
        )
    channels = image.shape[2] if image.ndim == 3 else 1
    if image.ndim not in (2, 3) or 0 in image.shape or (channels != in_channels and {channels, in_channels} != {1, 3}):
        raise UserError(
            f"{name} has the shape {image.shape}: an array (H, W) or (H, W, C) or a tensor (C, H, W) with "
            f"{in_channels} channels is needed"
        )
    if image.dtype.kind != "f" and image.dtype.name not in ("uint8", "uint16"):
        raise UserError(f"{name} is {image.dtype.name}: uint8, uint16 or floats in [0, 1] are needed")
    image = image[..., 0] if image.shape[2:] == (1,) else image
    if in_channels not in (1, 3):
        return channels_tensor(np.atleast_3d(image), in_channels, Path(name))
    if image.dtype == np.uint8:
        return decode_image(Image.fromarray(np.ascontiguousarray(image)), in_channels, Path(name), resize)
    return deep_tensor(image, None, Path(name))


def _crop_center(image: Tensor, size: int) -> Tensor:
    room = torch.tensor(image.shape[-2:]) - size
    place = room.div(2, rounding_mode="floor")
    return crop(image[None], place[:1], place[1:], size, size)[0]
