"""Pure functions from arrays to matplotlib figures.

They use matplotlib's object interface alone: no display, no global state, nothing to close. matplotlib, scikit-learn
and Pillow are imported at the first use, so that importing this module costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from metricloss_pl.errors import UserError
from metricloss_pl.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Array = NDArray[Any]

MAX_LEGEND_CLASSES = 20
MAX_COUNTED_CLASSES = 20
MAX_TICKS = 25
_MAX_NAME_LENGTH = 22
_INK, _PALE, _UNKNOWN = "#333333", "#dddddd", "#c8c8c8"
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
    if num_classes <= len(_TEN_COLOURS):
        return np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in _TEN_COLOURS[:num_classes]])
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
    if method not in ("pca", "tsne"):
        raise UserError(f"unknown projection {method!r}: it must be 'pca' or 'tsne'")
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
    prototype_name: str = "center",
    title: str = "",
    axis_labels: tuple[str, str] = ("embedding 1", "embedding 2"),
) -> Figure:
    """Draws embeddings in the plane, coloured by class: one panel a part, side by side, on common equal axes.

    Args:
        panels: Title of each panel to its points (N, 2) and labels (N,); label -1 (unknown) is drawn in grey.
        class_names: Names of the C classes in label order; the legend, outside the axes, names at most 20.
        prototypes: Centers or class embeddings (C, 2), drawn as stars above the points in every panel.
        prototype_name: What the legend calls them.
        title: Title of the whole figure.
        axis_labels: What the two axes are.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    num_classes = len(class_names)
    colours = class_colours(num_classes)
    palette = np.vstack([colours, [[int(_UNKNOWN[i : i + 2], 16) / 255 for i in (1, 3, 5)]]])  # [-1] is unknown
    longest = max(len(_legible(name)) for name in [*class_names[:MAX_LEGEND_CLASSES], prototype_name])
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
        ax.set_title(f"{name} ({len(points)} image{'' if len(points) == 1 else 's'})", fontsize=12, color=_INK)
        ax.set_xlabel(axis_labels[0], fontsize=11, color=_INK)
        if column == 0:
            ax.set_ylabel(axis_labels[1], fontsize=11, color=_INK)
        ax.locator_params(nbins=6)
        _light_style(ax)

    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=7, color=tuple(colours[k]), label=_legible(class_names[k]))
        for k in range(min(num_classes, MAX_LEGEND_CLASSES))
    ]
    if num_classes > MAX_LEGEND_CLASSES:
        rest = num_classes - MAX_LEGEND_CLASSES
        handles.append(Line2D([], [], linestyle="", label=f"and {rest} more"))
    if prototypes is not None:
        star = Line2D([], [], linestyle="", marker="*", markersize=11, color="white", markeredgecolor="black")
        star.set_label(prototype_name)
        handles.append(star)
    figure.legend(
        handles=handles, loc="outside right center", frameon=False, labelcolor=_INK, handletextpad=0.3,
        fontsize=10.5 if len(handles) <= 14 else 9, labelspacing=0.45 if len(handles) <= 14 else 0.25,
    )  # fmt: skip
    if title:
        figure.suptitle(_escape(title), fontsize=13, color=_INK)
    return figure


