"""Colours, sizes and names that all figures share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

MAX_LEGEND_CLASSES = 20
MAX_COUNTED_CLASSES = 20
MAX_TICKS = 25
_MAX_NAME_LENGTH = 22
INK, PALE, UNKNOWN = "#333333", "#dddddd", "#c8c8c8"
# Ten colours that stay apart under the common colour blindnesses (Petroff 2021, arXiv:2107.02270).
_TEN_COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip


def class_colours(num_classes: int) -> Array:
    """Colours of the classes: a colour-blind-safe list up to ten, evenly spread hues in three lightnesses beyond.

    Args:
        num_classes: Number of classes C, at least 1.

    Returns:
        (C, 3) RGB in [0, 1].
    """
    from matplotlib.colors import to_rgb

    if num_classes <= len(_TEN_COLOURS):
        return np.array([to_rgb(colour) for colour in _TEN_COLOURS[:num_classes]])
    k = np.arange(num_classes)
    # Evenly spread; where the legend cannot show all, by the golden angle, so that neighbours in the list differ.
    hue = 2 * np.pi * k * (1 / num_classes if num_classes <= MAX_LEGEND_CLASSES else (5**0.5 - 1) / 2)
    lightness = np.array([0.50, 0.80, 0.65])[k % 3]
    chroma = np.array([0.16, 0.13, 0.19])[k % 3]
    return _oklch_to_rgb(lightness, chroma, hue)


def _oklch_to_rgb(lightness: Array, chroma: Array, hue: Array) -> Array:
    """OKLCH (Ottosson 2020) to sRGB in [0, 1], clipped to the gamut."""
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cube_roots = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=-1,
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(cube_roots**3 @ to_linear.T, 0, 1)
    rgb: Array = np.clip(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055), 0, 1)
    return rgb


def class_ticks(ax: Any, class_names: Sequence[str]) -> None:
    """Class names on both axes of a matrix, thinned where there are many, and a pale frame."""
    num_classes = len(class_names)
    ticks = list(range(0, num_classes, math.ceil(num_classes / MAX_TICKS)))
    names = [legible(class_names[k]) for k in ticks]
    turned = max(map(len, names)) > 2
    ax.set_xticks(
        ticks, names, rotation=45 if turned else 0, ha="right" if turned else "center", rotation_mode="anchor"
    )
    ax.set_yticks(ticks, names)
    ax.tick_params(length=0 if num_classes <= MAX_TICKS else 3, labelsize=10.5, colors=INK)
    for spine in ax.spines.values():
        spine.set_edgecolor(PALE)


def colour_bar(ax: Any, image: Any, name: str) -> None:
    """What the colours of a matrix mean, beside it."""
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, aspect=30, pad=0.02)
    bar.set_label(name, fontsize=11, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=10, colors=INK)


def light_style(ax: Any) -> None:
    """A pale frame and grid that leave the eye to the points."""
    ax.grid(color="#ececec", linewidth=0.8, zorder=0)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=10, colors="#666666")
    for spine in ax.spines.values():
        spine.set_edgecolor(PALE)


def escape(text: str) -> str:
    """Text with matplotlib's mathematics switched off; what is no Unicode becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("$", r"\$")


def legible(name: str) -> str:
    """A class name as a label: shortened in the middle, without mathematics, not hidden by a leading underscore."""
    half = _MAX_NAME_LENGTH // 2
    short = name if len(name) <= _MAX_NAME_LENGTH else f"{name[:half]}…{name[1 - half :]}"
    return escape(f" {short}" if short.startswith("_") else short)
