"""Whole pixels beside broken metadata are read: all that torchvision reads."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import default_loader

from metricloss_pl.data import reading
from metricloss_pl.data.reading import UnreadableImages, check_readable, read_head, read_image
from tests.data.images import as_tensor, pixels


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def saved(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels()).save(buffer, kind, **options)
    return buffer.getvalue()


def png_with(kind: bytes, data: bytes, at_end: bool) -> bytes:
    whole = saved("PNG")
    place = len(whole) - 12 if at_end else 33  # before IEND, or behind IHDR
    return whole[:place] + chunk(kind, data) + whole[place:]


def exif(*entries: bytes) -> bytes:
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")


def jpeg_with(marker: int, data: bytes, length: int | None = None) -> bytes:
    whole = saved("JPEG", quality=95)
    size = struct.pack(">H", len(data) + 2 if length is None else length)
    return whole[:2] + bytes([0xFF, marker]) + size + data + whole[2:]


ORIENTATION_6 = entry(274, 3, 1, struct.pack("<H", 6))
BROKEN_EXIF = {
    "no header": b"\0\1\2\3\4\5\6\7",
    "cut": exif(ORIENTATION_6)[:13],
    "text for a number": exif(entry(256, 2, 2, b"a\0"), ORIENTATION_6),
    "offset beyond the end": exif(entry(270, 2, 99, struct.pack("<I", 9999)), ORIENTATION_6),
    "orientation 0": exif(entry(274, 3, 1, b"\0\0")),
    "orientation 77": exif(entry(274, 3, 1, struct.pack("<H", 77))),
    "orientation as text": exif(entry(274, 2, 2, b"6\0")),
    "two orientations": exif(entry(274, 3, 2, struct.pack("<HH", 6, 3))),
    "orientation of an unknown type": exif(entry(274, 99, 1, b"\6")),
    "empty": b"",
}
FILES = {
    **{f"png, {name}.png": png_with(b"eXIf", data, at_end=True) for name, data in BROKEN_EXIF.items()},
    **{f"png, first, {name}.png": png_with(b"eXIf", data, at_end=False) for name, data in BROKEN_EXIF.items()},
    **{f"jpeg, {name}.jpg": jpeg_with(0xE1, b"Exif\0\0" + data) for name, data in BROKEN_EXIF.items()},
    **{f"webp, {name}.webp": saved("WEBP", lossless=True, exif=data) for name, data in BROKEN_EXIF.items()},
    "raw profile.png": png_with(b"tEXt", b"Raw profile type exif\0\nexif\n8\nno hex", at_end=False),
    "xmp that is no text.png": png_with(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0\xff\xfe", at_end=False),
    "xmp orientation 9.png": png_with(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0tiff:Orientation="9"', at_end=False),
    "profile.png": png_with(b"iCCP", b"name\0\0no zlib stream", at_end=False),
    "text.png": png_with(b"zTXt", b"key\0\0no zlib stream", at_end=False),
    "alphas.png": png_with(b"tRNS", b"\0", at_end=False),
    "resolution.png": png_with(b"pHYs", b"\0", at_end=False),
    "segment that ends early.jpg": jpeg_with(0xE1, b"Exif\0\0" + exif(ORIENTATION_6)[:11]),
    "segment longer than the file.jpg": jpeg_with(0xE1, b"Exif\0\0", length=60_000),
    "profile.jpg": jpeg_with(0xE2, b"ICC_PROFILE\0\3\1no profile"),
    "photoshop.jpg": jpeg_with(0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\0\0\0\xff"),
    "several pictures.jpg": jpeg_with(0xE2, b"MPF\0no index"),
    "comment.gif": saved("GIF", comment=b"\xff\0" * 300),
    "unknown tag.tif": saved("TIFF", tiffinfo={65000: "what"}, exif=b"Exif\0\0" + exif(ORIENTATION_6)),
}


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it finds
@pytest.mark.parametrize("name", FILES)
def test_all_that_torchvision_reads_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    try:
        want = np.asarray(default_loader(str(path)))
    except Exception:
        with pytest.raises(UnreadableImages):
            read_image(path, 3)
        return
    image = read_image(path, 3)
    turned = [np.rot90(want, turns) for turns in range(4)]
    assert any(torch.equal(image, as_tensor(candidate)) for candidate in turned)
    check_readable([path], 3)


@pytest.mark.filterwarnings("ignore")
def test_the_corpus_is_mostly_readable(tmp_path: Path) -> None:
    """Else the test above would compare nothing."""
    read = 0
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
        try:
            default_loader(str(tmp_path / name))
        except Exception:
            continue
        read += 1
    assert read > len(FILES) * 0.7


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(("kind", "head"), [(b"zTXt", b"key\0\0"), (b"iTXt", b"key\0\1\0de\0key\0")])
def test_long_notes_are_passed_over_up_to_a_limit(
    kind: bytes, head: bytes, at_end: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow refuses more than 1 MB, as programs write that note in an image how it was made."""
    note = zlib.compress(b"a" * 2_000_000)
    (tmp_path / "note.png").write_bytes(png_with(kind, head + note, at_end))
    assert torch.equal(read_image(tmp_path / "note.png", 3), as_tensor(pixels()))
    monkeypatch.setattr(reading, "_MOST_TEXT", 1_500_000)
    with pytest.raises(UnreadableImages):
        read_image(tmp_path / "note.png", 3)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif"])
