"""The figures of a report, drawn from stored results."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metricloss_pl import plots
from metricloss_pl.compare import statistics
from metricloss_pl.compare.document import Block, Heading, Image, Picture, Table, TableRow
from metricloss_pl.compare.results import is_number
from metricloss_pl.compare.summary import Findings, Prediction, metric_of
from metricloss_pl.compare.tuning import best_trial
from metricloss_pl.compare.words import Size, at_size, listed, mean_and_spread, named, percent, tail
from metricloss_pl.errors import reason

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["Pictures", "embedding_panels"]

_MAX_CONFUSION_CLASSES = 30
_MAX_POINTS = 1500
_LEAST_BIN = 10  # images; the share of right ones among fewer says little
_DISAGREEMENTS = 12
_THUMBNAIL = 160  # px
_GEOMETRY = {
    "intra_variance": "variance within the classes",
    "mean_distance": "mean distance between class means",
    "intra_inter_ratio": "spread within over distance between",
}


class Pictures:
    """The figures with their headings and captions; of several sizes most show the largest that has results.

    Args:
        comparison: The results.
        mark: What stands before each caption, such as that results are missing.
    """

    def __init__(self, comparison: Findings, mark: str) -> None:
        self.comparison = comparison
        self.mark = mark
        self.style = plots.series_styles(comparison.variants)
        self.several = len(comparison.sizes) > 1
        seen = [size for size in comparison.sizes if any(comparison.finals_of(v, size) for v in comparison.variants)]
        self.size: Size = (seen or comparison.sizes)[-1]
        self.at = at_size(self.size)

    def blocks(self) -> list[Block]:
        """All that the results suffice for."""
        return [
            *self.accuracy(),
            *self.curves(),
            *self.learning_rates(),
            *self.classes(),
            *self.calibration(),
            *self.geometry(),
            *self.embeddings(),
            *self.disagreements(),
        ]

    def colour(self, variant: str) -> str:
        """A variant's colour, as in all figures."""
        return "#" + "".join(f"{round(255 * part):02x}" for part in self.style[variant].color)

    def accuracy(self) -> list[Block]:
        """Accuracy against training images a class."""
        unknown = (math.nan, math.nan, math.nan)
        series = {}
        for variant in self.comparison.variants:
            found = [row.accuracy for row in self.comparison.rows if row.variant == variant]
            if any(found):
                ends = [unknown if own is None else (own.mean, own.low, own.high) for own in found]
                mean, low, high = np.array(ends, dtype=float).T
                series[variant] = (mean, low, high)
        if not series:
            return []
        where = "against training images a class" if self.several else self.at
        name = "Balanced test accuracy" if self.comparison.balanced else "Test accuracy"
        means = "; ".join(f"{name} {', '.join(map(percent, mean))}" for name, (mean, _, _) in series.items())
        return [
            Heading("Accuracy against training images" if self.several else "Accuracy", "accuracy"),
            self._picture(
                "accuracy",
                plots.accuracy_against_size(self.comparison.sizes, series, self.style, name.lower()),
                f"{name} {where}, in %: {means}.",
                f"{name} {where}; the {'band' if self.several else 'line'} is the 95 % interval.",
            ),
        ]

    def curves(self) -> list[Block]:
        """Learning curves with the gap between training and what was held out."""
        curves, ends, of_trials = {}, {}, False
        for variant in self.comparison.variants:
            runs = self._runs(variant)
            parts = {part: _history(runs, f"{part}/accuracy") for part in ("train", "val")}
            if not len(parts["val"][0]) and (trial := self._best_trial(variant)):
                parts = {part: _history([trial], f"{part}/accuracy") for part in ("train", "val")}
                of_trials = True
            known = {part: line for part, line in parts.items() if len(line[0])}
            if known:
                curves[variant] = known
                tests = [value for run in runs if (value := metric_of(run, "test/accuracy")) is not None]
                if tests:
                    ends[variant] = float(np.mean(tests))
        if not curves:
            return []
        whose = "mean of the final runs"
        if of_trials:
            whose = "of the best trial, since final runs keep no validation images; the marks are the final runs' mean"
        gap = " Below: training minus validation accuracy." if any("val" in parts for parts in curves.values()) else ""
        return [
            Heading("Learning curves", "curves"),
            self._picture(
                "curves",
                plots.learning_curves(curves, ends, self.style),
                f"Accuracy over the epochs of {listed(list(curves))}.",
                f"Accuracy over the epochs {self.at}, {whose}.{gap} Of curves that are equal only one is seen.",
            ),
        ]

    def learning_rates(self) -> list[Block]:
        """Accuracy against the learning rate of the trials."""
        trials: dict[str, list[tuple[float, float]]] = {}
        metric = f"val/{self.comparison.chosen_by}"
        for run in self.comparison.trials:
            rate = _learning_rate(run.get("settings") or {})
            accuracies = (run.get("history") or {}).get(metric) or [None]  # of a pruned one as far as it came
            accuracy = (run.get("metrics") or {}).get(metric, accuracies[-1])
            if rate is not None and accuracy is not None:
                trials.setdefault(run["variant"], []).append((rate, accuracy))
        if not trials:
            return []
        name = "Balanced validation accuracy" if self.comparison.balanced else "Validation accuracy"
        columns = {}
        for variant in self.comparison.variants:
            if variant in trials:
                rates, accuracies = np.array(sorted(trials[variant]), dtype=float).T
                columns[variant] = (rates, accuracies)
        return [
            Heading("Accuracy against learning rate", "learning-rate"),
            self._picture(
                "learning_rate",
                plots.accuracy_against_rate(columns, self.style, name.lower()),
                f"{name} of the trials of {listed(list(columns))} against their learning rate.",
                "Each mark is a trial, at any size; the line joins the medians. The wider the range in which a line is "
                "high, the less a badly chosen rate costs. Trials that ended early are shown with their last accuracy.",
            ),
        ]

    def classes(self) -> list[Block]:
        """Differences between classes, and confusion matrices."""
        names = self.comparison.class_names
        counts = {
            variant: np.sum([statistics.confusion(p.labels, p.predicted, len(names)) for p in found], axis=0)
            for variant in self.comparison.variants
            if (found := self._predictions(variant))
        }
        if not counts:
            return []
        blocks: list[Block] = [Heading("Classes", "classes")]
        with np.errstate(divide="ignore", invalid="ignore"):
            recall = {variant: np.diag(matrix) / matrix.sum(axis=1) for variant, matrix in counts.items()}
        baseline = self.comparison.baseline
        if baseline in recall and len(recall) > 1:
            differences = {name: own - recall[baseline] for name, own in recall.items() if name != baseline}
            most = [
                f"{name} {names[int(np.nanargmax(np.abs(row)))]}"
                for name, row in differences.items()
                if np.nan_to_num(row).any()
            ]
            which = f"the class that differs most: {listed(most)}" if most else "none differs"
            blocks.append(
                self._picture(
                    "classes",
                    plots.class_differences(differences, names, baseline, self.style),
                    f"Difference in the recognised share of each class; {which}.",
                    f"How much more of a class a variant recognises than {baseline}, {self.at}, all final runs "
                    f"together{'' if most else ': here the same in every class'}. There is no test for single classes.",
                )
            )
        if len(names) <= _MAX_CONFUSION_CLASSES:
            images = [
                _image(
                    f"confusion_{number}.svg",
                    plots.confusion_matrix(matrix, names, variant, width=plots.WIDTH),
                    f"Confusion matrix of {variant}: {matrix.trace()} of {matrix.sum()} images on the diagonal.",
                )
                for number, (variant, matrix) in enumerate(counts.items())
            ]
            caption = (
                f"Images by true and predicted class {self.at}, all final runs together; darker is a larger share."
            )
            blocks.append(Picture(images, f"{self.mark}{caption}"))
        return blocks

    def calibration(self) -> list[Block]:
        """Reliability diagram, and a table, which of two classes has sensitivity, specificity and AUC too."""
        two = len(self.comparison.class_names) == 2
        bins, rows = {}, []
        for variant in self.comparison.variants:
            found = self._predictions(variant)
            if not found:
                continue
            together = statistics.calibration(
                np.concatenate([p.confidence for p in found]), np.concatenate([p.correct for p in found])
            )
            full = together.count >= _LEAST_BIN
            bins[variant] = (together.confidence[full], together.accuracy[full])
            cells = [
                mean_and_spread([statistics.calibration(p.confidence, p.correct).error for p in found]),
                mean_and_spread([float(p.brier.mean()) for p in found], scale=1, digits=3),
            ]
            if two:
                rates = [statistics.two_class_rates(p.labels, p.positive) for p in found]
                cells += [mean_and_spread([rate[name] for rate in rates]) for name in ("sensitivity", "specificity")]
                cells.append(mean_and_spread([rate["auc"] for rate in rates], scale=1, digits=3))
            rows.append(TableRow(variant, cells, self.colour(variant)))
        if not rows:
            return []
        counts = self.comparison.test_images
        constant = 1 - float(np.square(counts / counts.sum()).sum())
        rows.append(TableRow("class frequencies", ["0.0", f"{constant:.3f}", *[""] * (3 * two)]))
        columns = ["variant", "calibration error, points", "Brier score"]
        positive = ""
        if two:
            columns += ["sensitivity, %", "specificity, %", "AUC"]
            positive = f" Sensitivity is the share of {self.comparison.class_names[1]} that is recognised."
        fitted = ""
        if self.comparison.plan.get("trials"):
            fitted = (
                " Probabilities are softmax(scores / T), with T fitted on the validation images of the chosen trial, "
                "and kept near 1 where these are few."
            )
        table = (
            f"Predicted probabilities {self.at}, mean ± standard deviation between the runs. The calibration error is "
            "how far they are from the share of right predictions (expected calibration error, ten bins). Alone it can "
            "flatter: the last row, which gives every image the frequencies of the classes, has none. The Brier score "
            "is their squared error, summed over the classes: 0 is the best, and what is not below the last row is "
            f"no better than that.{fitted}{positive}"
        )
        return [
            Heading("Calibration", "calibration"),
            self._picture(
                "calibration",
                plots.reliability_diagram(bins, self.style),
                f"Right predictions against predicted probability of {listed(list(bins))}.",
                f"Reliability {self.at}, all final runs together: on the diagonal, probabilities mean what they say; "
                f"below it they are too high. Bins of fewer than {_LEAST_BIN} images are left out.",
            ),
            Table(f"{self.mark}{table}", columns, rows),
        ]

    def geometry(self) -> list[Block]:
        """Measures of the embeddings over the epochs."""
        measures: dict[str, dict[str, tuple[Array, Array]]] = {}
        for measure, words in _GEOMETRY.items():
            for variant in self.comparison.variants:
                runs = self._runs(variant)
                line = _history(runs, f"geometry/train_{measure}")  # final runs have no validation images
                if len(line[0]):
                    measures.setdefault(words, {})[variant] = line
        if not measures:
            return []
        return [
            Heading("Geometry of the embeddings", "geometry"),
            self._picture(
                "geometry",
                plots.geometry_curves(measures, self.style),
                f"Over the epochs: {listed(list(measures))}.",
                f"Of the training images over the epochs {self.at}, mean of the final runs. Losses differ in the scale "
                "of their embeddings, which does not matter to the ratio.",
            ),
        ]

    def embeddings(self) -> list[Block]:
        """Maps of the test embeddings."""
        panels = embedding_panels(self.comparison, self.size)
        if not panels:
            return []
        return [
            Heading("Maps of the embeddings", "embeddings"),
            self._picture(
                "embeddings",
                plots.embedding_maps(panels, self.comparison.class_names),
                f"Test embeddings of {listed(list(panels))} in the plane, coloured by class.",
                f"Test images, one run a variant, trained {self.at}; coloured by their true class. More "
                "than two dimensions are projected on their first two principal components; scales differ between "
                "the maps.",
            ),
        ]

    def disagreements(self) -> list[Block]:
        """The images on which the variants disagree most: pictures where the names are files, else a table."""
        comparison = self.comparison
        tables = {variant: np.array(list(comparison.correct(variant, self.size).values())) for variant in self.style}
        tables = {variant: table for variant, table in tables.items() if len(table)}
        if len(tables) < 2:
            return []
        right = np.array([np.nansum(table, axis=0) for table in tables.values()])
        tested = np.array([(~np.isnan(table)).sum(axis=0) for table in tables.values()])
        shares = right / np.maximum(tested, 1)
        score = np.where((tested > 0).all(axis=0), np.ptp(shares, axis=0), 0) + 1e-3 * shares.std(axis=0)
        chosen = [place for place in np.argsort(-score, kind="stable")[:_DISAGREEMENTS].tolist() if score[place] > 1e-3]
        if not chosen:
            return []
        labels = {
            place: comparison.class_names[label]
            for prediction in comparison.predictions.values()
            for place, label in zip(prediction.images.tolist(), prediction.labels.tolist(), strict=True)
        }
        counts = {
            place: [f"{int(a)} of {int(b)}" for a, b in zip(right[:, place], tested[:, place], strict=True)]
            for place in chosen
        }
        names = {place: tail(comparison.image_names[place]) for place in chosen}
        caption = (
            f"{self.mark}Test images that some variants, trained {self.at}, recognise and others do not, with the "
            "number of right predictions."
        )
        images = [
            Image(
                f"disagreement_{number}.jpg",
                content,
                f"{labels[place]}: {names[place]}",
                "\n".join([labels[place], names[place], *map(" ".join, zip(tables, counts[place], strict=True))]),
            )
            for number, place in enumerate(chosen)
            if (content := _thumbnail(comparison.plan.get("images_root"), comparison.image_names[place])) is not None
        ]
        rows = [TableRow(names[place], [labels[place], *counts[place]]) for place in chosen]
        return [
            Heading("Where the variants disagree most", "disagreements"),
            Picture(images, caption, small=True) if images else Table(caption, ["image", "class", *tables], rows),
        ]

    def _runs(self, variant: str) -> list[dict[str, Any]]:
        return list(self.comparison.finals_of(variant, self.size).values())

    def _best_trial(self, variant: str) -> dict[str, Any] | None:
        """Of the trials that have a history on validation images, the one that tuning would choose."""
        trials = [
            run
            for run in self.comparison.trials
            if (run["variant"], run["samples_per_class"], run["status"]) == (variant, self.size, "ok")
            and (run.get("history") or {}).get("val/accuracy")
        ]
        return best_trial(trials, self.comparison.chosen_by)

    def _predictions(self, variant: str) -> list[Prediction]:
        keys = self.comparison.finals_of(variant, self.size)
        return [self.comparison.predictions[key] for key in keys if key in self.comparison.predictions]

    def _picture(self, name: str, figure: Figure, alt: str, caption: str) -> Picture:
        return Picture([_image(f"{name}.svg", figure, alt)], f"{self.mark}{caption}")


