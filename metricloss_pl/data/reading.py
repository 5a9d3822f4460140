"""Decoding of image files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from metricloss_pl._compat import png_raw_mode
from metricloss_pl.data.resizing import resize_image, resized_size, with_shorter_side
from metricloss_pl.errors import UserError, reason

if TYPE_CHECKING:
    from PIL import Image

IMAGE_EXTENSIONS = (
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
DECODING_THREADS = 8
_NAMED = 5  # of many unreadable files
_DEEP_MODES = ("I", "F")  # first letter of Pillow's modes of more than 8 bits: I, I;16, I;16B, I;16L, I;16N, F
_MOST_PIXELS = 1_000_000_000  # of an image: up to 4 GB while it is decoded
_MOST_RESIZED = 50_000_000  # of an image that is enlarged, such as a line of pixels
_LARGE = 50_000_000  # pixels from which images are decoded one at a time
_MOST_TEXT = 2**28  # bytes of text in a PNG file
_TIFFFILE = "a TIFF file that Pillow cannot open; tifffile may: pip install tifffile"


class UnreadableImages(UserError):
    """Image files that cannot be decoded, in one line.

    Args:
        message: The line.
        broken: The files, and the reason for each.
    """

    def __init__(self, message: str, broken: Mapping[Path, str] | None = None) -> None:
        super().__init__(message, broken)
        self.broken = dict(broken or {})

    def __str__(self) -> str:
        return str(self.args[0])

    @classmethod
    def of(cls, broken: Mapping[Path, str], write_list: bool = True) -> Self:
        """Name the files; more than five are also listed in a text file."""
        if len(broken) == 1:
            [(path, why)] = broken.items()
            return cls(f"{path} cannot be read as an image ({why}); {_remedy(broken)}", broken)
        line = ", ".join(f"{path} ({why})" for path, why in islice(broken.items(), _NAMED))
        line = f"{len(broken)} files cannot be read as images: {line}"
        if write_list and len(broken) > _NAMED:
            with NamedTemporaryFile(
                "w",
                prefix="unreadable_images_",
                suffix=".txt",
                delete=False,
                encoding="utf-8",
                errors="surrogateescape",
            ) as file:
                file.writelines(f"{path}\n" for path in broken)
            line += f", ...; all are listed in {file.name}"
        return cls(f"{line}; {_remedy(broken)}", broken)


def _remedy(broken: Mapping[Path, str]) -> str:
    if all(" channels, and in_channels is " in why for why in broken.values()):
        return "set data.in_channels to the channels of the files"
    return "repair or remove the file" if len(broken) == 1 else "repair or remove them"


@contextmanager
def one_thread() -> Iterator[None]:
    """Run without torch's other threads, which cost small batches more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _RaisedLimits:
    """Pillow's limits, which are global and too low for large scans and long PNG texts, raised while a thread reads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._readers = 0
        self._before: tuple[Any, int, int]

    def __enter__(self) -> None:
        from PIL import Image, PngImagePlugin

        with self._lock:
            if self._readers == 0:
                self._before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
                Image.MAX_IMAGE_PIXELS = None  # see `_open`
                PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _MOST_TEXT
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        from PIL import Image, PngImagePlugin

        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = self._before


_raised_limits = _RaisedLimits()
_one_large_image = Lock()


@contextmanager
def _blaming(source: Path) -> Iterator[None]:
    """Turn an error of Pillow's readers, which raise many kinds, into one; no function of ours may run within."""
    from PIL import UnidentifiedImageError

    try:
        yield
    except Exception as error:
        unknown = isinstance(error, UnidentifiedImageError)
        why = "no image, or of an unknown format" if unknown else reason(error)
        raise UnreadableImages.of({source: why}) from error


def check_file(path: Path) -> None:
    """Check that a path is a regular file with content; opening a pipe would wait for ever.

    Raises:
        UnreadableImages: It is not.
    """
    try:
        why = None if path.is_file() else "a folder, pipe or device" if path.exists() else "there is no such file"
        why = why or ("an empty file" if path.stat().st_size == 0 else None)
    except OSError as error:
        why = reason(error)
    if why is not None:
        raise UnreadableImages.of({path: why})


def _open(path: Path) -> Image.Image:
    """Open an image file, of which only the head is read."""
    from PIL import Image

    check_file(path)
    with _raised_limits, _blaming(path):
        image = Image.open(path)
    if (pixels := image.width * image.height) > _MOST_PIXELS:
        image.close()
        size = f"{pixels / 1e6:,.0f} million pixels, where at most {_MOST_PIXELS / 1e6:,.0f} million are read"
        raise UnreadableImages.of({path: f"{size}: scale it down or cut it into tiles"})
    return image


