"""Figures as files."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metricloss_pl.errors import UserError
from metricloss_pl.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_FORMATS = ("png", "svg", "pdf")
_NO_XML = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|\xef\xbf[\xbe\xbf]")  # characters that no XML may hold


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, SVG or PDF, by the file's ending.

    Args:
        figure: The figure.
        path: File to write; its folder is made.

    Raises:
        UserError: Another ending.
    """
    ending = path.suffix.lstrip(".").lower()
    if ending not in _FORMATS:
        raise UserError(f"{path} is no file to write a figure to: it must end in .png, .svg or .pdf")
    content = figure_bytes(figure, ending)
    with replacing(path) as beside:
        beside.write_bytes(content)


def figure_bytes(figure: Figure, format: str) -> bytes:
    """A figure as the content of a file; of the same figure always the same.

    Args:
        figure: The figure.
        format: Of the file: png, svg or pdf.
    """
    import matplotlib

    stream = io.BytesIO()
    undated = {"Date": None} if format == "svg" else None
    # What matplotlib's own font can't draw, such as Chinese, is left as text: a browser has fonts for it.
    letters = "path" if _is_drawable(figure) else "none"
    with (
        matplotlib.rc_context({"svg.hashsalt": "metricloss_pl", "svg.fonttype": letters}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(stream, format=format, facecolor="white", metadata=undated)
    return _NO_XML.sub(b"", stream.getvalue()) if format == "svg" else stream.getvalue()


def _is_drawable(figure: Figure) -> bool:
    """Whether the font of the figures has all its letters."""
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.text import Text

    font = get_font(findfont(FontProperties()))
    letters = {letter for text in figure.findobj(Text) for letter in text.get_text() if letter.isprintable()}
    return all(font.get_char_index(ord(letter)) for letter in letters)


def save_gif(frames: Sequence[Path], path: Path, seconds_per_frame: float = 0.4) -> None:
    """Joins pictures to one endless animated GIF, the last picture held five times as long.

    Args:
        frames: Picture files in their order, at least one; all are brought to the size of the last.
        path: File to write; its folder is made.
        seconds_per_frame: How long a picture stands, in seconds.

    Raises:
        UserError: No frames.
    """
    from PIL import Image

    if not frames:
        raise UserError(f"no pictures to join in {path}: at least one is needed")
    pictures: list[Image.Image] = []
    for frame in reversed(frames):
        with Image.open(frame) as opened:
            picture = opened.convert("RGB")
        if pictures and picture.size != pictures[0].size:
            picture = picture.resize(pictures[0].size)
        pictures.append(picture)
    # One palette for all pictures, taken from some of them side by side; with one for each, colours would flicker.
    some = [pictures[round(k * (len(pictures) - 1) / 5)] for k in range(6)]
    sheet = Image.new("RGB", (6 * some[0].width, some[0].height))
    for k, picture in enumerate(some):
        sheet.paste(picture, (k * picture.width, 0))
    palette = sheet.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    first, *rest = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in reversed(pictures)]
    milliseconds = round(1000 * seconds_per_frame)
    durations = [milliseconds] * len(rest) + [5 * milliseconds]
    with replacing(path) as beside:
        first.save(beside, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)