def embedding_panels(comparison: Findings, size: Size) -> dict[str, tuple[Array, Array]]:
    """Stored test embeddings in the plane, of the first sound run of each variant at a size.

    Args:
        comparison: The results.
        size: Training images a class.

    Returns:
        Variant to points (N, 2) and labels (N,); without the variants that have stored none.
    """
    panels = {}
    for variant in comparison.variants:
        for key, run in comparison.finals_of(variant, size).items():
            if key not in comparison.predictions:
                continue
            labels = comparison.predictions[key].labels
            try:
                with np.load(comparison.folder / run["predictions"]) as file:
                    embeddings = file["embeddings"].astype(np.float64) if "embeddings" in file else np.empty((0, 0))
                if embeddings.size and embeddings.shape != (len(labels), embeddings.shape[-1]):
                    raise ValueError(f"shape {embeddings.shape} for {len(labels)} images")
            except Exception as error:  # a torn archive can raise nearly anything
                comparison.notes.append(f"{named(run)}: its embeddings can't be read ({reason(error)})")
                continue
            if not embeddings.size or not np.isfinite(embeddings).all():
                continue
            drawn = np.sort(np.random.default_rng(0).permutation(len(labels))[:_MAX_POINTS])
            panels[variant] = (plots.project(embeddings)[0][drawn], labels[drawn])
            break
    return panels


