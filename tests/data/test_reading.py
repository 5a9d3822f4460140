from __future__ import annotations

import pickle
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metricloss_pl.data.reading import UnreadableImages, check_readable, image_files, read_image
from metricloss_pl.data.samples import Samples
from metricloss_pl.errors import UserError
from tests.data.images import as_tensor, pixels, store_of
from tests.systems import make_pipe

Make = Callable[..., Samples]


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


def test_colour_and_grey(tmp_path: Path) -> None:
    colour, grey = pixels(), pixels(channels=1)
    Image.fromarray(colour).save(tmp_path / "c.png")
    Image.fromarray(grey[..., 0]).save(tmp_path / "g.png")
    assert torch.equal(read_image(tmp_path / "c.png", 3), as_tensor(colour))
    assert torch.equal(read_image(tmp_path / "g.png", 1), as_tensor(grey))
    assert torch.equal(read_image(tmp_path / "g.png", 3), as_tensor(grey).expand(3, -1, -1))
    luma = (colour @ np.array([0.299, 0.587, 0.114])).round()
    assert np.abs(read_image(tmp_path / "c.png", 1)[0].numpy() - luma).max() <= 1


def test_exif_orientation(tmp_path: Path) -> None:
    colour = pixels()
    for orientation, turned in ((3, colour[::-1, ::-1]), (6, np.rot90(colour, -1)), (2, colour[:, ::-1])):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(colour).save(tmp_path / "e.png", exif=exif)
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
    colour = pixels()
    alpha = np.zeros((6, 9, 1), dtype=np.uint8)
    alpha[:, :4] = 255
    Image.fromarray(np.concatenate([colour, alpha], axis=2)).save(tmp_path / "a.png")
    white = np.where(alpha == 255, colour, 255)
    assert torch.equal(read_image(tmp_path / "a.png", 3), as_tensor(white))
    grey = pixels(channels=1)
    Image.fromarray(np.concatenate([grey, alpha], axis=2), mode="LA").save(tmp_path / "la.png")
    assert torch.equal(read_image(tmp_path / "la.png", 1), as_tensor(np.where(alpha == 255, grey, 255)))


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


@pytest.mark.parametrize("broken", [1, 7])
def test_all_broken_files_are_named_at_once(tmp_path: Path, photos: list[Path], broken: int) -> None:
    """Also those whose heads are whole; many of them in a list of their own."""
    whole = photos[0].read_bytes()
    bad = [tmp_path / f"bad{index}.png" for index in range(broken)]
    for index, path in enumerate(bad):
        path.write_bytes(whole[: len(whole) // 2] if index % 2 else b"no image")
    with pytest.raises(UnreadableImages) as caught:
        check_readable([*photos, *bad], 3)
    message = str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == message  # as a loader's process hands it over
    assert "\n" not in message
    assert f"{bad[0]} " in message
    assert all(str(path) not in message for path in photos)
    if broken == 1:
        return
    assert message.startswith("7 files cannot be read as images: ")
    assert f"{bad[4]} (" in message
    assert f"{bad[5]} (" not in message
    listed = Path(message.split("all are listed in ")[1].split(";")[0])
    assert listed.read_text().splitlines() == [str(path) for path in bad]
    listed.unlink()


def test_what_is_no_file_of_a_sound_image(tmp_path: Path) -> None:
    (tmp_path / "bomb.pbm").write_text("P4\n40000 40000\n")
    (tmp_path / "folder.png").mkdir()
    check_that_none_is_read(tmp_path)


def test_pipes_and_sockets_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pipe(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # a socket's path is short
        listening.bind("socket.png")
        with pytest.raises(UserError, match="no image in "):
            image_files(tmp_path)
        check_that_none_is_read(tmp_path)


def check_that_none_is_read(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        for read in (store_of, lambda files: check_readable(files, 3)):
            with pytest.raises(UserError, match=rf"{path.name} cannot be read as an image \([^\n]*$"):
                read([path])


@pytest.mark.parametrize("content", [b"", b"not an image", "torn"])
@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_unreadable_files_are_named(tmp_path: Path, photos: list[Path], content: bytes | str, cache_gb: float) -> None:
    whole = photos[0].read_bytes()
    bad = tmp_path / "bad.png"
    bad.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"bad\.png cannot be read") as caught:
        store_of([photos[0], bad], cache_gb=cache_gb).fetch([0, 1])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"missing\.png cannot be read"):
        store_of([tmp_path / "missing.png"], cache_gb=cache_gb)
