"""Colors, sizes, names and parts that all figures share."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]

MAX_LEGEND_CLASSES = 20
MAX_COUNTED_CLASSES = 20
MAX_TICKS = 25
_MAX_NAME_LENGTH = 22
INK, PALE, UNKNOWN, MUTED = "#333333", "#dddddd", "#c8c8c8", "#555555"
# Ten colors that stay apart under the common color blindnesses (Petroff 2021, arXiv:2107.02270).
_TEN_COLORS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
_MARKERS = "osD^vPX*<>"
_WIDEST, _FINEST = 1.5, 0.75


class SeriesStyle(NamedTuple):
    """Color, marker and scale of one variant in every figure."""

    color: tuple[float, float, float]
    marker: str
    scale: float = 1.0  # of lines and markers

    def line(self, width: float = 2, markers: bool = False) -> dict[str, Any]:
        """Return the keywords of a line of the variant."""
        line = {"color": self.color, "linewidth": width * self.scale, "zorder": 3}
        return line | {"marker": self.marker, "markersize": 6 * self.scale} if markers else line

    def points(self, size: float) -> dict[str, Any]:
        """Return the keywords of markers of the variant without a line."""
        return self.line(markers=True) | {"markersize": size * self.scale, "linestyle": ""}


def series_styles(variants: Sequence[str]) -> dict[str, SeriesStyle]:
    """Return a style for each variant, in order, with decreasing scales: identical curves overlap and stay visible."""
    colors, scales = class_colors(max(len(variants), 1)), np.linspace(_WIDEST, _FINEST, max(len(variants), 2))
    return {
        name: SeriesStyle(tuple(colors[k]), _MARKERS[k % len(_MARKERS)], float(scales[k]))
        for k, name in enumerate(variants)
    }


def class_colors(num_classes: int) -> Array:
    """Return colors of the classes: a color-blind-safe list up to ten, hues in three lightnesses beyond.

    Args:
        num_classes: Number of classes C, at least 1.

    Returns:
        (C, 3) RGB in [0, 1].
    """
    from matplotlib.colors import to_rgb

    if num_classes <= len(_TEN_COLORS):
        return np.array([to_rgb(color) for color in _TEN_COLORS[:num_classes]])
    # Evenly spread; by the golden angle where the legend cannot show all, so that neighbors in the list differ.
    step = 1 / num_classes if num_classes <= MAX_LEGEND_CLASSES else (5**0.5 - 1) / 2
    return np.array([colorsys.hls_to_rgb(k * step % 1, (0.35, 0.7, 0.5)[k % 3], 0.75) for k in range(num_classes)])


def new_figure(width: float, height: float, layout: str = "constrained") -> Figure:
    """Return an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout=layout, facecolor="white")  # type: ignore[arg-type]


def add_legend(figure: Figure, handles: Sequence[Any], **settings: Any) -> None:
    """Put a legend without frame outside the axes."""
    defaults: dict[str, Any] = {"frameon": False, "fontsize": 10, "labelcolor": INK, "handletextpad": 0.4}
    figure.legend(handles=handles, **{**defaults, **settings})


def class_handles(class_names: Sequence[str]) -> list[Any]:
    """Return the legend's entries of the classes, of which it names at most 20."""
    from matplotlib.lines import Line2D

    colors, rest = class_colors(len(class_names)), len(class_names) - MAX_LEGEND_CLASSES
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=6.5, color=tuple(color), label=legible(name))
        for name, color in zip(class_names[:MAX_LEGEND_CLASSES], colors, strict=False)
    ]
    return handles if rest <= 0 else [*handles, Line2D([], [], linestyle="", label=f"and {rest} more")]


def scatter_classes(ax: Any, points: Array, labels: Array, palette: Array, **settings: Any) -> None:
    """Draw points (N, 2) in the colors of their labels (N,), in random order so that no class covers the others."""
    order = np.random.default_rng(0).permutation(len(points))
    points, colors = np.asarray(points)[order], palette[np.asarray(labels)[order]]
    ax.scatter(points[:, 0], points[:, 1], c=colors, alpha=0.75, linewidths=0, **settings)


def class_ticks(ax: Any, class_names: Sequence[str]) -> None:
    """Put class names on both axes of a matrix, some of them where there are many, and a pale frame around it."""
    num_classes = len(class_names)
    ticks = list(range(0, num_classes, math.ceil(num_classes / MAX_TICKS)))
    names = [legible(class_names[k]) for k in ticks]
    turned = max(map(len, names)) > 2
    ax.set_xticks(
        ticks, names, rotation=45 if turned else 0, ha="right" if turned else "center", rotation_mode="anchor"
    )
    ax.set_yticks(ticks, names)
    ax.tick_params(length=0 if num_classes <= MAX_TICKS else 3, labelsize=10.5, colors=INK)
    pale_frame(ax)


def pale_frame(ax: Any) -> None:
    """Draw the frame of the axes in a pale color."""
    for spine in ax.spines.values():
        spine.set_edgecolor(PALE)


def light_style(ax: Any) -> None:
    """Draw a pale frame and grid that leave the eye to the points."""
    ax.grid(color="#ececec", linewidth=0.8, zorder=0)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=10, colors="#666666")
    pale_frame(ax)


def escape(text: str) -> str:
    """Return text with matplotlib's mathematics switched off; bytes that are no Unicode become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("$", r"\$")


def legible(name: str) -> str:
    """Return a class name as a label: shortened in the middle, escaped, not hidden by a leading underscore."""
    half = _MAX_NAME_LENGTH // 2
    short = name if len(name) <= _MAX_NAME_LENGTH else f"{name[:half]}…{name[1 - half :]}"
    return escape(f" {short}" if short.startswith("_") else short)