def _image(file: str, figure: Figure, alt: str) -> Image:
    return Image(file, plots.figure_bytes(figure, "svg"), alt)


def _thumbnail(root: Any, name: str) -> bytes | None:
    """A small JPEG of an image file beneath the data's folder; None where the name is none, or it can't be read."""
    from PIL import Image as pillow

    try:
        file = Path(os.path.normpath(Path(root, name)))
        if not file.is_absolute() or not file.is_relative_to(os.path.normpath(root)) or not file.is_file():
            return None
        with pillow.open(file) as picture:
            if picture.mode.startswith("I"):  # 16 bit
                small = pillow.fromarray((np.asarray(picture) / 257).astype(np.uint8))
            else:
                picture.draft("RGB", (2 * _THUMBNAIL, 2 * _THUMBNAIL))
                small = picture.convert("RGB")
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            stream = io.BytesIO()
            small.convert("RGB").save(stream, format="JPEG", quality=85)
    except Exception:  # a broken or hostile file can raise nearly anything
        return None
    return stream.getvalue()


def _history(runs: Iterable[dict[str, Any]], key: str) -> tuple[Array, Array]:
    """Epochs and mean curve of the runs that have one."""
    stored = [run["history"] for run in runs if (run.get("history") or {}).get(key)]
    return statistics.mean_line([(history["epoch"], history[key]) for history in stored])


def _learning_rate(settings: dict[str, Any]) -> float | None:
    """The network's learning rate among the settings of a trial."""
    rates = [value for key, value in settings.items() if key.rpartition(".")[2] == "lr" and "center" not in key]
    return float(rates[0]) if rates and is_number(rates[0]) and rates[0] > 0 else None
