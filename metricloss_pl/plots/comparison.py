"""Figures that compare variants: scores, curves, calibration and embeddings, each variant in its own color."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from metricloss_pl.plots._style import (
    INK,
    MUTED,
    Array,
    SeriesStyle,
    add_legend,
    class_colors,
    class_handles,
    legible,
    light_style,
    new_figure,
    pale_frame,
    scatter_classes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = tuple[Array, Array]
Styles = Mapping[str, SeriesStyle]

WIDTH = 4.8  # inches of every figure here: 10 points are then legible on a phone
_MAX_CLASS_ROWS = 24
_LEAST_SPAN = 4  # percentage points of an accuracy's axis; less would exaggerate small differences


def accuracy_against_size(
    sizes: Sequence[int | None],
    series: Mapping[str, tuple[Array, Array, Array]],
    style: Styles,
    name: str = "test accuracy",
) -> Figure:
    """Draw accuracy against training images per class, with bands.

    Args:
        sizes: The S sizes, ascending; None stands for all images.
        series: Mean, lower and upper end per variant, (S,) each, in [0, 1]; NaN for a missing value.
        style: Styles of the variants.
        name: Name of the accuracy, for its axis.

    Returns:
        The figure.
    """
    figure, ax = _axes(3.7)
    numeric = None not in sizes
    x = np.array([size if numeric else k for k, size in enumerate(sizes)], dtype=float)
    for variant, (mean, low, high) in series.items():
        known = ~np.isnan(mean)
        ax.plot(x[known], 100 * mean[known], **style[variant].line(markers=True))
        ax.fill_between(x, 100 * low, 100 * high, color=style[variant].color, alpha=0.16, linewidth=0, zorder=2)
    if numeric:
        ax.set_xscale("log")
    _widen(ax, "y")
    ax.set_xticks(x, ["all" if size is None else str(size) for size in sizes])
    ax.minorticks_off()
    ax.set_xlabel("training images per class")
    ax.set_ylabel(f"{name}, %")
    _legend(figure, series, style)
    return figure


def learning_curves(curves: Mapping[str, Curve], ends: Mapping[str, float], style: Styles) -> Figure:
    """Draw validation accuracy over the epochs.

    Args:
        curves: Epochs (E,) and accuracies (E,) per variant.
        ends: Test accuracy per variant, drawn as a mark after the last epoch.
        style: Styles of the variants.

    Returns:
        The figure.
    """
    from matplotlib.lines import Line2D

    figure, ax = _axes(3.7)
    longest = max(epochs[-1] for epochs, _ in curves.values())
    for number, (name, (epochs, accuracies)) in enumerate(curves.items()):
        ax.plot(epochs, 100 * accuracies, **style[name].line(1.8))
        if name in ends:
            ax.plot([longest * (1.04 + 0.03 * number)], [100 * ends[name]], **style[name].points(7))
    _widen(ax, "y")
    ax.set_ylabel("accuracy, %")
    _epoch_axis(ax)
    kinds: list[tuple[str, Any, str]] = [("validation", "-", ""), ("test, at the end", "", "o")]
    extra = [
        Line2D([], [], color=MUTED, linestyle=line, marker=marker, label=label)
        for label, line, marker in kinds[: 1 + bool(ends)]
    ]
    _legend(figure, curves, style, extra)
    return figure


def accuracy_against_rate(
    points: Mapping[str, tuple[Array, Array]], style: Styles, name: str = "validation accuracy"
) -> Figure:
    """Draw the accuracies of the trials against their learning rates: the cost of a badly chosen rate.

    Args:
        points: Learning rates and accuracies of the trials per variant, (T,) each; the line joins the medians of each
            third of a decade.
        style: Styles of the variants.
        name: Name of the accuracy, for the axis.

    Returns:
        The figure.
    """
    figure, ax = _axes(3.7)
    for variant, (rates, accuracies) in points.items():
        ax.plot(rates, 100 * accuracies, alpha=0.45, **(style[variant].points(4) | {"zorder": 2}))
        bins = np.round(3 * np.log10(rates))
        chosen = [bins == place for place in np.unique(bins)]
        medians = [(np.median(rates[some]), 100 * np.median(accuracies[some])) for some in chosen]
        ax.plot(*zip(*medians, strict=True), **style[variant].line())
    _widen(ax, "y")
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    _log_ticks(ax.xaxis, (1,) if high > 1e3 * low else (1, 3) if high > 30 * low else (1, 2, 5))
    ax.set_xlabel("learning rate")
    ax.set_ylabel(f"{name}, %")
    _legend(figure, points, style)
    return figure


def class_differences(
    differences: Mapping[str, Array], class_names: Sequence[str], baseline: str, style: Styles
) -> Figure:
    """Draw the differences in recall per class between each variant and the baseline.

    Args:
        differences: Differences (C,) in recall per variant; NaN for a class without images. Of many classes, the 24
            with the largest differences are drawn.
        class_names: Names of the C classes.
        baseline: Variant that the others are compared with.
        style: Styles of the variants.

    Returns:
        The figure.
    """
    table = 100 * np.array(list(differences.values()))
    largest = np.nan_to_num(np.abs(table)).max(axis=0)
    shown = np.sort(np.argsort(-largest, kind="stable")[:_MAX_CLASS_ROWS])
    rows = shown[np.argsort(-np.nan_to_num(table[:, shown]).mean(axis=0), kind="stable")]
    figure, ax = _axes(1.1 + 0.3 * len(rows))
    for name, values in zip(differences, table, strict=True):
        ax.plot(values[rows], range(len(rows)), alpha=0.9, **style[name].points(7))
    ax.axvline(0, color="#888888", linewidth=1.2, zorder=1)
    _widen(ax, "x")
    _name_rows(ax, [class_names[row] for row in rows])
    ax.set_xlabel(f"minus {legible(baseline).strip()}, points")
    _legend(figure, differences, style)
    return figure


def reliability_diagram(points: Mapping[str, tuple[Array, Array]], style: Styles) -> Figure:
    """Draw accuracy against predicted probability, which agree on the diagonal.

    Args:
        points: Mean probability and accuracy of each bin per variant, (K,) each.
        style: Styles of the variants.

    Returns:
        The figure.
    """
    figure, ax = _axes(4.4)
    ax.plot([0, 100], [0, 100], color="#888888", linewidth=1.2, linestyle=(0, (2, 2)), zorder=1)
    for name, (confidence, accuracy) in points.items():
        ax.plot(100 * confidence, 100 * accuracy, **style[name].line(markers=True))
    low = min((100 * float(np.min(ends)) for pair in points.values() for ends in pair if len(ends)), default=0.0)
    ax.set_xlim(max(low - 5, 0), 102)
    ax.set_ylim(max(low - 5, 0), 102)
    ax.set_xlabel("predicted probability, %")
    ax.set_ylabel("accuracy, %")
    _legend(figure, points, style)
    return figure


def embedding_maps(
    panels: Mapping[str, tuple[Array, Array]],
    class_names: Sequence[str],
    columns: int = 2,
    width: float = WIDTH,
    scales: bool = False,
) -> Figure:
    """Draw embeddings in the plane, one panel each; every panel has axes of its own.

    Args:
        panels: Points (N, 2) and labels (N,) by title.
        class_names: Names of the C classes; the legend names at most 20.
        columns: Panels side by side.
        width: Width of the figure, in inches.
        scales: Whether the axes have numbers.

    Returns:
        The figure.
    """
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    handles = class_handles(class_names)
    longest = max(len(str(handle.get_label())) for handle in handles)
    legend_columns = _columns(len(handles), int(width / (0.42 + 0.075 * longest)))
    legend_rows = math.ceil(len(handles) / legend_columns)
    figure = new_figure(width, rows * (width / columns + 0.25) + 0.2 * legend_rows + 0.15)
    palette = class_colors(len(class_names))
    for number, (title, (points, labels)) in enumerate(panels.items()):
        ax = figure.add_subplot(rows, columns, number + 1)
        size = float(np.clip(4000 / max(len(points), 1), 3, 16))
        scatter_classes(ax, points, labels, palette, s=size, rasterized=True)
        ax.set_aspect("equal", adjustable="datalim")
        if scales:
            ax.locator_params(nbins=4)
            ax.tick_params(labelsize=8, colors=MUTED, length=2)
        else:
            ax.set_xticks([])
            ax.set_yticks([])
        pale_frame(ax)
        ax.set_title(legible(title), fontsize=10, color=INK)
    add_legend(
        figure, handles, loc="outside lower center", ncols=legend_columns, fontsize=9, handletextpad=0.2,
        columnspacing=1.0, labelspacing=0.3,
    )  # fmt: skip
    return figure


def _columns(entries: int, most: int) -> int:
    """Return a legend's number of columns, at most as many as fit, for rows of even length."""
    rows = math.ceil(entries / max(1, most))
    return math.ceil(entries / rows)


