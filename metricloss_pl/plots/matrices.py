"""Matrices over the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from metricloss_pl.plots._style import INK, MAX_COUNTED_CLASSES, class_ticks, colour_bar, escape, legible

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Array = NDArray[Any]


def confusion_matrix(counts: Array, class_names: Sequence[str], title: str = "", width: float | None = None) -> Figure:
    """Draws a confusion matrix: rows are the true classes, columns the predicted ones, each row's colours sum to one.

    Args:
        counts: (C, C) counts of images, [true, predicted]. They are written into the cells up to C = 20.
        class_names: Names of the C classes in label order; ticks are thinned where there are many.
        title: Title of the figure.
        width: Of the figure, in inches, which then has no colour bar; by default it grows with C and has one.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    counts = np.asarray(counts)
    num_classes = len(class_names)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = float(np.clip(3.2 + 0.42 * num_classes, 5.0, 10.5)) if width is None else width
    counted = num_classes <= (MAX_COUNTED_CLASSES if width is None else int(2.4 * width))
    figure = Figure(
        figsize=(side + (0.8 if width is None else 0), side), dpi=120, layout="compressed", facecolor="white"
    )
    ax = figure.add_subplot()
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if width is None:
        colour_bar(ax, image, "share of the true class")

    if counted:
        size = 11 if counts.max(initial=0) < 1000 and (width is None or num_classes <= width) else 8.5
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.55 else INK
            ax.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", fontsize=size, color=colour)
    class_ticks(ax, class_names)
    ax.set_xlabel("predicted class", fontsize=12, color=INK)
    ax.set_ylabel("true class", fontsize=12, color=INK)
    if title:
        ax.set_title(escape(title) if width is None else legible(title), fontsize=13, color=INK)
    if num_classes <= MAX_COUNTED_CLASSES:
        ax.set_xticks(np.arange(num_classes - 1) + 0.5, minor=True)
        ax.set_yticks(np.arange(num_classes - 1) + 0.5, minor=True)
        ax.grid(which="minor", color="#eeeeee", linewidth=0.8)
        ax.tick_params(which="minor", length=0)
    return figure


def similarity_matrix(similarities: Array, class_names: Sequence[str], title: str = "") -> Figure:
    """Draws how similar classes are to one another.

    Args:
        similarities: (C, C), in [0, 1]; in the order of a walk through their hierarchy its subtrees are squares.
        class_names: Names of the C classes in the same order; ticks are thinned where there are many.
        title: Title of the figure.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    side = float(np.clip(3.2 + 0.42 * len(class_names), 5.0, 9.0))
    figure = Figure(figsize=(side + 0.8, side), dpi=120, layout="compressed", facecolor="white")
    ax = figure.add_subplot()
    image = ax.imshow(similarities, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    colour_bar(ax, image, "similarity")
    class_ticks(ax, class_names)
    if title:
        ax.set_title(escape(title), fontsize=13, color=INK)
    return figure
