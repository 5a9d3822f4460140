"""Matrices over the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from metricloss_pl.plots._style import INK, MAX_COUNTED_CLASSES, Array, class_ticks, escape, legible, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_matrix(counts: Array, class_names: Sequence[str], title: str = "", width: float | None = None) -> Figure:
    """Draw a confusion matrix: rows are true classes, columns predicted ones; the colors of each row sum to one.

    Args:
        counts: (C, C) counts of images, [true, predicted]. They are written into the cells up to C = 20.
        class_names: Names of the C classes in label order; some of them are shown where there are many.
        title: Title of the figure.
        width: Width in inches of a figure without color bar; None: a width that grows with C, and a color bar.

    Returns:
        The figure.
    """
    counts = np.asarray(counts)
    num_classes = len(class_names)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    if width is None:
        side, counted, size = float(np.clip(3.2 + 0.42 * num_classes, 5.0, 10.5)), MAX_COUNTED_CLASSES, 11.0
        figure, ax = _matrix(shares, side, "share of the true class")
    else:
        counted, size = int(2.4 * width), 11.0 if num_classes <= width else 8.5
        figure, ax = _matrix(shares, width)
    if num_classes <= counted:
        size = size if counts.max(initial=0) < 1000 else 8.5
        for row, column in np.argwhere(counts > 0):
            color = "white" if shares[row, column] > 0.55 else INK
            ax.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", fontsize=size, color=color)
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
    """Draw the similarities between classes.

    Args:
        similarities: (C, C), in [0, 1]; in depth-first order of a hierarchy its subtrees are squares.
        class_names: Names of the C classes in the same order; some of them are shown where there are many.
        title: Title of the figure.

    Returns:
        The figure.
    """
    figure, ax = _matrix(similarities, float(np.clip(3.2 + 0.42 * len(class_names), 5.0, 9.0)), "similarity")
    class_ticks(ax, class_names)
    if title:
        ax.set_title(escape(title), fontsize=13, color=INK)
    return figure


def _matrix(values: Array, side: float, bar_label: str | None = None) -> tuple[Figure, Any]:
    """Return a figure of a matrix in [0, 1] and its axes, with a color bar if that has a label."""
    figure = new_figure(side if bar_label is None else side + 0.8, side, "compressed")
    ax = figure.add_subplot()
    image = ax.imshow(values, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if bar_label is not None:
        bar = figure.colorbar(image, ax=ax, shrink=0.8, aspect=30, pad=0.02)
        bar.set_label(bar_label, fontsize=11, color=INK)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=10, colors=INK)
    return figure, ax
