"""Embeddings in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from metricloss_pl.errors import check_choice
from metricloss_pl.plots._style import INK, MAX_LEGEND_CLASSES, UNKNOWN, class_colours, escape, legible, light_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Array = NDArray[Any]


def project(*parts: Array, method: Literal["pca", "tsne"] = "pca", seed: int = 0) -> list[Array]:
    """Projects several sets of embeddings into one common plane.

    PCA is fitted on the first part alone and applied to all; t-SNE, which knows no new points, is fitted on all
    parts together. Embeddings of two dimensions come back as they are, of one dimension with a zero beside it.

    Args:
        parts: Arrays (N_i, D) with one and the same D, for example training, validation, centers.
        method: "pca" or "tsne".
        seed: Seed of t-SNE's start; PCA draws nothing.

    Returns:
        One (N_i, 2) array a part.

    Raises:
        UserError: Unknown method.
    """
    check_choice("method", method, Literal["pca", "tsne"])
    arrays = [np.asarray(part, dtype=np.float64) for part in parts]
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


def align(parts: Sequence[Array], reference: Sequence[Array], onto: Sequence[Array]) -> list[Array]:
    """Turns (or mirrors) a projection so that its points come to lie nearest to an earlier projection's.

    A projection is free up to a rotation and a reflection, which jump from epoch to epoch; the orthogonal Procrustes
    solution removes the jump and changes no distance within a figure.

    Args:
        parts: Arrays (N_i, 2) to be turned, all by the same rotation.
        reference: Arrays (M_i, 2) of the points that rule the rotation, in the new projection.
        onto: The same points in the earlier projection, of the same shapes.

    Returns:
        The turned parts.
    """
    now, before = np.concatenate(list(reference)), np.concatenate(list(onto))
    u, _, vt = np.linalg.svd((now - now.mean(0)).T @ (before - before.mean(0)))
    return [np.asarray(part) @ (u @ vt) for part in parts]


def embedding_scatter(
    panels: Mapping[str, tuple[Array, Array]],
    class_names: Sequence[str],
    prototypes: Array | None = None,
    anchor_name: str = "center",
    title: str = "",
    axis_labels: tuple[str, str] = ("embedding 1", "embedding 2"),
) -> Figure:
    """Draws embeddings in the plane, coloured by class: one panel a part, side by side, on common equal axes.

    Args:
        panels: Title of each panel to its points (N, 2) and labels (N,); label -1 (unknown) is drawn in grey.
        class_names: Names of the C classes in label order; the legend, outside the axes, names at most 20.
        prototypes: Centers or class embeddings (C, 2), drawn as stars above the points in every panel.
        anchor_name: What the legend calls them.
        title: Title of the whole figure.
        axis_labels: What the two axes are.

    Returns:
        The figure.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    num_classes = len(class_names)
    colours = class_colours(num_classes)
    palette = np.vstack([colours, [to_rgb(UNKNOWN)]])  # [-1] is unknown
    longest = max(len(legible(name)) for name in [*class_names[:MAX_LEGEND_CLASSES], anchor_name])
    width = 4.1 * len(panels) + 0.6 + 0.085 * longest  # the last two for the legend, in inches
    figure = Figure(figsize=(width, 4.5), dpi=120, layout="compressed", facecolor="white")
    star_size = float(np.clip(4000 / num_classes, 20, 230))

    middle, half = _square_limits([points for points, _ in panels.values()], prototypes)
    for column, (name, (points, labels)) in enumerate(panels.items()):
        ax = figure.add_subplot(1, len(panels), column + 1)
        # In a random order no class lies on top of the others.
        order = np.random.default_rng(0).permutation(len(points))
        points, labels = np.asarray(points)[order], np.asarray(labels)[order]
        size = float(np.clip(9000 / max(len(points), 1), 5, 26))
        ax.scatter(
            points[:, 0], points[:, 1], s=size, c=palette[labels], alpha=0.75, linewidths=0, zorder=2, gid="embeddings"
        )
        if prototypes is not None:
            ax.scatter(
                prototypes[:, 0], prototypes[:, 1], s=star_size, c=colours, marker="*", edgecolors="black",
                linewidths=1.1 if num_classes <= 50 else 0.6, zorder=4, gid="prototypes",
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

    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=7, color=tuple(colours[k]), label=legible(class_names[k]))
        for k in range(min(num_classes, MAX_LEGEND_CLASSES))
    ]
    if num_classes > MAX_LEGEND_CLASSES:
        rest = num_classes - MAX_LEGEND_CLASSES
        handles.append(Line2D([], [], linestyle="", label=f"and {rest} more"))
    if prototypes is not None:
        star = Line2D([], [], linestyle="", marker="*", markersize=11, color="white", markeredgecolor="black")
        star.set_label(anchor_name)
        handles.append(star)
    figure.legend(
        handles=handles, loc="outside right center", frameon=False, labelcolor=INK, handletextpad=0.3,
        fontsize=10.5 if len(handles) <= 14 else 9, labelspacing=0.45 if len(handles) <= 14 else 0.25,
    )  # fmt: skip
    if title:
        figure.suptitle(escape(title), fontsize=13, color=INK)
    return figure


def _square_limits(parts: Sequence[Array], prototypes: Array | None) -> tuple[Array, float]:
    """Centre (2,) and half side of the smallest square around all points, with a margin."""
    arrays = [np.asarray(part) for part in parts] + ([] if prototypes is None else [np.asarray(prototypes)])
    points = np.concatenate([array.reshape(-1, 2) for array in arrays])
    if len(points) == 0:
        return np.zeros(2), 1.0
    low, high = points.min(axis=0), points.max(axis=0)
    half = 0.5 * float((high - low).max())
    return (low + high) / 2, 1.08 * half if half > 0 else 1.0
