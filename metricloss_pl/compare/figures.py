"""Figures of the report: arrays from a summary, drawn by `metricloss_pl.plots`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metricloss_pl import plots
from metricloss_pl.compare.saliency import grad_cam, overlay
from metricloss_pl.compare.summary import Summary, at_size, rows
from metricloss_pl.data import thumbnails
from metricloss_pl.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "disagreements", "draw", "shown_size", "with_results"]

Array = NDArray[Any]

_MAX_CONFUSION_CLASSES = 30
_MAX_POINTS = 1500
_LEAST_BIN = 10  # images; the accuracy of fewer says little
_DISAGREEMENTS = 12
_SALIENCY_MAPS = 4


@dataclass(frozen=True)
class Picture:
    """Image of the report.

    Args:
        section: Section of the report; the templates hold its caption and alternative text.
        file: File name in the folder of figures.
        content: Content of the file.
        values: Values of the caption and of the alternative text.
    """

    section: str
    file: str
    content: bytes
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def mime(self) -> str:
        """Media type of the file."""
        return "image/svg+xml" if self.file.endswith(".svg") else "image/jpeg"


def draw(summary: Summary) -> dict[str, list[Picture]]:
    """Return all figures that the results suffice for, by section."""
    styles = plots.series_styles(summary.variants)
    found: dict[str, list[Picture]] = {}
    for section, figure, values in _figures(summary, styles):
        several = len(found.setdefault(section, []))
        file = f"{section}-{several}.svg" if several else f"{section}.svg"
        found[section].append(Picture(section, file, plots.figure_bytes(figure, "svg"), values))
    found["disagreements"] = list(_thumbnails(summary))
    found["saliency"] = list(_saliency_maps(summary))
    return {section: pictures for section, pictures in found.items() if pictures}


def _figures(summary: Summary, styles: Any) -> Iterator[tuple[str, Figure, dict[str, Any]]]:
    size, metric = shown_size(summary), summary.metric.replace("_", " ")
    if len(summary.sizes) > 1 and (series := accuracies(summary)):
        yield "sizes", plots.accuracy_against_size(summary.sizes, series, styles, f"test {metric}"), {}
    curves, ends = learning_curves(summary, size)
    if curves:
        yield "history", plots.learning_curves(curves, ends, styles), {"variants": list(curves)}
    if trials := learning_rates(summary):
        yield "tuning", plots.accuracy_against_rate(trials, styles, f"validation {metric}"), {"variants": list(trials)}
    names, baseline = summary.class_names, summary.baseline
    recall = recalls(summary, size)
    if baseline in recall and len(recall) > 1:
        differences = {name: own - recall[baseline] for name, own in recall.items() if name != baseline}
        yield "classes", plots.class_differences(differences, names, baseline, styles), {"variants": list(differences)}
    if len(names) <= _MAX_CONFUSION_CLASSES:
        for variant in recall:
            rates = 100 * summary.confusion(variant, size)
            matrix = plots.confusion_matrix(np.round(rates), names, variant, width=plots.WIDTH)
            yield "confusion", matrix, {"variant": variant, **largest_confusion(rates, names)}
    if bins := reliability(summary, size):
        yield "calibration", plots.reliability_diagram(bins, styles), {"variants": list(bins), "least": _LEAST_BIN}
    if maps := embeddings(summary, size):
        yield "embeddings", plots.embedding_maps(maps, names), {"variants": list(maps)}


def shown_size(summary: Summary) -> int | None:
    """Return the largest training-set size that has results, which the figures of one size show."""
    sizes = [row["size"] for row in rows(summary.table, summary.variants)]
    return sizes[-1] if sizes else summary.sizes[-1]


def accuracies(summary: Summary) -> dict[str, tuple[Array, Array, Array]]:
    """Return mean metric and ends of its interval (S,) over the sizes, per variant that is no trivial baseline."""
    series = {}
    for variant in summary.trained:  # of which the table has one row per size
        own = summary.table.loc[summary.table["variant"] == variant, [summary.metric, "low", "high"]].to_numpy(float)
        if not np.isnan(own[:, 0]).all():
            series[variant] = (own[:, 0], own[:, 1], own[:, 2])
    return series


def learning_curves(summary: Summary, size: int | None) -> tuple[dict[str, tuple[Array, Array]], dict[str, float]]:
    """Return epochs and validation accuracies, and the test accuracy, per variant."""
    curves, ends = {}, {}
    for row in rows(at_size(summary.table, size), summary.trained):
        curve = summary.validation_curve(row["variant"], size)
        if len(curve) > 1:
            curves[row["variant"]] = (curve.index.to_numpy(), curve.to_numpy())
            ends[row["variant"]] = row["accuracy"]
    return curves, ends


def learning_rates(summary: Summary) -> dict[str, tuple[Array, Array]]:
    """Return learning rates and scores of the trials, per variant that tunes its learning rate."""
    found: dict[str, list[tuple[float, float]]] = {}
    for search in summary.searches:
        space = summary.plan["variants"][search.variant]["space"]
        name = next((name for name in space if name.rpartition(".")[2] == "lr" and "center" not in name), None)
        tried = [(float(run["settings"][name]), score) for score, run in search.trials if name is not None]
        found.setdefault(search.variant, []).extend(tried)
    return {
        variant: (np.array(sorted(found[variant]))[:, 0], np.array(sorted(found[variant]))[:, 1])
        for variant in summary.variants
        if found.get(variant)
    }


def with_results(summary: Summary, size: int | None) -> list[str]:
    """Return the variants that have results at a size, without trivial baselines."""
    return [row["variant"] for row in rows(at_size(summary.table, size), summary.trained)]


def recalls(summary: Summary, size: int | None) -> dict[str, Array]:
    """Return the recall of each class (C,), per variant."""
    return {
        variant: summary.per_class(variant, size)["recall"].to_numpy(float) for variant in with_results(summary, size)
    }


def largest_confusion(rates: Array, class_names: list[str]) -> dict[str, Any]:
    """Return the two classes, and the rate, of the most frequent confusion of a matrix (C, C)."""
    off = np.nan_to_num(rates * (1 - np.eye(len(rates))))
    true, predicted = np.unravel_index(off.argmax(), off.shape)
    return {"true": class_names[true], "predicted": class_names[predicted], "rate": float(off[true, predicted]) / 100}


def reliability(summary: Summary, size: int | None) -> dict[str, tuple[Array, Array]]:
    """Return mean predicted probability and accuracy of each bin that has enough images, per variant."""
    found = {}
    for variant in with_results(summary, size):
        calibration = summary.calibration(variant, size)
        if calibration is None:
            continue
        full = calibration.bins[calibration.bins["n"] >= _LEAST_BIN]
        found[variant] = (full["confidence"].to_numpy(float), full["accuracy"].to_numpy(float))
    return found


def embeddings(summary: Summary, size: int | None) -> dict[str, tuple[Array, Array]]:
    """Return points (N, 2) in the plane and labels (N,) of the test images of one run, per variant."""
    maps = {}
    for variant in with_results(summary, size):
        for run in summary.final_results(variant, size):
            found = summary.store.predictions(run["key"])
            if variant not in maps and found.embeddings is not None and np.isfinite(found.embeddings).all():
                drawn = np.sort(np.random.default_rng(0).permutation(len(found.labels))[:_MAX_POINTS])
                points = plots.project(found.embeddings.astype(np.float64))[0]
                maps[variant] = (points[drawn], found.labels[drawn])
    return maps


def disagreements(summary: Summary) -> list[dict[str, Any]]:
    """Return the images on which the variants differ most, as `Summary.disagreements` does."""
    return summary.disagreements(shown_size(summary), _DISAGREEMENTS)


def _thumbnails(summary: Summary) -> Iterator[Picture]:
    for number, image in enumerate(disagreements(summary)):
        content = thumbnail(summary.plan["data"]["root"], image["name"])
        if content is not None:
            yield Picture("disagreements", f"disagreement-{number}.jpg", content, image)


def _saliency_maps(summary: Summary) -> Iterator[Picture]:
    """Yield Grad-CAM of the kept network on images of the disagreements, where images and network are at hand."""
    root, run = summary.plan["data"]["root"], summary.best_run
    shown = [image for image in disagreements(summary) if thumbnail(root, image["name"])][:_SALIENCY_MAPS]
    if run is None or summary.plan["variants"][run["variant"]]["config"] is None or not shown:
        return
    from metricloss_pl.regimes.loading import load

    try:
        model = load(summary.store.folder / run["checkpoint"])
        found = grad_cam(model, [Path(root, image["name"]) for image in shown])
    except UserError:
        return  # the checkpoint is gone, or of a class that only its own config may name
    for number, (image, (predicted, pixels, heat)) in enumerate(zip(shown, found, strict=False)):
        pair = np.concatenate([np.round(255 * pixels).astype(np.uint8), overlay(pixels, heat)], axis=1)
        values = {"name": image["name"], "label": image["label"], "predicted": predicted, "variant": run["variant"]}
        yield Picture("saliency", f"saliency-{number}.jpg", thumbnails.encode_jpeg(pair), values)


def thumbnail(root: Any, name: str) -> bytes | None:
    """Return a small JPEG of an image file in the data's folder; None where the name is no such file."""
    try:
        file = Path(os.path.normpath(Path(root, name)))
        inside = file.is_relative_to(os.path.normpath(root)) and file.is_file()
    except (OSError, TypeError, ValueError):  # no folder, or a name that no file can have
        return None
    return thumbnails.thumbnail(file) if inside else None
