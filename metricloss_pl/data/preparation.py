"""Preparation of images given one by one, as a data module prepares its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, Union

import numpy as np
import torch
from torch import Tensor

from metricloss_pl.augment.geometric import crop
from metricloss_pl.data.file_checks import check_readable
from metricloss_pl.data.reading import (
    DECODING_THREADS,
    UnreadableImages,
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
    names = [f"images[{index}]" for index in range(len(listed))]

    def prepared(index: int) -> Tensor:
        return _prepare(listed[index], names[index], in_channels, resize, image_size)

    for start in range(0, len(listed), batch_size):
        place = slice(start, start + batch_size)
        with one_thread(), ThreadPoolExecutor(DECODING_THREADS) as pool:
            batch = list(pool.map(prepared, range(len(listed))[place]))
        yield _stack(batch, names[place])


class FileBatch(NamedTuple):
    """Images of some files, without those that cannot be decoded."""

    files: list[Path]
    images: Tensor  # (B, C, H, W)
    broken: dict[Path, str]  # the reason for each file that cannot be decoded


def prepare_files(
    files: Sequence[Path],
    *,
    in_channels: int,
    resize: int | None = None,
    image_size: int | None = None,
    batch_size: int = 64,
) -> Iterator[FileBatch]:
    """Read, convert, resize and crop image files as `prepare_batches` does, each once, and leave out broken ones.

    Args:
        files: Image files.
        in_channels: As for `prepare_batches`.
        resize: As for `prepare_batches`.
        image_size: As for `prepare_batches`.
        batch_size: Files per batch, at least 1. Only the images of one batch are in memory.

    Yields:
        Batches in the order of the files; one has no images if all of its files are broken.

    Raises:
        UserError: Images differ in size, and `image_size` is None.
    """
    resize = image_size if resize is None else resize

    def prepared(path: Path) -> Tensor | str:
        try:
            return _prepare(path, str(path), in_channels, resize, image_size)
        except UnreadableImages as error:
            return error.broken.get(path, str(error))

    for start in range(0, len(files), batch_size):
        some = files[start : start + batch_size]
        with one_thread(), ThreadPoolExecutor(DECODING_THREADS) as pool:
            found = dict(zip(some, pool.map(prepared, some), strict=True))
        images = {path: image for path, image in found.items() if isinstance(image, Tensor)}
        broken = {path: why for path, why in found.items() if isinstance(why, str)}
        stacked = _stack(list(images.values()), list(map(str, images))) if images else torch.empty(0, in_channels, 0, 0)
        yield FileBatch(list(images), stacked, broken)


def _prepare(image: ImageLike, name: str, in_channels: int, resize: int | None, image_size: int | None) -> Tensor:
    tensor = prepare(_to_tensor(image, in_channels, name, resize), in_channels, resize)
    return tensor if image_size is None else _crop_center(tensor, image_size)


def _stack(images: list[Tensor], names: Sequence[str]) -> Tensor:
    for image, name in zip(images, names, strict=True):
        if image.shape != images[0].shape:
            size, first = (f"{shape[2]} x {shape[1]} px" for shape in (image.shape, images[0].shape))
            raise UserError(
                f"{name} has {size} and {names[0]} {first}: the network was trained on images as they are, without "
                "image_size, so give images of one size"
            )
    if any(image.is_floating_point() for image in images):
        images = [image if image.is_floating_point() else image.float() / 255 for image in images]
    return torch.stack(images)


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