def read_head(path: Path, in_channels: int = 3) -> tuple[int, int, bool]:
    """Return width and height of an image file, and whether it has more than 8 bits, as `read_image` decodes it.

    Raises:
        UnreadableImages: The file is missing or no image.
    """
    try:
        with _open(path) as image:
            if in_channels in (1, 3) or _has_bands(image, in_channels):
                return *image.size, image.mode.startswith(_DEEP_MODES)
    except UnreadableImages as error:
        if not _may_be_read_by_tifffile(path, error):
            raise
    bands = read_image(path, in_channels)
    return bands.shape[2], bands.shape[1], bands.is_floating_point()


def read_image(path: Path, in_channels: int, resize: int | None = None, small: int | None = None) -> Tensor:
    """Decode an image file, and resize the image.

    With 1 or 3 channels, gray and color are converted into each other (ITU-R 601-2 luma weights), the EXIF orientation
    is applied, transparency is laid over white, palettes are resolved, and a file of several images gives the first
    one. With any other number, the file must have exactly so many channels. A TIFF file with as many gray pages as
    there are channels has one band per page. The optional package tifffile reads the TIFF files whose bands Pillow
    cannot read, such as those of more than 8 bits in one page.

    Args:
        path: The file.
        in_channels: Channels C.
        resize: Shorter side in px (antialiased bilinear, by Pillow). None: unchanged.
        small: Least side in px of a JPEG that is decoded at a half, quarter or eighth of its size, which is faster.
            None: all pixels are decoded.

    Returns:
        (C, H, W), uint8; or float32 in [0, 1] for images of more than 8 bits (16-bit PNG or TIFF are divided by 65535,
        floating-point TIFF must be in [0, 1] already).

    Raises:
        UnreadableImages: The file is missing, damaged, no image, has other channels, or values out of range.
    """
    try:
        image = _open(path)
    except UnreadableImages as error:
        if not _may_be_read_by_tifffile(path, error):
            raise
        return with_shorter_side(_read_bands(path, in_channels), resize)
    with image:
        if small is not None:
            image.draft(None, (small, small))
        return decode_image(image, in_channels, path, resize)


def _may_be_read_by_tifffile(path: Path, error: UnreadableImages) -> bool:
    """Return whether it was Pillow that could not open a TIFF file."""
    return path.suffix.lower() in (".tif", ".tiff") and error.__cause__ is not None


def _has_bands(image: Image.Image, in_channels: int) -> bool:
    """Return whether Pillow reads the pixels, or the pages, of an image as so many channels without loss."""
    if image.format == "TIFF":
        if getattr(image, "n_frames", 1) == in_channels:
            return image.mode in ("1", "L") or image.mode.startswith(_DEEP_MODES)
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits, samples = tags.get(258, (1,)), tags.get(277, 1)
        if samples != len(image.getbands()) or (samples > 1 and max(bits) > 8):
            return False
    return len(image.getbands()) == in_channels and image.mode != "P"


def _read_bands(path: Path, in_channels: int) -> Tensor:
    """Read a TIFF file with tifffile."""
    try:
        import tifffile
    except ImportError as error:
        raise UnreadableImages.of({path: _TIFFFILE}) from error
    with _blaming(path):
        array = np.atleast_3d(tifffile.imread(path).squeeze())
    if array.ndim == 3 and array.shape[0] == in_channels != array.shape[2]:
        array = array.transpose(1, 2, 0)
    return channels_tensor(array, in_channels, path)


def channels_tensor(array: np.ndarray, in_channels: int, source: Path) -> Tensor:
    """Return pixels (H, W, C) as a tensor (C, H, W), uint8 or float32 in [0, 1].

    Raises:
        UnreadableImages: It has other channels, or values out of range.
    """
    if array.shape[2:] != (in_channels,):
        channels = array.shape[2] if array.ndim == 3 else 1
        raise UnreadableImages.of({source: f"{channels} channels, and in_channels is {in_channels}"})
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
    return deep_tensor(array, None, source)


