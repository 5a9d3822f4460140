"""Decoding: modes, depths and channels; and whole pixels beside broken metadata, as far as torchvision reads them."""

from __future__ import annotations

import io
import struct
import sys
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
from metricloss_pl.data.file_checks import check_readable, image_files
from metricloss_pl.data.reading import UnreadableImages, read_head, read_image
from metricloss_pl.errors import UserError
from tests.data.images import as_tensor, pixels


def test_image_files(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "a.tiff", "notes.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)] == ["a.tiff", "b/1.jpg", "b/2.PNG"]
    with pytest.raises(UserError, match="nowhere"):
        image_files(tmp_path / "nowhere")
    (tmp_path / "empty" / "folder.png").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no image in .*empty"):
        image_files(tmp_path / "empty")


def test_color_and_gray(tmp_path: Path) -> None:
    color, gray = pixels(), pixels(channels=1)
    Image.fromarray(color).save(tmp_path / "c.png")
    Image.fromarray(gray[..., 0]).save(tmp_path / "g.png")
    assert torch.equal(read_image(tmp_path / "c.png", 3), as_tensor(color))
    assert torch.equal(read_image(tmp_path / "g.png", 1), as_tensor(gray))
    assert torch.equal(read_image(tmp_path / "g.png", 3), as_tensor(gray).expand(3, -1, -1))
    luma = (color @ np.array([0.299, 0.587, 0.114])).round()
    assert np.abs(read_image(tmp_path / "c.png", 1)[0].numpy() - luma).max() <= 1


def test_exif_orientation(tmp_path: Path) -> None:
    color = pixels()
    for orientation, turned in ((3, color[::-1, ::-1]), (6, np.rot90(color, -1)), (2, color[:, ::-1])):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(color).save(tmp_path / "e.png", exif=exif)
        assert torch.equal(read_image(tmp_path / "e.png", 3), as_tensor(turned))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_sixteen_bits(tmp_path: Path, suffix: str, in_channels: int) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (6, 9), dtype=np.uint16)
    deep[0, :2] = 0, 65535
    Image.fromarray(deep).save(tmp_path / f"d.{suffix}")
    image = read_image(tmp_path / f"d.{suffix}", in_channels)
    assert image.dtype == torch.float32
    assert image.shape == (in_channels, 6, 9)
    assert torch.equal(image, torch.from_numpy(deep.astype(np.float32) / 65535).expand(in_channels, -1, -1))


