"""Image files: found in a folder, decoded, and named all at once where they cannot be."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from metricloss_pl.errors import UserError, plural, reason

if TYPE_CHECKING:
    from PIL import Image

IMAGE_EXTENSIONS = (
    ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
DECODING_THREADS = 8
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
_COMPANIONS = (".csv", ".db", ".html", ".ini", ".json", ".md", ".txt", ".xml", ".yaml", ".yml")  # lie among images
_NAMED = 5  # of many unreadable files
_DEEP_MODES = ("I", "F")  # first letter of Pillow's modes of more than 8 bits: I, I;16, I;16B, I;16L, I;16N, F
_MOST_PIXELS = 1_000_000_000  # of an image: 4 GB while it is decoded
_MOST_TEXT = 2**28  # bytes of text in a PNG
_LARGE = 50_000_000  # pixels from which images are decoded one at a time
# What Pillow's readers raise on bad files.
_BAD_FILE = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OSError,
    RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
# Things that cannot be used as images, why, and the remedy.
_UNUSABLE = {
    "dangling": ("link", "whose target is missing or closed", "restore the target or remove the link"),
    "loop": ("link", "to a folder that it lies in", "remove it"),
    "closed": ("folder", "that cannot be opened", "allow reading it or remove it"),
    "special": ("special file", "(pipe, socket or device)", "remove it"),
}


class Found(NamedTuple):
    """The contents of a folder, sorted by path; what is hidden, and runs of this program, are left out.

    Args:
        files: Regular files and links to some.
        unusable: Everything that can neither be read nor opened, by the kinds of `_UNUSABLE`.
    """

    files: list[Path]
    unusable: dict[str, list[Path]]


def find_files(folder: Path, deep: bool = True) -> Found:
    """List the files in a folder, following links to files and folders.

    Args:
        folder: Where to look. Paths start with it, also those of files behind links.
        deep: Look into its subfolders, too.
    """
    found = Found([], {kind: [] for kind in _UNUSABLE})
    _look_into(folder, (), deep, found)
    for paths in (found.files, *found.unusable.values()):
        paths.sort()
    return found


def _look_into(folder: Path, around: tuple[str, ...], deep: bool, found: Found) -> None:
    around = (*around, os.path.realpath(folder))
    try:
        with os.scandir(folder) as listing:
            entries = [entry for entry in listing if not is_passed_over(entry.name)]
    except OSError:
        found.unusable["closed"].append(folder)
        return
    for entry in entries:
        path = folder / entry.name
        if os.path.isdir(path) if entry.is_symlink() else entry.is_dir():
            if entry.is_symlink() and _holds_one_of(os.path.realpath(path), around):
                found.unusable["loop"].append(path)
            elif deep and not is_output(path):
                _look_into(path, around, deep, found)
        elif os.path.isfile(path) if entry.is_symlink() else entry.is_file():
            found.files.append(path)
        else:
            found.unusable["special" if os.path.exists(path) else "dangling"].append(path)


def _holds_one_of(folder: str, others: Iterable[str]) -> bool:
    """Return whether a real path is that of one of the others or of a folder around it."""
    return any(Path(folder) in (Path(other), *Path(other).parents) for other in others)


def image_files(folder: str | Path) -> list[Path]:
    """List the images in `folder` and its subfolders, sorted by path; hidden ones are left out.

    Raises:
        UserError: The folder is missing, or holds no file with one of the extensions in `IMAGE_EXTENSIONS`.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"no folder {root}: a folder of images is needed")
    found = find_files(root)
    files = [path for path in found.files if path.suffix.lower() in IMAGE_EXTENSIONS]
    if not files:
        lines = [f"no image in {root}: files ending in {', '.join(IMAGE_EXTENSIONS)} are looked for"]
        raise UserError("; ".join(lines + _describe_unusable(root, [found])))
    return files