def decode_image(image: Image.Image, in_channels: int, source: Path, resize: int | None = None) -> Tensor:
    """Return the pixels of a Pillow image, as `read_image` does.

    Args:
        image: May be loaded or not.
        in_channels: Channels C.
        source: File or name, for messages.
        resize: Shorter side in px. None: unchanged.
    """
    large = image.width * image.height > _LARGE
    pixels = math.prod(resized_size(image.width, image.height, resize))
    if pixels > max(_MOST_RESIZED, image.width * image.height):
        why = f"{image.width} x {image.height} px, which is {pixels / 1e6:,.0f} million pixels with a shorter side of"
        raise UnreadableImages.of({source: f"{why} {resize} px: crop it"})
    with _raised_limits, _one_large_image if large else nullcontext():
        return with_shorter_side(_decode(image, in_channels, source, resize), resize)


def _decode(image: Image.Image, in_channels: int, source: Path, resize: int | None) -> Tensor:
    """Return the pixels, resized where that is fast, before they leave Pillow."""
    from PIL import Image

    if in_channels > 1 and getattr(image, "n_frames", 1) == in_channels and _has_bands(image, in_channels):
        return channels_tensor(_pages(image, source), in_channels, source)
    transparent = _transparent_value(image)
    if in_channels not in (1, 3):
        if image.format == "TIFF" and not _has_bands(image, in_channels) and source.is_file():
            return _read_bands(source, in_channels)
        with _blaming(source):
            array = np.atleast_3d(np.asarray(image))
        return channels_tensor(array, in_channels, source)
    with _blaming(source):
        image.load()
    image = _turn_upright(image)
    if image.mode.startswith(_DEEP_MODES):
        deep = with_shorter_side(deep_tensor(np.asarray(image), transparent, source), resize)
        return deep.expand(in_channels, -1, -1).contiguous()
    with _blaming(source):
        if image.has_transparency_data:
            if transparent != image.info.get("transparency"):
                image = image.copy()
                image.info["transparency"] = transparent
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("L" if in_channels == 1 else "RGB")
    image = resize_image(image, resize)
    array = np.asarray(image).reshape(image.height, image.width, in_channels)
    return torch.from_numpy(np.moveaxis(array, 2, 0).copy())


def _transparent_value(image: Image.Image) -> Any:
    """Return the transparent gray value, color or entry of the palette, or the alphas of entries, or None.

    Pillow gives it in the depth of the file; it is returned in that of the pixels, which must not be loaded yet.
    """
    value = image.info.get("transparency")
    if image.mode == "P":  # Pillow refuses entries beyond the palette
        return value[:256] if isinstance(value, bytes) else b"" if isinstance(value, int) and value > 255 else value
    scale = {"L;2": 85, "L;4": 17}.get(png_raw_mode(image))
    if isinstance(value, int) and scale is not None:
        return value * scale
    if isinstance(value, tuple) and png_raw_mode(image) == "RGB;16B":
        return tuple(channel >> 8 for channel in value)
    return value


def _pages(image: Image.Image, source: Path) -> np.ndarray:
    """Return the pages of a TIFF file as pixels (H, W, C)."""
    from PIL import ImageSequence

    with _blaming(source):
        return np.dstack([np.asarray(page) for page in ImageSequence.Iterator(image)])


def deep_tensor(array: np.ndarray, transparent: object, source: Path) -> Tensor:
    """Return pixels of more than 8 bits, (H, W) or (H, W, C), as a float32 tensor (C, H, W) in [0, 1].

    Args:
        array: Integers, to be divided by 65535, or floats in [0, 1].
        transparent: Value that becomes white, if it is a number.
        source: File or name, for messages.

    Raises:
        UnreadableImages: It has other values.
    """
    deep = array.astype(np.float32) / (1 if array.dtype.kind == "f" else 65535)
    if not ((deep >= 0) & (deep <= 1)).all():
        right = "[0, 1]" if array.dtype.kind == "f" else "0 to 65535"
        found = f"values from {array.min():g} to {array.max():g}"
        raise UnreadableImages.of({source: f"{found}, where {right} is right for {array.dtype.name}"})
    if isinstance(transparent, int):
        deep[array == transparent] = 1
    return torch.from_numpy(deep).reshape(*deep.shape[:2], -1).permute(2, 0, 1).contiguous()


def _turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; broken metadata are ignored, since the pixels are whole."""
    from PIL import ExifTags, Image

    turns: dict[Any, Image.Transpose] = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:  # not ImageOps.exif_transpose, which fails where any other tag is broken
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return image
    turn = turns.get(orientation)
    return image if turn is None else image.transpose(turn)
