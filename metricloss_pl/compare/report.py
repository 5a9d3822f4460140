"""Report of a comparison: one HTML page, Markdown with figures, and CSV tables, from stored results alone."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from metricloss_pl import plots
from metricloss_pl.compare import checks, figures, verdict
from metricloss_pl.compare.summary import Summary
from metricloss_pl.files import replacing

__all__ = ["write_report"]

_FIGURES = "figures"
_MAX_CLASS_ROWS, _MAX_FAILURES = 100, 100
_MINUS, _FIXED_SPACE = "\u2212", "\u00a0"


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
    summary = Summary.read(folder)
    pictures = figures.draw(summary)
    classes = _classes(summary)
    context = {**_answers(summary), **_tables(summary, classes), "pictures": pictures}
    for old in _earlier_figures(folder / "report.md"):
        old.unlink(missing_ok=True)
    for picture in (picture for section in pictures.values() for picture in section):
        _write(folder / _FIGURES / picture.file, picture.content)
    _write(folder / "results.csv", summary.table.to_csv(index=False))
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


# ------------------------------------------------------------------------------------------------ values of the templates


def _answers(summary: Summary) -> dict[str, Any]:
    found = checks.run_checks(summary)
    headline, rival = verdict.find_headline(summary), verdict.find_rival(summary)
    return {
        "headline": headline,
        "rival": rival,
        "checks": found,
        "steps": verdict.find_next_steps(headline, rival, found),
        "predict": verdict.predict_command(summary),
    }


def _tables(summary: Summary, classes: pd.DataFrame) -> dict[str, Any]:
    size = figures.shown_size(summary)
    shown = figures.with_results(summary, size)
    styles = plots.series_styles(summary.variants)
    cells = {label: group.to_dict("records") for label, group in classes.groupby("class", sort=False)} if shown else {}
    hardest = sorted(cells, key=lambda label: sum(cell["recall"] for cell in cells[label]))
    counts = checks.class_counts(summary)
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
        "tables": [(size, figures.at_size(summary.table, size).to_dict("records")) for size in summary.sizes],
        "methods": sorted(set(summary.table["method"].dropna())),
        "test_images": None if counts is None else int(counts["n"].sum()),
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
            if subset[name]:
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
    for (variant, size, *_), group in checks.searches(summary):
        best = group.loc[group["score"].idxmax()]
        space = summary.plan["variants"][variant]["space"]
        text = ", ".join(f"{_short(name)} {_number(best[name])}" for name in space)
        texts.setdefault(variant, [[] for _ in summary.sizes])[summary.sizes.index(size)].append(text)
    return {variant: ["; ".join(dict.fromkeys(cell)) for cell in cells] for variant, cells in texts.items()}


# ------------------------------------------------------------------------------------------------------------- filters


def escape_markdown(value: Any) -> Markup:
    """Return text in which Markdown sees no mark-up, on one line."""
    if isinstance(value, Markup):
        return value
    return Markup(re.sub(r"([\\`*_<>|\[\]#])", r"\\\1", " ".join(str(value).split())))


def _percent(value: float | None, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}" if value is not None and checks.is_known(value) else ""


def _points(value: float | None) -> str:
    if value is None or not checks.is_known(value):
        return ""
    text = f"{100 * value:+.1f}"
    return text[1:] if float(text) == 0 else text.replace("-", _MINUS)


def _p_value(value: float) -> str:
    return f"<{_FIXED_SPACE}0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _duration(seconds: float | None) -> str:
    if seconds is None or not checks.is_known(seconds):
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _number(value: Any, digits: int = 3) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _counted(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def _size_name(size: int | None) -> str:
    return "all images" if _is_all(size) else f"{_counted(int(size or 0), 'image')} per class"


def _at_size(size: int | None) -> str:
    return f"{'with' if _is_all(size) else 'at'} {_size_name(size)}"


def _is_all(size: float | None) -> bool:
    return size is None or not checks.is_known(size)


def _listed(names: Sequence[str]) -> str:
    names = [str(name) for name in names]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def _span(values: Sequence[float], text: Callable[[float], str] = _number) -> str:
    ends = list(dict.fromkeys((text(min(values)), text(max(values)))))
    return " to ".join(ends)


def _place(value: float, low: float, high: float) -> str:
    """Return where a value lies between the ends of a scale, in % of its length."""
    return f"{100 * (value - low) / (high - low) if high != low else 50:.1f}"


def _with_flags(text: str) -> Markup:
    """Return HTML in which no line break parts a flag of the command line, nor a flag and its number."""
    return Markup(re.sub(r"--[a-z_.]{1,30}(?: \d+)?", r"<code>\g<0></code>", str(escape(text))))


def _data_url(picture: figures.Picture) -> Markup:
    return Markup(f"data:{picture.mime};base64,{base64.b64encode(picture.content).decode('ascii')}")


def _environment(escape_text: Callable[[Any], Markup]) -> Environment:
    """Return the templates' environment, which escapes every value for one format.

    A value that is no `Markup` passes through `escape_text`, and what it returns is not escaped again.
    """
    environment = Environment(
        loader=PackageLoader("metricloss_pl.compare"), autoescape=True, finalize=escape_text, undefined=StrictUndefined,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(
        at_size=_at_size, code=lambda text: Markup(" ".join(text.split())), counted=_counted, data_url=_data_url, duration=_duration, flags=_with_flags, listed=_listed,
        number=_number, p_value=_p_value, percent=_percent, place=_place, points=_points, short=_short,
        size_name=_size_name, span=_span, unit_range=lambda values: _span(values, _percent),
        tail=lambda name: "/".join(Path(name).parts[-2:]),
    )  # fmt: skip
    environment.tests.update(known=checks.is_known, unknown=lambda value: not checks.is_known(value))
    return environment