def test_floating_point_files(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((4, 5), dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "f.tiff")
    assert torch.equal(read_image(tmp_path / "f.tiff", 1)[0], torch.from_numpy(values))
    for value in (7.5, float("nan")):
        values[1, 1] = value
        Image.fromarray(values).save(tmp_path / "f.tiff")
        with pytest.raises(UserError, match=r"f\.tiff"):
            read_image(tmp_path / "f.tiff", 1)


def test_alpha_lies_over_white(tmp_path: Path) -> None:
    color = pixels()
    alpha = np.zeros((6, 9, 1), dtype=np.uint8)
    alpha[:, :4] = 255
    Image.fromarray(np.concatenate([color, alpha], axis=2)).save(tmp_path / "a.png")
    white = np.where(alpha == 255, color, 255)
    assert torch.equal(read_image(tmp_path / "a.png", 3), as_tensor(white))
    gray = pixels(channels=1)
    Image.fromarray(np.concatenate([gray, alpha], axis=2), mode="LA").save(tmp_path / "la.png")
    assert torch.equal(read_image(tmp_path / "la.png", 1), as_tensor(np.where(alpha == 255, gray, 255)))


def test_palettes(tmp_path: Path) -> None:
    palette = Image.fromarray(pixels()).quantize(16)
    palette.save(tmp_path / "p.png")
    want = np.asarray(palette.convert("RGB"))
    assert torch.equal(read_image(tmp_path / "p.png", 3), as_tensor(want))
    palette.save(tmp_path / "t.png", transparency=3)
    transparent = np.asarray(palette)[..., None] == 3
    assert transparent.any()
    assert torch.equal(read_image(tmp_path / "t.png", 3), as_tensor(np.where(transparent, 255, want)))
    Image.fromarray(pixels(channels=1)[..., 0] > 99).save(tmp_path / "one.png")
    assert set(read_image(tmp_path / "one.png", 1).unique().tolist()) == {0, 255}
    Image.fromarray(pixels()).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert read_image(tmp_path / "cmyk.jpg", 3).shape == (3, 6, 9)


# Other numbers of channels.


def save_tiff(path: Path, bands: np.ndarray) -> None:
    """Write one page per band (H, W, C)."""
    pages = [Image.fromarray(np.ascontiguousarray(bands[..., band])) for band in range(bands.shape[2])]
    pages[0].save(path, save_all=True, append_images=pages[1:])


@pytest.mark.parametrize("channels", [2, 3, 4, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_pages_of_a_tiff_file_are_channels(tmp_path: Path, channels: int, dtype: type) -> None:
    bands = pixels(channels=channels)
    save_tiff(tmp_path / "bands.tif", (bands / 255).astype(dtype) if dtype is np.float32 else bands.astype(dtype))
    image = read_image(tmp_path / "bands.tif", channels)
    scale = {np.uint8: 1, np.uint16: 65535, np.float32: 255}[dtype]
    assert image.dtype == (torch.uint8 if dtype is np.uint8 else torch.float32)
    assert torch.allclose(image.double(), as_tensor(bands).double() / scale)
    assert read_head(tmp_path / "bands.tif", channels) == (9, 6, dtype is not np.uint8)


def test_black_and_white_pages_are_channels(tmp_path: Path) -> None:
    bands = pixels(channels=4) > 127
    save_tiff(tmp_path / "bands.tif", bands)
    assert torch.equal(read_image(tmp_path / "bands.tif", 4), as_tensor(bands.astype(np.uint8) * 255))


@pytest.mark.parametrize(("channels", "in_channels"), [(13, 4), (4, 13), (3, 4)])
def test_other_channels_than_in_channels_are_refused(tmp_path: Path, channels: int, in_channels: int) -> None:
    save_tiff(tmp_path / "bands.tif", pixels(channels=channels))
    with pytest.raises(UnreadableImages, match=f"channels, and in_channels is {in_channels}"):
        read_image(tmp_path / "bands.tif", in_channels)


def test_gray_and_color_come_from_the_first_page(tmp_path: Path) -> None:
    bands = pixels(channels=5)
    save_tiff(tmp_path / "stack.tif", bands)
    for in_channels in (1, 3):
        image = read_image(tmp_path / "stack.tif", in_channels)
        assert torch.equal(image, as_tensor(bands[..., :1]).expand(in_channels, -1, -1))


def test_four_channels_of_each_pixel(tmp_path: Path) -> None:
    bands = pixels(channels=4)
    for name in ("bands.png", "bands.tif"):
        Image.fromarray(bands).save(tmp_path / name)
        assert torch.equal(read_image(tmp_path / name, 4), as_tensor(bands))


@pytest.mark.parametrize(
    ("channels", "options"), [(4, {"photometric": "rgb"}), (13, {}), (13, {"planarconfig": "separate"})]
)
def test_bands_of_more_than_8_bits_in_one_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, options: dict[str, Any]
) -> None:
    """Such as those of most satellite images, which Pillow refuses or reduces to 8 bits."""
    tifffile = pytest.importorskip("tifffile")
    bands = pixels(channels=channels).astype(np.uint16) * 100
    written = bands.transpose(2, 0, 1) if "planarconfig" in options else bands
    options = {"photometric": "minisblack", "planarconfig": "contig", **options}
    tifffile.imwrite(tmp_path / "bands.tif", written, **options)
    assert torch.allclose(read_image(tmp_path / "bands.tif", channels), as_tensor(bands) / 65535)
    assert read_head(tmp_path / "bands.tif", channels) == (9, 6, True)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UnreadableImages, match="tifffile"):
        read_image(tmp_path / "bands.tif", channels)


def test_a_stack_of_other_pages_gives_its_first_one(tmp_path: Path) -> None:
    """Such as one with a thumbnail."""
    pages = [Image.fromarray(pixels()), Image.fromarray(pixels(3, 4))]
    pages[0].save(tmp_path / "thumbnail.tif", save_all=True, append_images=pages[1:])
    assert torch.equal(read_image(tmp_path / "thumbnail.tif", 3), as_tensor(pixels()))


# Metadata.


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
def test_long_texts_are_ignored_up_to_a_limit(
    kind: bytes, head: bytes, at_end: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow refuses more than 1 MB, and programs note in an image how it was made."""
    (tmp_path / "text.png").write_bytes(png_with(kind, head + zlib.compress(b"a" * 2_000_000), at_end))
    assert torch.equal(read_image(tmp_path / "text.png", 3), as_tensor(pixels()))
    monkeypatch.setattr(reading, "_MOST_TEXT", 1_500_000)
    with pytest.raises(UnreadableImages):
        read_image(tmp_path / "text.png", 3)


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

    for function in ("check_file", "_transparent_value", "_turn_upright"):
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


@pytest.mark.parametrize(
    ("alphas", "transparent"),
    [(b"\xff\0" + b"\x80" * 300, 1), (b"\0" + b"\xff" * 299, 0), (b"\xff" * 280 + b"\0", None)],
)
def test_alphas_beyond_the_palette_are_ignored(tmp_path: Path, alphas: bytes, transparent: int | None) -> None:
    buffer = io.BytesIO()
    indices = np.array([[0, 1, 0, 1]], dtype=np.uint8)
    palette = Image.fromarray(indices, mode="P")
    palette.putpalette([10, 10, 10, 20, 20, 20])
    palette.save(buffer, "PNG", bits=8)
    whole = buffer.getvalue()
    place = whole.index(b"IDAT") - 4
    (tmp_path / "p.png").write_bytes(whole[:place] + chunk(b"tRNS", alphas) + whole[place:])
    want = torch.tensor([255 if index == transparent else 10 * index + 10 for index in (0, 1, 0, 1)])
    assert torch.equal(read_image(tmp_path / "p.png", 3), want.to(torch.uint8).expand(3, 1, 4))


# Large images.


def test_large_images_are_read_and_too_large_ones_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's limit, a global, is back after the last of several readers."""
    Image.new("1", (300, 200)).save(tmp_path / "large.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with reading._raised_limits:
        assert read_head(tmp_path / "large.png", 3) == (300, 200, False)
        assert read_image(tmp_path / "large.png", 1).shape == (1, 200, 300)
        assert PIL.Image.MAX_IMAGE_PIXELS is None
    assert PIL.Image.MAX_IMAGE_PIXELS == 1000
    assert read_image(tmp_path / "large.png", 1).shape == (1, 200, 300)
    for name in ("bomb.pbm", "bomb.tif"):  # nor is tifffile, which has no limit, asked to
        (tmp_path / name).write_text("P4\n40000 40000\n")
        with pytest.raises(UnreadableImages, match=r"1,600 million pixels, .* 1,000 million"):
            check_readable([tmp_path / "large.png", tmp_path / name], 3)
    assert PIL.Image.MAX_IMAGE_PIXELS == 1000


def test_lines_of_pixels_are_not_enlarged_beyond_memory(tmp_path: Path) -> None:
    """60,000 x 1 px with a shorter side of 224 px would be 3,011 million pixels."""
    Image.new("L", (60_000, 1)).save(tmp_path / "line.png")
    assert read_image(tmp_path / "line.png", 1).shape == (1, 1, 60_000)
    assert read_image(tmp_path / "line.png", 1, resize=8).shape == (1, 8, 480_000)
    with pytest.raises(UnreadableImages, match=r"line\.png .*60000 x 1 px, .* 3,011 million"):
        read_image(tmp_path / "line.png", 1, resize=224)


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(saved("PNG"))
    alone = []
    turn = reading._turn_upright

    def noting(image: Image.Image) -> Image.Image:
        alone.append(reading._one_large_image.locked())
        return turn(image)

    monkeypatch.setattr(reading, "_turn_upright", noting)
    for largest in (6 * 9, 6 * 9 - 1):
        monkeypatch.setattr(reading, "_LARGE", largest)
        read_image(tmp_path / "a.png", 3)
    assert alone == [False, True]
