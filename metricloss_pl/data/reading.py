"""Image files: found in a folder, decoded, and named all at once where they cannot be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from metricloss_pl.errors import UserError, reason

if TYPE_CHECKING:
    from PIL import Image

IMAGE_EXTENSIONS = (
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
DECODING_THREADS = 8
_COMPANIONS = (".csv", ".db", ".html", ".ini", ".json", ".md", ".txt", ".xml", ".yaml", ".yml")  # lie among images
_NAMED = 5  # of many unreadable files
_DEEP_MODES = ("I", "F")  # first letter of Pillow's modes of more than 8 bits: I, I;16, I;16B, I;16L, I;16N, F


def image_files(folder: str | Path) -> list[Path]:
    """Lists the images under `folder`, also in its subfolders, sorted by path; what is hidden is left out.

    Raises:
        UserError: The folder is missing, or holds no file with one of the extensions in `IMAGE_EXTENSIONS`.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"no folder {root}: a folder of images is needed")
    files = sorted(path for path in shown_files(root) if path.suffix.lower() in IMAGE_EXTENSIONS)
    if not files:
        raise UserError(f"no image in {root}: files ending in {', '.join(IMAGE_EXTENSIONS)} are looked for")
    return files


def shown_files(folder: Path, pattern: str = "**/*") -> Iterator[Path]:
    """The files in a folder that match a pattern, but for what is hidden, such as .ipynb_checkpoints."""
    for path in folder.glob(pattern):
        if path.is_file() and not any(name.startswith(".") for name in path.relative_to(folder).parts):
            yield path


def describe_unread(root: Path, folders: Iterable[Path]) -> list[str]:
    """The line on files under some folders of `root` that may be images of a kind that is not read, or none."""
    known = IMAGE_EXTENSIONS + _COMPANIONS
    unread = sorted(path for folder in folders for path in shown_files(folder) if path.suffix.lower() not in known)
    return not_used("file", "of a kind that is not read", "convert to .jpg or .png, or remove", unread, root)


def not_used(thing: str, why: str, remedy: str, paths: Sequence[Path], root: Path) -> list[str]:
    """The line on paths in `root` that are not used, or none: "not used: 2 files of ..., such as 'a.heic'; convert"."""
    if not paths:
        return []
    things = f"{len(paths)} {thing}{'s' if len(paths) > 1 else ''}"
    return [f"not used: {things} {why}, such as {paths[0].relative_to(root).as_posix()!r}; {remedy}"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Without torch's other threads: to wake them costs small batches more than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class UnreadableImages(UserError):
    """Image files that cannot be decoded, in one line."""


def _describe(broken: Mapping[Path, str], list_file: str | None = None) -> str:
    """The line on files and what is wrong with each, of which a list may stand in a file."""
    if len(broken) == 1:
        [(path, why)] = broken.items()
        return f"{path} cannot be read as an image ({why}): mend or remove the file"
    named = ", ".join(f"{path} ({why})" for path, why in islice(broken.items(), _NAMED))
    more = "" if list_file is None else f", ...; all are listed in {list_file}"
    return f"{len(broken)} files cannot be read as images: {named}{more}; mend or remove them"


def _write_list(paths: Iterable[Path]) -> str:
    with NamedTemporaryFile(
        "w", prefix="unreadable_images_", suffix=".txt", delete=False, encoding="utf-8", errors="surrogateescape"
    ) as file:
        file.writelines(f"{path}\n" for path in paths)
    return file.name


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image of a file, of which only the head is read so far; whatever is wrong with it becomes one error."""
    from PIL import Image

    try:
        _check_file(path)
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on damaged files
        raise UnreadableImages(_describe({path: _what_is_wrong(error)})) from error


def _check_file(path: Path) -> None:
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("there is no such file" if not path.exists() else "a folder, pipe or device")


def _what_is_wrong(error: BaseException) -> str:
    """What an image file lacks, by the error on opening it."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "no image, or of an unknown format"
    return reason(error)


def check_readable(files: Sequence[Path], in_channels: int) -> None:
    """Decodes files, JPEGs at an eighth of their size, and keeps nothing.

    Raises:
        UnreadableImages: Some of them cannot be; all of these are named, in a text file where they are many.
    """

    def what_is_wrong(path: Path) -> str | None:
        try:
            read_image(path, in_channels, small=True)
        except UnreadableImages as error:
            return _what_is_wrong(error.__cause__ or error)
        return None

    with one_thread(), ThreadPoolExecutor(DECODING_THREADS) as pool:
        found = zip(files, pool.map(what_is_wrong, files), strict=True)
        broken = {path: why for path, why in found if why is not None}
    if broken:
        raise UnreadableImages(_describe(broken, _write_list(broken) if len(broken) > _NAMED else None))


def digests_of(files: Sequence[Path]) -> list[bytes]:
    """A digest of each file's bytes.

    Raises:
        UnreadableImages: One cannot be read.
    """

    def digest_of(path: Path) -> bytes:
        try:
            _check_file(path)
            return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
        except (OSError, ValueError) as error:
            raise UnreadableImages(_describe({path: _what_is_wrong(error)})) from error

    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        return list(pool.map(digest_of, files))


def read_head(path: Path) -> tuple[int, int, bool]:
    """Width and height of an image file, and whether it has more than 8 bits, without decoding it.

    Raises:
        UnreadableImages: The file is missing or no image.
    """
    with _opened(path) as image:
        return *image.size, image.mode.startswith(_DEEP_MODES)


def read_image(path: Path, in_channels: int, small: bool = False) -> Tensor:
    """Decodes an image file.

    The EXIF orientation is applied, transparency is laid over white, palettes are resolved, an animation gives its
    first frame. Grey comes from colour by ITU-R 601-2 luma weights.

    Args:
        path: The file.
        in_channels: 3 for colour, 1 for grey.
        small: Decode a JPEG at an eighth of its size, which is faster.

    Returns:
        (in_channels, H, W), uint8; or float32 in [0, 1] for grey images of more than 8 bits (16-bit PNG or TIFF are
        divided by 65535, floating-point TIFF must be in [0, 1] already).

    Raises:
        UnreadableImages: The file is missing, damaged, no image, or has values out of the range of its kind.
    """
    from PIL import ImageOps

    with _opened(path) as opened:
        if small:
            opened.draft(None, (1, 1))
        image = ImageOps.exif_transpose(opened)
        image.load()
        if not image.mode.startswith(_DEEP_MODES):
            array = np.array(_flatten(image).convert("L" if in_channels == 1 else "RGB"))
            return torch.from_numpy(array).reshape(*array.shape[:2], in_channels).permute(2, 0, 1)
        array = np.asarray(image)
        deep = array.astype(np.float32) / (1 if array.dtype.kind == "f" else 65535)
        if not ((deep >= 0) & (deep <= 1)).all():
            right = "[0, 1]" if array.dtype.kind == "f" else "0 to 65535"
            raise ValueError(
                f"values from {array.min():g} to {array.max():g}, where {right} is right for {array.dtype}"
            )
        return torch.from_numpy(deep).expand(in_channels, -1, -1).contiguous()


def _flatten(image: Image.Image) -> Image.Image:
    """Lays transparency over white."""
    from PIL import Image

    if image.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in image.info:
        return image
    coloured = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), coloured)
