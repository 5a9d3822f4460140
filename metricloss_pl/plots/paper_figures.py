"""Figures of the losses after those of their papers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from metricloss_pl.plots._style import INK, MUTED, Array, class_colors, light_style, new_figure, pale_frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_surfaces(surfaces: Mapping[str, Array], half: float, target: tuple[float, float] = (1.0, 0.0)) -> Figure:
    """Draw losses over the plane of two features, bright where they are small, one panel per loss.

    Args:
        surfaces: Values (G, G) by name of the loss, row by row from the bottom, on a grid of [-half, half]^2.
        half: Half the side of the plane.
        target: Class embedding of the true class, marked with a star.

    Returns:
        The figure.
    """
    figure = new_figure(3.3 * len(surfaces), 3.3, "compressed")
    axes = figure.subplots(1, len(surfaces), squeeze=False)[0]
    for column, (ax, (name, values)) in enumerate(zip(axes, surfaces.items(), strict=True)):
        extent = (-half, half, -half, half)
        image = ax.imshow(values, extent=extent, origin="lower", cmap="magma_r", interpolation="bilinear")
        ax.contour(values, extent=extent, levels=8, colors="white", linewidths=0.6, alpha=0.7)
        ax.plot(*target, marker="*", markersize=13, color="white", markeredgecolor="black", linestyle="")
        ax.set_title(name, fontsize=11, color=INK)
        ax.set_xlabel("feature of the true class", fontsize=10, color=INK)
        if column == 0:
            ax.set_ylabel("feature of the other class", fontsize=10, color=INK)
        ax.locator_params(nbins=5)
        bar = figure.colorbar(image, ax=ax, shrink=0.75, aspect=22, pad=0.02)
        bar.outline.set_visible(False)
        for labeled in (ax, bar.ax):
            labeled.tick_params(labelsize=9, colors=MUTED)
        pale_frame(ax)
    return figure


def pair_weights(distances: Array, weights: Mapping[str, Array]) -> Figure:
    """Draw the weight of a pair of different classes against its distance, both logarithmic.

    Args:
        distances: (G,) Euclidean distances, positive and ascending.
        weights: Weights (G,) by name of the term: its derivative by the squared distance; 0 ends a line.

    Returns:
        The figure.
    """
    figure = new_figure(5.2, 3.7)
    ax = figure.add_subplot()
    light_style(ax)
    dashes = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
    widths = (2.4, 2.4, 4.5, 1.8)  # lines that coincide stay visible
    for k, (name, values) in enumerate(weights.items()):
        color = tuple(class_colors(10)[(0, 1, 2, 4)[k % 4]])
        look: dict[str, Any] = {"color": color, "linestyle": dashes[k % 4], "linewidth": widths[k % 4]}
        end = np.flatnonzero(values > 0)[-1] + 1
        ax.plot(distances[:end], values[:end], label=name, **look)
        if end < len(distances):
            ax.plot([distances[end - 1]] * 2, [values[end - 1], 1e-9], **look)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(distances[0], distances[-1])
    ax.set_ylim(1e-2, 1e2)
    ax.set_xlabel("distance d of a pair of different classes", fontsize=10, color=INK)
    ax.set_ylabel("weight of the pair: derivative of g by d²", fontsize=10, color=INK)
    ax.legend(frameon=False, fontsize=10, labelcolor=INK)
    return figure
