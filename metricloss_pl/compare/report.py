"""Report of a comparison: one HTML page, Markdown with figures, and CSV tables, from stored results alone."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from metricloss_pl import plots
from metricloss_pl.compare import checks, figures
from metricloss_pl.compare.summary import Summary, at_size
from metricloss_pl.files import replacing
from metricloss_pl.formatting import FILTERS, escape_markdown, is_known, number, short

__all__ = ["write_report"]

_FIGURES = "figures"
_MAX_CLASS_ROWS, _MAX_FAILURES = 100, 100


def write_report(folder: Path) -> Path:
    """Write `report.html`, `report.md`, `results.csv`, `classes.csv` and `figures/` beside the results.

    The same results give the same files, byte for byte.

    Args:
        folder: Output folder of the comparison, which may be incomplete.

    Returns:
        Path of `report.html`.

    Raises:
        UserError: There is no sound plan in the folder.
    """
    folder = Path(folder)
    summary = Summary(folder)
    pictures = figures.draw(summary)
    classes = _classes(summary)
    context = {**_answers(summary), **_tables(summary, classes), "pictures": pictures}
    for old in _earlier_figures(folder / "report.md"):
        old.unlink(missing_ok=True)
    for picture in (picture for section in pictures.values() for picture in section):
        _write(folder / _FIGURES / picture.file, picture.content)
    results = summary.table.copy()
    results.insert(results.columns.get_loc("low"), "metric", summary.metric)  # of intervals, differences and tests
    _write(folder / "results.csv", results.to_csv(index=False))
    _write(folder / "classes.csv", classes.to_csv(index=False))
    _write(folder / "report.md", _environment(escape_markdown).get_template("report.md.j2").render(context))
    _write(folder / "report.html", _environment(escape).get_template("report.html.j2").render(context))
    return folder / "report.html"


def _write(file: Path, content: bytes | str) -> None:
    with replacing(file) as beside:
        beside.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))


def _earlier_figures(report: Path) -> list[Path]:
    """Return the figures that an earlier report shows; others in their folder are a user's own."""
    text = report.read_text(encoding="utf-8", errors="replace") if report.is_file() else ""
    return [report.parent / _FIGURES / name for name in re.findall(rf"\]\({_FIGURES}/([\w-]+\.(?:svg|jpg))\)", text)]


# ----------------------------------------------------------------------------------------------- values of templates


def _answers(summary: Summary) -> dict[str, Any]:
    found = checks.run_checks(summary)
    headline, rival = checks.find_headline(summary), checks.find_rival(summary)
    return {
        "headline": headline,
        "rival": rival,
        "checks": found,
        "steps": checks.find_next_steps(summary, headline, rival, found),
        "winner": checks.kept_checkpoint(summary),
    }


def _tables(summary: Summary, classes: pd.DataFrame) -> dict[str, Any]:
    size = figures.shown_size(summary)
    shown = figures.with_results(summary, size)
    styles = plots.series_styles(summary.variants)
    cells = {label: group.to_dict("records") for label, group in classes.groupby("class", sort=False)}
    recalls = {label: sum(cell["recall"] for cell in cells[label]) for label in cells}
    hardest = sorted(cells, key=lambda label: (not is_known(recalls[label]), recalls[label]))  # without images last
    return {
        "summary": summary,
        "plan": summary.plan,
        "runs": _runs(summary),
        "failures": [run for run in summary.results.values() if run["status"] == "failed"][:_MAX_FAILURES],
        "main": summary.metric,
        "other": "accuracy" if summary.metric == "balanced_accuracy" else "balanced_accuracy",
        "size": size,
        "shown": shown,
        "overall": summary.overall.to_dict("records") if len(summary.sizes) > 1 else [],
        "tables": [(size, at_size(summary.table, size).to_dict("records")) for size in summary.sizes],
        "methods": sorted(set(summary.table["method"].dropna())),
        "test_images": len(summary.labels),
        "class_rows": [(label, cells[label][0]["n"], cells[label]) for label in hardest[:_MAX_CLASS_ROWS]],
        "hidden_classes": max(0, len(hardest) - _MAX_CLASS_ROWS),
        "calibration": {variant: summary.calibration(variant, size) for variant in shown},
        "disagreements": figures.disagreements(summary),
        "chosen": _chosen(summary),
        "colors": {name: f"#{''.join(f'{round(255 * part):02x}' for part in styles[name].color)}" for name in styles},
    }


def _runs(summary: Summary) -> dict[str, Any]:
    """Return how many runs of each kind have ended, their time, and the least and largest numbers of their images."""
    kinds = [run["kind"] for run in summary.results.values()]
    images: dict[str, dict[str, list[int]]] = {"final": {}, "trial": {}}
    for subset in summary.plan["data"]["subsets"]:
        for name, word in (("train", "training"), ("val", "validation"), ("test", "test")):
            if subset[name] and (subset["kind"], name) != ("trial", "test"):
                images[subset["kind"]].setdefault(word, []).append(subset[name])
    seconds = sum(run["seconds"] for run in summary.results.values())
    return {"final": kinds.count("final"), "trial": kinds.count("trial"), "seconds": seconds, "images": images}


def _classes(summary: Summary) -> pd.DataFrame:
    """Return the results per class of all variants at the shown size."""
    size = figures.shown_size(summary)
    found = [
        summary.per_class(variant, size).assign(variant=variant) for variant in figures.with_results(summary, size)
    ]
    return pd.concat(found) if found else pd.DataFrame(columns=["class", "n", "recall", "variant"])


def _chosen(summary: Summary) -> dict[str, list[str]]:
    """Return the settings of the best trials, per variant, one text per training-set size."""
    texts: dict[str, list[list[str]]] = {}
    for search in summary.searches:
        space = summary.plan["variants"][search.variant]["space"]
        text = ", ".join(f"{short(name)} {number(search.best['settings'][name])}" for name in space)
        cells = texts.setdefault(search.variant, [[] for _ in summary.sizes])
        cells[summary.sizes.index(search.size)].append(text)
    return {variant: ["; ".join(dict.fromkeys(cell)) for cell in cells] for variant, cells in texts.items()}


def _data_url(picture: figures.Picture) -> Markup:
    """Return an image as a URL that holds it."""
    return Markup(f"data:{picture.mime};base64,{base64.b64encode(picture.content).decode('ascii')}")


def _environment(escape_text: Callable[[Any], Markup]) -> Environment:
    """Return the templates' environment, which escapes every value for one format.

    A value that is no `Markup` passes through `escape_text`, and what that returns is not escaped again.
    """
    environment = Environment(
        loader=PackageLoader("metricloss_pl.compare"), autoescape=True, finalize=escape_text, undefined=StrictUndefined,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(FILTERS, data_url=_data_url)
    environment.tests.update(known=is_known, unknown=lambda value: not is_known(value))
    return environment
