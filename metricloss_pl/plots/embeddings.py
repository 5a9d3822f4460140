"""Embeddings in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from metricloss_pl.errors import check_choice
from metricloss_pl.plots._style import (
    INK,
    MAX_LEGEND_CLASSES,
    UNKNOWN,
    Array,
    add_legend,
    class_colors,
    class_handles,
    escape,
    legible,
    light_style,
    new_figure,
    scatter_classes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def project(*embeddings: Array, method: Literal["pca", "tsne"] = "pca", seed: int = 0) -> list[Array]:
    """Project several sets of embeddings into one common plane.

    PCA is fitted on the first set and applied to all; t-SNE, which can't be applied to new points, is fitted on all
    sets together. Embeddings of two dimensions are returned as they are, of one dimension with a zero beside it.

    Args:
        embeddings: Arrays (N_i, D) of the same D, for example training set, validation set, centers.
        method: `pca` or `tsne`.
        seed: Seed of t-SNE's start; PCA draws nothing.

    Returns:
        One (N_i, 2) array per set.

    Raises:
        UserError: Unknown method.
    """
    check_choice("method", method, Literal["pca", "tsne"])
    arrays = [np.asarray(points, dtype=np.float64) for points in embeddings]
    dim = arrays[0].shape[1]
    if dim == 2:
        return arrays
    if dim == 1:
        return [np.pad(array, ((0, 0), (0, 1))) for array in arrays]
    total = sum(map(len, arrays))
    if method == "tsne" and total > 3:
        from sklearn.manifold import TSNE

        points = TSNE(perplexity=min(30.0, (total - 1) / 3), random_state=seed).fit_transform(np.concatenate(arrays))
        return np.split(points, np.cumsum([len(array) for array in arrays])[:-1])
    from sklearn.decomposition import PCA

    if len(arrays[0]) < 2:  # one point spans no plane
        return [array[:, :2] for array in arrays]
    pca = PCA(n_components=2, svd_solver="full").fit(arrays[0])
    return [pca.transform(array) for array in arrays]


def align(projected: Sequence[Array], reference: Sequence[Array], onto: Sequence[Array]) -> list[Array]:
    """Rotate or mirror a projection onto an earlier one (orthogonal Procrustes), which keeps all distances.

    Projections are unique up to a rotation and a reflection, which would jump from epoch to epoch.

    Args:
        projected: Arrays (N_i, 2), all turned by the same rotation.
        reference: Arrays (M_i, 2) of the points that determine the rotation, in the new projection.
        onto: The same points in the earlier projection, of the same shapes.

    Returns:
        The turned arrays.
    """
    now, before = np.concatenate(list(reference)), np.concatenate(list(onto))
    u, _, vt = np.linalg.svd((now - now.mean(0)).T @ (before - before.mean(0)))
    return [np.asarray(points) @ (u @ vt) for points in projected]


def embedding_scatter(
    panels: Mapping[str, tuple[Array, Array]],
    class_names: Sequence[str],
    anchors: Array | None = None,
    anchor_name: str = "center",
    title: str = "",
    axis_labels: tuple[str, str] = ("embedding 1", "embedding 2"),
) -> Figure:
    """Draw embeddings in the plane, colored by class: panels side by side, on common equal axes.

    Args:
        panels: Points (N, 2) and labels (N,) by title; label -1 (unknown) is drawn in gray.
        class_names: Names of the C classes in label order; the legend, outside the axes, names at most 20.
        anchors: Centers or class embeddings (C, 2), drawn as stars above the points in every panel.
        anchor_name: Name of the anchors in the legend.
        title: Title of the whole figure.
        axis_labels: Names of the two axes.

    Returns:
        The figure.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.lines import Line2D

    num_classes = len(class_names)
    colors = class_colors(num_classes)
    palette = np.vstack([colors, [to_rgb(UNKNOWN)]])  # [-1] is unknown
    longest = max(len(legible(name)) for name in [*class_names[:MAX_LEGEND_CLASSES], anchor_name])
    figure = new_figure(4.1 * len(panels) + 0.6 + 0.085 * longest, 4.5, "compressed")  # with room for the legend
    middle, half = _square_limits([points for points, _ in panels.values()], anchors)
    for column, (name, (points, labels)) in enumerate(panels.items()):
        ax = figure.add_subplot(1, len(panels), column + 1)
        size = float(np.clip(9000 / max(len(points), 1), 5, 26))
        scatter_classes(ax, points, labels, palette, s=size, zorder=2, gid="embeddings")
        if anchors is not None:
            ax.scatter(
                anchors[:, 0], anchors[:, 1], s=float(np.clip(4000 / num_classes, 20, 230)), c=colors, marker="*",
                edgecolors="black", linewidths=1.1 if num_classes <= 50 else 0.6, zorder=4, gid="anchors",
            )  # fmt: skip
        ax.set_xlim(middle[0] - half, middle[0] + half)
        ax.set_ylim(middle[1] - half, middle[1] + half)
        ax.set_aspect("equal")
        ax.set_title(f"{name} ({len(points)} image{'' if len(points) == 1 else 's'})", fontsize=12, color=INK)
        ax.set_xlabel(axis_labels[0], fontsize=11, color=INK)
        if column == 0:
            ax.set_ylabel(axis_labels[1], fontsize=11, color=INK)
        ax.locator_params(nbins=6)
        light_style(ax)

    handles = class_handles(class_names)
    if anchors is not None:
        star = Line2D([], [], linestyle="", marker="*", markersize=11, color="white", markeredgecolor="black")
        star.set_label(anchor_name)
        handles.append(star)
    size, spacing = (10.5, 0.45) if len(handles) <= 14 else (9, 0.25)
    add_legend(figure, handles, loc="outside right center", fontsize=size, labelspacing=spacing)
    if title:
        figure.suptitle(escape(title), fontsize=13, color=INK)
    return figure


def _square_limits(points: Sequence[Array], anchors: Array | None) -> tuple[Array, float]:
    """Return center (2,) and half side of the smallest square around all points, with a margin."""
    arrays = [*points] if anchors is None else [*points, anchors]
    joined = np.concatenate([np.asarray(array).reshape(-1, 2) for array in arrays])
    if len(joined) == 0:
        return np.zeros(2), 1.0
    low, high = joined.min(axis=0), joined.max(axis=0)
    half = 0.5 * float((high - low).max())
    return (low + high) / 2, 1.08 * half if half > 0 else 1.0