def _axes(height: float) -> tuple[Figure, Any]:
    """Return a figure of the common width, and its axes."""
    figure = new_figure(WIDTH, height)
    ax: Any = figure.add_subplot()
    light_style(ax)
    ax.xaxis.label.set(fontsize=10, color=INK)
    ax.yaxis.label.set(fontsize=10, color=INK)
    ax.tick_params(labelcolor=MUTED)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return figure, ax


def _name_rows(ax: Any, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), [legible(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)


def _epoch_axis(ax: Any) -> None:
    ax.set_xlabel("epoch")
    ax.xaxis.get_major_locator().set_params(integer=True)


def _log_ticks(axis: Any, subs: tuple[int, ...]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _widen(ax: Any, which: Literal["x", "y"]) -> None:
    """Widen an axis of accuracies to a least span, so that small differences look small."""
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    missing = max(0.0, _LEAST_SPAN - (high - low)) / 2
    if missing:
        (ax.set_xlim if which == "x" else ax.set_ylim)(low - missing, high + missing)


def _legend(figure: Figure, variants: Mapping[str, Any], style: Styles, extra: Sequence[Any] = ()) -> None:
    """Put the variants above the axes, in as many columns as fit."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=legible(name), **style[name].line(markers=True)) for name in variants]
    handles += extra
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = _columns(len(handles), int(WIDTH / (0.55 + 0.078 * longest)))
    figure.set_figheight(figure.get_figheight() + 0.2 * (math.ceil(len(handles) / columns) - 1))
    add_legend(
        figure, handles, loc="outside upper left", ncols=columns, handlelength=1.8, handletextpad=0.5, columnspacing=1.2
    )