def confusion_matrix(counts: Array, class_names: Sequence[str], title: str = "") -> Figure:
    """Draws a confusion matrix: rows are the true classes, columns the predicted ones, each row's colours sum to one.

    Args:
        counts: (C, C) counts of images, [true, predicted]. They are written into the cells up to C = 20.
        class_names: Names of the C classes in label order; ticks are thinned where there are many.
        title: Title of the figure.

    Returns:
        The figure.
    """
    from matplotlib.figure import Figure

    counts = np.asarray(counts)
    num_classes = len(class_names)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = float(np.clip(3.2 + 0.42 * num_classes, 5.0, 10.5))
    figure = Figure(figsize=(side + 0.8, side), dpi=120, layout="compressed", facecolor="white")
    ax = figure.add_subplot()
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    bar = figure.colorbar(image, ax=ax, shrink=0.8, aspect=30, pad=0.02)
    bar.set_label("share of the true class", fontsize=11, color=_INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=10, colors=_INK)

    if num_classes <= MAX_COUNTED_CLASSES:
        size = 11 if counts.max(initial=0) < 1000 else 8.5
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.55 else _INK
            ax.text(column, row, f"{int(counts[row, column])}", ha="center", va="center", fontsize=size, color=colour)
    _class_ticks(ax, class_names)
    ax.set_xlabel("predicted class", fontsize=12, color=_INK)
    ax.set_ylabel("true class", fontsize=12, color=_INK)
    if title:
        ax.set_title(_escape(title), fontsize=13, color=_INK)
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
    bar = figure.colorbar(image, ax=ax, shrink=0.8, aspect=30, pad=0.02)
    bar.set_label("similarity", fontsize=11, color=_INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=10, colors=_INK)
    _class_ticks(ax, class_names)
    if title:
        ax.set_title(_escape(title), fontsize=13, color=_INK)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG.

    Args:
        figure: The figure.
        path: File to write; its folder is made.
    """
    with replacing(path) as beside:
        figure.savefig(beside, format="png", facecolor="white")


def save_gif(frames: Sequence[Path], path: Path, seconds_per_frame: float = 0.4) -> None:
    """Joins pictures to one endless animated GIF, the last picture held five times as long.

    Args:
        frames: Picture files in their order, at least one; all are brought to the size of the last.
        path: File to write; its folder is made.
        seconds_per_frame: How long a picture stands, in seconds.

    Raises:
        UserError: No frames.
    """
    from PIL import Image

    if not frames:
        raise UserError(f"no pictures to join in {path}: at least one is needed")
    pictures: list[Image.Image] = []
    for frame in reversed(frames):
        with Image.open(frame) as opened:
            picture = opened.convert("RGB")
        if pictures and picture.size != pictures[0].size:
            picture = picture.resize(pictures[0].size)
        pictures.append(picture)
    # One palette for all pictures, taken from some of them side by side; with one for each, colours would flicker.
    some = [pictures[round(k * (len(pictures) - 1) / 5)] for k in range(6)]
    sheet = Image.new("RGB", (6 * some[0].width, some[0].height))
    for k, picture in enumerate(some):
        sheet.paste(picture, (k * picture.width, 0))
    palette = sheet.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    first, *rest = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in reversed(pictures)]
    milliseconds = round(1000 * seconds_per_frame)
    durations = [milliseconds] * len(rest) + [5 * milliseconds]
    with replacing(path) as beside:
        first.save(beside, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def _square_limits(parts: Sequence[Array], prototypes: Array | None) -> tuple[Array, float]:
    """Centre (2,) and half side of the smallest square around all points, with a margin."""
    arrays = [np.asarray(part) for part in parts] + ([] if prototypes is None else [np.asarray(prototypes)])
    points = np.concatenate([array.reshape(-1, 2) for array in arrays])
    if len(points) == 0:
        return np.zeros(2), 1.0
    low, high = points.min(axis=0), points.max(axis=0)
    half = 0.5 * float((high - low).max())
    return (low + high) / 2, 1.08 * half if half > 0 else 1.0


def _class_ticks(ax: Any, class_names: Sequence[str]) -> None:
    """Class names on both axes of a matrix, thinned where there are many, and a pale frame."""
    num_classes = len(class_names)
    ticks = list(range(0, num_classes, math.ceil(num_classes / MAX_TICKS)))
    names = [_legible(class_names[k]) for k in ticks]
    turned = max(map(len, names)) > 2
    ax.set_xticks(
        ticks, names, rotation=45 if turned else 0, ha="right" if turned else "center", rotation_mode="anchor"
    )
    ax.set_yticks(ticks, names)
    ax.tick_params(length=0 if num_classes <= MAX_TICKS else 3, labelsize=10.5, colors=_INK)
    for spine in ax.spines.values():
        spine.set_edgecolor(_PALE)


def _light_style(ax: Any) -> None:
    """A pale frame and grid that leave the eye to the points."""
    ax.grid(color="#ececec", linewidth=0.8, zorder=0)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=10, colors="#666666")
    for spine in ax.spines.values():
        spine.set_edgecolor(_PALE)


def _escape(text: str) -> str:
    """Text with matplotlib's mathematics switched off."""
    return text.replace("$", r"\$")


def _legible(name: str) -> str:
    """A class name as a label: shortened in the middle, without mathematics, not hidden by a leading underscore."""
    half = _MAX_NAME_LENGTH // 2
    short = name if len(name) <= _MAX_NAME_LENGTH else f"{name[:half]}…{name[1 - half :]}"
    return _escape(f" {short}" if short.startswith("_") else short)