def is_passed_over(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or an operating system's."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def is_output(folder: Path) -> bool:
    """Return whether a folder is that of a run or of a comparison, which hold pictures too."""
    is_run = folder.name.startswith("version_") or (folder / "checkpoints").is_dir()
    if is_run and (folder / "config.yaml").is_file():
        return True
    return (folder / "plan.json").is_file() and (folder / "results.jsonl").is_file()


def describe_unread(root: Path, folders: Iterable[Path], beside: Iterable[Path] = ()) -> list[str]:
    """Return the lines on what is not used of that which may have been meant as an image.

    Args:
        root: Folder that the paths are given relative to.
        folders: Folders of images in `root`, which are searched with their subfolders.
        beside: Folders in `root` that hold no images themselves; links in them may have been meant as folders of some.
    """
    known = IMAGE_EXTENSIONS + _COMPANIONS
    found = [find_files(folder) for folder in folders]
    unread = sorted(path for of_one in found for path in of_one.files if path.suffix.lower() not in known)
    return [
        *not_used("file", "of a kind that is not read", "convert to .jpg or .png, or remove", unread, root),
        *_describe_unusable(root, [*found, *(find_files(folder, deep=False) for folder in beside)]),
    ]


def _describe_unusable(root: Path, found: Sequence[Found]) -> list[str]:
    paths = {kind: sorted(path for of_one in found for path in of_one.unusable[kind]) for kind in _UNUSABLE}
    return [line for kind, words in _UNUSABLE.items() for line in not_used(*words, paths[kind], root)]


def not_used(thing: str, why: str, remedy: str, paths: Sequence[Path], root: Path) -> list[str]:
    """Return the line on paths in `root` that are not used, or none.

    An example is "not used: 2 files of a kind that is not read, such as 'a.heic'; convert".
    """
    if not paths:
        return []
    return [f"not used: {plural(len(paths), thing)} {why}, such as {paths[0].relative_to(root).as_posix()!r}; {remedy}"]


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
    """Image files that cannot be decoded, in one line.

    Args:
        message: The line.
        broken: The files, and what is wrong with each.
    """

    def __init__(self, message: str, broken: Mapping[Path, str] | None = None) -> None:
        super().__init__(message, broken)
        self.broken = dict(broken or {})

    def __str__(self) -> str:
        return str(self.args[0])

    @classmethod
    def of(cls, broken: Mapping[Path, str], write_list: bool = True) -> Self:
        """Name files, and where they are many list them in a text file."""
        listed = _write_list(broken) if write_list and len(broken) > _NAMED else None
        them = "the file" if len(broken) == 1 else "them"
        return cls(f"{describe_broken(broken, listed)}; repair or remove {them}", broken)


def describe_broken(broken: Mapping[Path, str], list_file: str | None = None) -> str:
    """Return the line on files and what is wrong with each, of which a list may stand in a file."""
    if len(broken) == 1:
        [(path, why)] = broken.items()
        return f"{path} cannot be read as an image ({why})"
    named = ", ".join(f"{path} ({why})" for path, why in islice(broken.items(), _NAMED))
    more = "" if list_file is None else f", ...; all are listed in {list_file}"
    return f"{len(broken)} files cannot be read as images: {named}{more}"


def _write_list(paths: Iterable[Path]) -> str:
    with NamedTemporaryFile(
        "w", prefix="unreadable_images_", suffix=".txt", delete=False, encoding="utf-8", errors="surrogateescape"
    ) as file:
        file.writelines(f"{path}\n" for path in paths)
    return file.name


class _HigherLimits:
    """Pillow's limits, globals that are too low for microscopy and long notes in PNG, raised while any thread reads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._readers = 0
        self._before: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> None:
        from PIL import Image, PngImagePlugin

        with self._lock:
            if self._readers == 0:
                for module, name, limit in (
                    (Image, "MAX_IMAGE_PIXELS", None),  # see _open
                    (PngImagePlugin, "MAX_TEXT_CHUNK", _MOST_TEXT),
                    (PngImagePlugin, "MAX_TEXT_MEMORY", _MOST_TEXT),
                ):
                    self._before.append((module, name, getattr(module, name)))
                    setattr(module, name, limit)
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            while self._readers == 0 and self._before:
                setattr(*self._before.pop())


higher_limits = _HigherLimits()
_one_large_image = RLock()


@contextmanager
def _blaming(source: Path, expected: tuple[type[Exception], ...] = _BAD_FILE) -> Iterator[None]:
    """Turn what Pillow raises on a bad file into one error; a bug of ours within would be taken for one."""
    try:
        yield
    except expected as error:
        raise UnreadableImages.of({source: _what_is_wrong(error)}) from error


def _open(path: Path) -> Image.Image:
    """Open an image file, of which only the head is read."""
    from PIL import Image

    with _blaming(path, (OSError, ValueError)):
        _check_file(path)
    with _blaming(path):
        image = Image.open(path)
    if (pixels := image.width * image.height) > _MOST_PIXELS:
        image.close()
        size = f"{pixels / 1e6:,.0f} million pixels, and {_MOST_PIXELS / 1e6:,.0f} million are the most that is read"
        raise UnreadableImages.of({path: f"{size}: scale it down or cut it into tiles"})
    return image


def _check_file(path: Path) -> None:
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("there is no such file" if not path.exists() else "a folder, pipe or device")
    if path.stat().st_size == 0:
        raise ValueError("an empty file")


def _what_is_wrong(error: BaseException) -> str:
    """Return what an image file lacks, by the error on opening it."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "no image, or of an unknown format"
    return reason(error)


def find_broken(files: Sequence[Path], in_channels: int) -> dict[Path, str]:
    """Decode files, JPEGs at an eighth of their size, keep nothing, and return what is wrong with which."""

    def what_is_wrong(path: Path) -> str | None:
        try:
            read_image(path, in_channels, small=True)
        except UnreadableImages as error:
            return error.broken[path]
        return None

    with one_thread(), ThreadPoolExecutor(DECODING_THREADS) as pool:
        found = zip(files, pool.map(what_is_wrong, files), strict=True)
        return {path: why for path, why in found if why is not None}


def check_readable(files: Sequence[Path], in_channels: int) -> None:
    """Decode files and keep nothing.

    Raises:
        UnreadableImages: Some of them cannot be; all of these are named, in a text file where they are many.
    """
    if broken := find_broken(files, in_channels):
        raise UnreadableImages.of(broken)


def digests_of(files: Sequence[Path]) -> list[bytes]:
    """Return a digest of each file's bytes.

    Raises:
        UnreadableImages: One cannot be read.
    """

    def digest_of(path: Path) -> bytes:
        with _blaming(path, (OSError, ValueError)):
            _check_file(path)
            return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()

    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        return list(pool.map(digest_of, files))


def read_head(path: Path) -> tuple[int, int, bool]:
    """Return width and height of an image file, and whether it has more than 8 bits, without decoding it.

    Raises:
        UnreadableImages: The file is missing or no image.
    """
    with higher_limits, _open(path) as image:
        return *image.size, image.mode.startswith(_DEEP_MODES)


def read_image(path: Path, in_channels: int, small: bool = False) -> Tensor:
    """Decode an image file.

    The EXIF orientation is applied where it can be read, transparency is laid over white, palettes are resolved, an
    animation gives its first frame. Gray comes from color by ITU-R 601-2 luma weights.

    Args:
        path: The file.
        in_channels: 3 for color, 1 for gray.
        small: Decode a JPEG at an eighth of its size, which is faster.

    Returns:
        (in_channels, H, W), uint8; or float32 in [0, 1] for gray images of more than 8 bits (16-bit PNG or TIFF are
        divided by 65535, floating-point TIFF must be in [0, 1] already).

    Raises:
        UnreadableImages: The file is missing, damaged, no image, or has values out of the range of its kind.
    """
    with higher_limits, _open(path) as image:
        if small:
            image.draft(None, (1, 1))
        with _one_large_image if image.width * image.height > _LARGE else nullcontext():
            return decode_image(image, in_channels, path)


def decode_image(image: Image.Image, in_channels: int, source: Path) -> Tensor:
    """Return the pixels of an image of Pillow's, as `read_image` does.

    Args:
        image: May be loaded or not.
        in_channels: 3 for color, 1 for gray.
        source: File or name, for messages.
    """
    transparent = _transparent_value(image)
    with _blaming(source):
        image.load()
    image = _turn_upright(image)
    if image.mode.startswith(_DEEP_MODES):
        return deep_tensor(np.asarray(image), transparent, source).expand(in_channels, -1, -1).contiguous()
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or transparent is not None:
        image = _lay_over_white(image, transparent, source)
    with _blaming(source):
        image = image.convert("L" if in_channels == 1 else "RGB")
    array = np.array(image)
    return torch.from_numpy(array).reshape(*array.shape[:2], in_channels).permute(2, 0, 1)


def deep_tensor(array: np.ndarray, transparent: object, source: Path) -> Tensor:
    """Return pixels of more than 8 bits, (H, W) or (H, W, C), as a float32 tensor (C, H, W) in [0, 1].

    Args:
        array: Integers, to be divided by 65535, or floats in [0, 1].
        transparent: The value that is transparent and becomes white, if it is a number.
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
    return torch.from_numpy(deep).reshape(*deep.shape[:2], -1).permute(2, 0, 1)


def _turn_upright(image: Image.Image) -> Image.Image:
    """Apply the orientation that the metadata tell; broken metadata tell none, and the pixels are whole."""
    from PIL import ExifTags, Image

    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _BAD_FILE:
        return image
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image


def _transparent_value(image: Image.Image) -> object:
    """Return Pillow's note of what is transparent, in the depth of the decoded pixels; before they are loaded.

    It is a gray value, a color, a palette's entry, or the alphas of all entries; None: nothing is.
    """
    value = image.info.get("transparency")
    if image.mode == "P" and isinstance(value, bytes):
        return value[:256]  # more than there are entries would be refused
    if image.mode == "P" and isinstance(value, int) and value > 255:
        return None
    tile = getattr(image, "tile", None)
    if image.format != "PNG" or not tile:
        return value
    depth = tile[0][3]  # in Pillow's words
    if isinstance(value, int) and depth in ("L;2", "L;4"):
        return value * {"L;2": 85, "L;4": 17}[depth]
    if isinstance(value, tuple) and depth == "RGB;16B":
        return tuple(channel >> 8 for channel in value)
    return value


def _lay_over_white(image: Image.Image, transparent: object, source: Path) -> Image.Image:
    from PIL import Image

    if transparent != image.info.get("transparency"):
        image = image.copy()
        image.info["transparency"] = transparent
    with _blaming(source):
        colored = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colored)
