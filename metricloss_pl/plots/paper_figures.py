"""The figures that the losses' sources explain themselves with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from metricloss_pl.plots._style import INK, PALE, class_colours, light_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Array = NDArray[Any]


def loss_surfaces(surfaces: Mapping[str, Array], half: float, target: tuple[float, float] = (1.0, 0.0)) -> Figure:
    """Draws losses over the plane of two features, bright where they are small, one panel a loss.

    Args:
        surfaces: Name of the loss to its values (G, G), row by row from the bottom, on a grid of [-half, half]^2.
        half: Half the side of the plane.
        target: The class embedding of the true class, marked with a star.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.3 * len(surfaces), 3.3), dpi=120, layout="compressed", facecolor="white")
    axes = figure.subplots(1, len(surfaces), squeeze=False)[0]
    for column, (ax, (name, values)) in enumerate(zip(axes, surfaces.items(), strict=True)):
        image = ax.imshow(
            values, extent=(-half, half, -half, half), origin="lower", cmap="magma_r", interpolation="bilinear"
        )
        ax.contour(
            np.linspace(-half, half, values.shape[1]), np.linspace(-half, half, values.shape[0]), values,
            levels=8, colors="white", linewidths=0.6, alpha=0.7,
        )  # fmt: skip
        ax.plot(target[0], target[1], marker="*", markersize=13, color="white", markeredgecolor="black", linestyle="")
        ax.set_title(name, fontsize=11, color=INK)
        ax.set_xlabel("feature of the true class", fontsize=10, color=INK)
        if column == 0:
            ax.set_ylabel("feature of the other class", fontsize=10, color=INK)
        ax.locator_params(nbins=5)
        ax.tick_params(labelsize=9, colors="#555555")
        bar = figure.colorbar(image, ax=ax, shrink=0.75, aspect=22, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=9, colors="#555555")
        for spine in ax.spines.values():
            spine.set_edgecolor(PALE)
    return figure


def pair_weights(distances: Array, weights: Mapping[str, Array]) -> Figure:
    """Draws how much two embeddings of different classes push each other, against their distance, both logarithmic.

    Args:
        distances: (G,) Euclidean distances, above 0 and rising.
        weights: Name of the term to (G,) weights: its derivative by the squared distance; 0 ends a line.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.7), dpi=120, layout="constrained", facecolor="white")
    ax = figure.add_subplot()
    light_style(ax)
    styles = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
    widths = (2.4, 2.4, 4.5, 1.8)  # lines that coincide stay visible
    for k, (name, values) in enumerate(weights.items()):
        pushing = np.where(values > 0, values, np.nan)
        colour = tuple(class_colours(10)[(0, 1, 2, 4)[k % 4]])
        ax.plot(distances, pushing, color=colour, linestyle=styles[k % 4], linewidth=widths[k % 4], label=name)
        last = np.flatnonzero(values > 0)[-1]
        if last + 1 < len(distances):
            ax.plot(
                [distances[last]] * 2,
                [values[last], 1e-9],
                color=colour,
                linestyle=styles[k % 4],
                linewidth=widths[k % 4],
            )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(distances[0], distances[-1])
    ax.set_ylim(1e-2, 1e2)
    ax.set_xlabel("distance d of a pair of different classes", fontsize=10, color=INK)
    ax.set_ylabel("weight of the pair: derivative of g by d²", fontsize=10, color=INK)
    ax.legend(frameon=False, fontsize=10, labelcolor=INK)
    return figure