def test_the_orientation_is_applied_beside_broken_tags(kind: str, tmp_path: Path) -> None:
    odd = exif(entry(256, 2, 2, b"a\0"), ORIENTATION_6)
    if kind == "tif":
        content = saved("TIFF", tiffinfo={274: 6, 65000: "what"})
    else:
        content = {
            "png": png_with(b"eXIf", odd, at_end=True),
            "jpg": jpeg_with(0xE1, b"Exif\0\0" + odd),
            "webp": saved("WEBP", lossless=True, exif=odd),
        }[kind]
    (tmp_path / f"a.{kind}").write_bytes(content)
    image = read_image(tmp_path / f"a.{kind}", 3)
    assert image.shape == (3, 9, 6)
    if kind != "jpg":
        assert torch.equal(image, as_tensor(np.rot90(pixels(), -1)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"])
def test_cut_pixels_are_refused(kind: str, tmp_path: Path) -> None:
    whole = saved(kind)
    (tmp_path / "a").write_bytes(whole[: len(whole) - len(whole) // 4])
    if kind == "TIFF":  # its directory stands at the end
        (tmp_path / "a").write_bytes(whole[:40])
    with pytest.raises(UnreadableImages, match=r"a cannot be read as an image \("):
        read_image(tmp_path / "a", 3)
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(UnreadableImages, match=r"\(an empty file\)"):
        read_image(tmp_path / "a", 3)


def test_a_bug_of_ours_is_no_bad_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(saved("PNG"))

    def buggy(*arguments: object) -> None:
        raise AttributeError("planted")

    for function in ("_turn_upright", "_transparent_value", "_check_file"):
        with monkeypatch.context() as patched:
            patched.setattr(reading, function, buggy)
            with pytest.raises(AttributeError, match="planted"):
                check_readable([tmp_path / "a.png"], 3)


def gray_png(path: Path, depth: int, kind: int, samples: bytes, transparent: bytes, width: int) -> None:
    """Write one row of pixels with a transparent color."""
    head = struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"tRNS", transparent), (b"IDAT", zlib.compress(b"\0" + samples)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks))


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize(
    ("depth", "kind", "samples", "transparent", "want"),
    [
        (1, 0, b"\x40", b"\0\1", [0, 255]),
        (1, 0, b"\x40", b"\0\0", [255, 255]),
        (2, 0, b"\x60", b"\0\1", [255, 170]),
        (4, 0, b"\x1c", b"\0\1", [255, 204]),
        (8, 0, b"\1\2", b"\0\1", [255, 2]),
        (16, 0, b"\1\0\2\0", b"\1\0", [1.0, 512 / 65535]),
        (8, 2, b"\1\1\1\2\2\2", b"\0\1\0\1\0\1", [255, 2]),
        (16, 2, b"\1\0\1\0\1\0\2\0\2\0\2\0", b"\1\0\1\0\1\0", [255, 2]),
    ],
)
def test_a_transparent_color_lies_over_white(
    depth: int, kind: int, samples: bytes, transparent: bytes, want: list[float], in_channels: int, tmp_path: Path
) -> None:
    gray_png(tmp_path / "t.png", depth, kind, samples, transparent, width=2)
    image = read_image(tmp_path / "t.png", in_channels)
    assert torch.equal(image, torch.tensor(want).to(image.dtype).expand(in_channels, 1, 2))


def test_large_images_are_read_and_too_large_ones_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit, a global, comes back."""
    Image.new("1", (300, 200)).save(tmp_path / "large.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_head(tmp_path / "large.png") == (300, 200, False)
    assert read_image(tmp_path / "large.png", 1).shape == (1, 200, 300)
    assert PIL.Image.MAX_IMAGE_PIXELS == 1000
    (tmp_path / "bomb.pbm").write_text("P4\n40000 40000\n")
    with pytest.raises(UnreadableImages, match=r"1,600 million pixels, and 1,000 million are the most that is read"):
        check_readable([tmp_path / "large.png", tmp_path / "bomb.pbm"], 3)
    assert PIL.Image.MAX_IMAGE_PIXELS == 1000
