"""Figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metricloss_pl.errors import UserError
from metricloss_pl.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG.

    Args:
        figure: The figure.
        path: File to write; its folder is made.
    """
    with replacing(path) as beside:
        figure.savefig(beside, format="png", facecolor="white")


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
