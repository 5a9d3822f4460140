"""Several variants beside one another: scores, curves, calibration, embeddings, each variant in a colour of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from metricloss_pl.plots._style import INK, MAX_LEGEND_CLASSES, PALE, class_colours, legible, light_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Curve = tuple[Array, Array]

WIDTH = 4.8  # inches of every figure here: 10 points are then legible across a phone
_MARKERS = "osD^vPX*<>"
_MAX_CLASS_ROWS = 24
_WIDEST, _FINEST = 1.5, 0.75
_LEAST_SPAN = 4  # points of accuracy; less would make much of little


class SeriesStyle(NamedTuple):
    """How one variant is drawn in every figure."""

    colour: tuple[float, float, float]
    marker: str
    scale: float = 1.0  # of lines and marks


def series_styles(variants: Sequence[str]) -> dict[str, SeriesStyle]:
    """A colour and a marker for each variant, in their order, and a scale that falls, so that equal curves nest."""
    colours, scales = class_colours(max(len(variants), 1)), np.linspace(_WIDEST, _FINEST, max(len(variants), 2))
    return {
        name: SeriesStyle(tuple(colours[k]), _MARKERS[k % len(_MARKERS)], float(scales[k]))
        for k, name in enumerate(variants)
    }


def accuracy_against_size(
    sizes: Sequence[int | None],
    series: Mapping[str, tuple[Array, Array, Array]],
    style: Mapping[str, SeriesStyle],
    name: str = "test accuracy",
) -> Figure:
    """Draws accuracy against training images a class, with bands; of one size, a mark a variant with its interval.

    Args:
        sizes: The S sizes, rising; None stands for all images.
        series: Variant to mean, low and high end, (S,) each, in [0, 1]; NaN where there is none.
        style: Looks of the variants.
        name: What is drawn, for its axis.

    Returns:
        The figure.
    """
    if len(sizes) == 1:
        return _marks_of_one_size(series, style, name)
    figure, (ax,) = _axes(3.7)
    numeric = all(size is not None for size in sizes)
    x = np.array([size if numeric else k for k, size in enumerate(sizes)], dtype=float)
    for variant, (mean, low, high) in series.items():
        colour, marker, scale = style[variant]
        known = ~np.isnan(mean)
        ax.plot(
            x[known],
            100 * mean[known],
            color=colour,
            marker=marker,
            linewidth=2 * scale,
            markersize=6 * scale,
            zorder=3,
        )
        ax.fill_between(x, 100 * low, 100 * high, color=colour, alpha=0.16, linewidth=0, zorder=2)
    if numeric:
        ax.set_xscale("log")
    _widen(ax, "y")
    ax.set_xticks(x, ["all" if size is None else str(size) for size in sizes])
    ax.minorticks_off()  # of the logarithm; y has none
    ax.set_xlabel("training images a class")
    ax.set_ylabel(f"{name}, %")
    _legend(figure, series, style)
    return figure


def _marks_of_one_size(
    series: Mapping[str, tuple[Array, Array, Array]], style: Mapping[str, SeriesStyle], name: str
) -> Figure:
    figure, (ax,) = _axes(0.9 + 0.42 * len(series))
    for row, (variant, ends) in enumerate(series.items()):
        mean, low, high = (100 * float(end[0]) for end in ends)
        colour, marker = style[variant][:2]
        ax.plot([low, high], [row, row], color=colour, linewidth=2.5, zorder=2)
        ax.plot([mean], [row], color=colour, marker=marker, markersize=8, zorder=3)
    ax.set_yticks(range(len(series)), [legible(variant) for variant in series])
    ax.set_ylim(len(series) - 0.5, -0.5)
    _widen(ax, "x")
    ax.set_xlabel(f"{name}, %")
    return figure


def learning_curves(
    curves: Mapping[str, Mapping[str, Curve]], ends: Mapping[str, float], style: Mapping[str, SeriesStyle]
) -> Figure:
    """Draws accuracy over the epochs, and below it the gap between training and what was held out.

    Args:
        curves: Variant to its curves, ``train`` and, where there is one, ``val``: epochs (E,) and accuracies (E,).
        ends: Variant to its test accuracy, drawn as a mark after the last epoch.
        style: Looks of the variants.

    Returns:
        The figure.
    """
    from matplotlib.lines import Line2D

    with_gap = any("val" in parts for parts in curves.values())
    figure, axes = _axes(4.6 if with_gap else 3.7, ratios=(2, 1) if with_gap else (1,))
    longest = max(epochs[-1] for parts in curves.values() for epochs, _ in parts.values())
    for name, parts in curves.items():
        colour, marker, scale = style[name]
        for part, dashes in (("train", (0, (4, 2))), ("val", "-")):
            if part in parts:
                epochs, accuracies = parts[part]
                axes[0].plot(epochs, 100 * accuracies, color=colour, linestyle=dashes, linewidth=1.8 * scale)
        if name in ends:
            place = longest * (1.04 + 0.03 * list(curves).index(name))
            axes[0].plot([place], [100 * ends[name]], color=colour, marker=marker, markersize=7 * scale, linestyle="")
        if "val" in parts and "train" in parts:
            epochs, accuracies = parts["val"]
            axes[1].plot(
                epochs, 100 * (np.interp(epochs, *parts["train"]) - accuracies), color=colour, linewidth=1.8 * scale
            )
    for ax in axes:
        _widen(ax, "y")
    axes[0].set_ylabel("accuracy, %")
    if with_gap:
        axes[1].set_ylabel("gap, points")
        axes[1].axhline(0, color="#999999", linewidth=1)
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    kinds: list[tuple[str, Any, str]] = [("training", (0, (4, 2)), "")]
    if with_gap:
        kinds.append(("validation", "-", ""))
    if ends:
        kinds.append(("test, at the end", "", "o"))
    extra = [
        Line2D([], [], color="#555555", linestyle=dashes, marker=marker, label=label) for label, dashes, marker in kinds
    ]
    _legend(figure, curves, style, extra)
    return figure


def accuracy_against_rate(
    points: Mapping[str, tuple[Array, Array]], style: Mapping[str, SeriesStyle], name: str = "validation accuracy"
) -> Figure:
    """Draws an accuracy against the learning rate of the trials: how much a badly chosen rate costs each.

    Args:
        points: Variant to the trials' learning rates and accuracies, (T,) each; the line joins the medians of each
            third of a decade.
        style: Looks of the variants.
        name: Of the accuracy, for the axis.

    Returns:
        The figure.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    figure, (ax,) = _axes(3.7)
    for variant, (rates, accuracies) in points.items():
        colour, marker, scale = style[variant]
        ax.plot(
            rates,
            100 * accuracies,
            color=colour,
            marker=marker,
            linestyle="",
            markersize=4 * scale,
            alpha=0.45,
            zorder=2,
        )
        bins = np.round(3 * np.log10(rates))
        places = np.unique(bins)
        middle = [(np.median(rates[bins == b]), 100 * np.median(accuracies[bins == b])) for b in places]
        ax.plot(*zip(*middle, strict=True), color=colour, linewidth=2 * scale, zorder=3)
    _widen(ax, "y")
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1,) if high > 1e3 * low else (1, 3) if high > 30 * low else (1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("learning rate")
    ax.set_ylabel(f"{name}, %")
    _legend(figure, points, style)
    return figure


def class_differences(
    differences: Mapping[str, Array], class_names: Sequence[str], baseline: str, style: Mapping[str, SeriesStyle]
) -> Figure:
    """Draws how much more of each class a variant recognises than the baseline does.

    Args:
        differences: Variant to (C,) differences in the share of the class that is recognised; NaN for a class without
            images. Of many classes the 24 are drawn that differ most.
        class_names: Names of the C classes.
        baseline: The variant that the others are compared with.
        style: Looks of the variants.

    Returns:
        The figure.
    """
    table = 100 * np.array(list(differences.values()))
    largest = np.nan_to_num(np.abs(table)).max(axis=0)
    shown = np.sort(np.argsort(-largest, kind="stable")[:_MAX_CLASS_ROWS])
    rows = shown[np.argsort(-np.nan_to_num(table[:, shown]).mean(axis=0), kind="stable")]
    figure, (ax,) = _axes(1.1 + 0.3 * len(rows))
    for name, values in zip(differences, table, strict=True):
        colour, marker, scale = style[name]
        ax.plot(
            values[rows],
            range(len(rows)),
            color=colour,
            marker=marker,
            markersize=7 * scale,
            linestyle="",
            alpha=0.9,
            zorder=3,
        )
    ax.axvline(0, color="#888888", linewidth=1.2, zorder=1)
    _widen(ax, "x")
    ax.set_yticks(range(len(rows)), [legible(class_names[row]) for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(f"minus {legible(baseline).strip()}, points")
    _legend(figure, differences, style)
    return figure


def reliability_diagram(points: Mapping[str, tuple[Array, Array]], style: Mapping[str, SeriesStyle]) -> Figure:
    """Draws the share of right predictions against the probability that was predicted; on the diagonal they agree.

    Args:
        points: Variant to mean probability and accuracy of each bin, (K,) each.
        style: Looks of the variants.

    Returns:
        The figure.
    """
    figure, (ax,) = _axes(4.4)
    ax.plot([0, 100], [0, 100], color="#888888", linewidth=1.2, linestyle=(0, (2, 2)), zorder=1)
    for name, (confidence, accuracy) in points.items():
        colour, marker, scale = style[name]
        ax.plot(
            100 * confidence,
            100 * accuracy,
            color=colour,
            marker=marker,
            linewidth=2 * scale,
            markersize=6 * scale,
            zorder=3,
        )
    low = min((100 * float(np.min(ends)) for pair in points.values() for ends in pair if len(ends)), default=0.0)
    ax.set_xlim(max(low - 5, 0), 102)
    ax.set_ylim(max(low - 5, 0), 102)
    ax.set_xlabel("predicted probability, %")
    ax.set_ylabel("right predictions, %")
    _legend(figure, points, style)
    return figure


def geometry_curves(measures: Mapping[str, Mapping[str, Curve]], style: Mapping[str, SeriesStyle]) -> Figure:
    """Draws measures of the embeddings over the epochs, one above the other.

    Args:
        measures: What is measured to variant to epochs (E,) and values (E,); a logarithmic axis where they
            are above 0 and differ much.
        style: Looks of the variants.

    Returns:
        The figure.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = _axes(0.9 + 1.75 * len(measures), ratios=(1,) * len(measures))
    for ax, (measure, curves) in zip(axes, measures.items(), strict=True):
        for name, (epochs, values) in curves.items():
            ax.plot(epochs, values, color=style[name].colour, linewidth=1.8 * style[name].scale)
        values = np.concatenate([values for _, values in curves.values()])
        if values.min() > 0 and values.max() > 10 * values.min():
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if values.max() < 100 * values.min() else (1,)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_locator(NullLocator())
        ax.set_title(measure, fontsize=10, color=INK, loc="left")
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, {name: None for curves in measures.values() for name in curves}, style, lines_only=True)
    return figure


def embedding_maps(
    panels: Mapping[str, tuple[Array, Array]],
    class_names: Sequence[str],
    columns: int = 2,
    width: float = WIDTH,
    scales: bool = False,
) -> Figure:
    """Draws embeddings in the plane, a panel each with axes of its own: the place says nothing across panels.

    Args:
        panels: Title to points (N, 2) and labels (N,).
        class_names: Names of the C classes; the legend names at most 20.
        columns: Panels side by side.
        width: Of the figure, in inches.
        scales: Whether the axes have numbers.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    named = list(class_names[:MAX_LEGEND_CLASSES])
    longest = max((len(legible(name)) for name in named), default=1)
    entries = len(named) + (len(class_names) > len(named))
    legend_columns = _columns(entries, int(width / (0.42 + 0.075 * max(longest, 4))))
    legend_rows = math.ceil(entries / legend_columns)
    side = width / columns
    figure = Figure(
        figsize=(width, rows * (side + 0.25) + 0.2 * legend_rows + 0.15),
        dpi=120, layout="constrained", facecolor="white",
    )  # fmt: skip
    colours = class_colours(len(class_names))
    for number, (title, (points, labels)) in enumerate(panels.items()):
        ax = figure.add_subplot(rows, columns, number + 1)
        order = np.random.default_rng(0).permutation(len(points))  # so that no class lies on top of the others
        size = float(np.clip(4000 / max(len(points), 1), 3, 16))
        ax.scatter(
            points[order, 0], points[order, 1], s=size, c=colours[np.asarray(labels)[order]], alpha=0.75, linewidths=0,
            rasterized=True,
        )  # fmt: skip
        ax.set_aspect("equal", adjustable="datalim")
        if scales:
            ax.locator_params(nbins=4)
            ax.tick_params(labelsize=8, colors="#555555", length=2)
        else:
            ax.set_xticks([])
            ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_edgecolor(PALE)
        ax.set_title(legible(title), fontsize=10, color=INK)
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=6, color=tuple(colours[k]), label=legible(name))
        for k, name in enumerate(named)
    ]
    if len(class_names) > len(named):
        handles.append(Line2D([], [], linestyle="", label=f"and {len(class_names) - len(named)} more"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=legend_columns, frameon=False, fontsize=9, labelcolor=INK,
        handletextpad=0.2, columnspacing=1.0, labelspacing=0.3,
    )  # fmt: skip
    return figure


def _columns(entries: int, most: int) -> int:
    """Columns of a legend, so many that its rows are even."""
    rows = math.ceil(entries / max(1, most))
    return math.ceil(entries / max(1, rows))


def _axes(height: float, ratios: Sequence[float] = (1,)) -> tuple[Figure, list[Any]]:
    """A figure of the common width with axes one above the other, on a common x axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=120, layout="constrained", facecolor="white")
    axes = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=list(ratios))[:, 0]
    for ax in axes:
        light_style(ax)
        ax.xaxis.label.set(fontsize=10, color=INK)
        ax.yaxis.label.set(fontsize=10, color=INK)
        ax.tick_params(labelcolor="#555555")
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    return figure, list(axes)


def _widen(ax: Any, which: Literal["x", "y"]) -> None:
    """Lets an axis of accuracies span so many points that next to nothing looks like it."""
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    missing = max(0.0, _LEAST_SPAN - (high - low)) / 2
    if missing:
        (ax.set_xlim if which == "x" else ax.set_ylim)(low - missing, high + missing)


def _legend(
    figure: Figure,
    variants: Mapping[str, Any],
    style: Mapping[str, SeriesStyle],
    extra: Sequence[Any] = (),
    lines_only: bool = False,
) -> None:
    """The variants above the axes, in as many columns as fit."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=style[name].colour, marker="" if lines_only else style[name].marker,
            linewidth=2 * style[name].scale, markersize=6 * style[name].scale, label=legible(name),
        )
        for name in variants
    ]  # fmt: skip
    handles += extra
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = _columns(len(handles), int(WIDTH / (0.55 + 0.078 * longest)))
    figure.set_figheight(figure.get_figheight() + 0.2 * (math.ceil(len(handles) / columns) - 1))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=10, labelcolor=INK,
        handlelength=1.8, handletextpad=0.5, columnspacing=1.2,
    )  # fmt: skip
