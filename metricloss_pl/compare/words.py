"""Numbers, names and sizes in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metricloss_pl.compare.statistics import Estimate

__all__ = [
    "Size",
    "at_size",
    "by_size",
    "count",
    "distinct",
    "duration",
    "estimate_cell",
    "grouped",
    "length_of",
    "listed",
    "mean_and_spread",
    "minute",
    "named",
    "p_equals",
    "p_value",
    "percent",
    "settings_text",
    "shortened",
    "signed",
    "size_name",
    "span",
    "tail",
    "text_of",
]

Size = int | None  # training images a class; None for all

_MINUS, _FIXED_SPACE = "\u2212", "\u00a0"


def percent(value: float | None) -> str:
    """0.9731 as 97.3; nothing for what is not known."""
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def signed(value: float | None) -> str:
    """A difference of 0.012 as +1.2, in points of a percentage."""
    return "" if value is None else f"{100 * value:+.1f}".replace("-", _MINUS)


def p_value(value: float | None) -> str:
    """A p-value with as many digits as matter."""
    if value is None:
        return ""
    return f"<{_FIXED_SPACE}0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def p_equals(value: float) -> str:
    """A p-value with its name, which no line break parts."""
    text = p_value(value)
    return f"p{_FIXED_SPACE}{text}" if text.startswith("<") else f"p{_FIXED_SPACE}={_FIXED_SPACE}{text}"


def estimate_cell(
    found: Estimate | None, number: Callable[[float | None], str], spread: bool = True
) -> str | tuple[str, str]:
    """A mean, if wanted its spread, and on a second line its interval."""
    if found is None:
        return ""
    text = number(found.mean)
    if spread and found.spread is not None:
        text += f" ± {100 * found.spread:.1f}"
    return text if found.low is None else (text, f"{number(found.low)} to {number(found.high)}")


def mean_and_spread(values: Sequence[float], scale: float = 100, digits: int = 1) -> str:
    """Mean and standard deviation of the values that are no NaN."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return ""
    spread = f" ± {scale * float(np.std(known, ddof=1)):.{digits}f}" if len(known) > 1 else ""
    return f"{scale * float(np.mean(known)):.{digits}f}{spread}"


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def minute(date: str) -> str:
    """Day and minute of a date in ISO 8601."""
    return date[:16].replace("T", " ")


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def size_name(size: Size) -> str:
    """A training-set size."""
    return "all images" if size is None else f"{count(size, 'image')} a class"


def at_size(size: Size) -> str:
    """Where a training-set size is spoken of: "at 5 images a class", "with all images"."""
    return f"{'with' if size is None else 'at'} {size_name(size)}"


def by_size(sizes: Sequence[Size], words: Callable[[Size], str]) -> str:
    """One text for all sizes, or each with the sizes for which it holds."""
    found: dict[str, list[Size]] = {}
    for size in sizes:
        found.setdefault(words(size), []).append(size)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{listed([at_size(size) for size in of])} {text}" for text, of in found.items() if text)


def length_of(runs: Iterable[dict[str, Any]]) -> str:
    """Epochs and steps of runs; nothing where they are not known."""
    runs = list(runs)
    known = {noun: [n for run in runs if isinstance(n := run.get(f"{noun}s"), int)] for noun in ("epoch", "step")}
    return ", ".join(span(values, noun) for noun, values in known.items() if values)


def named(run: dict[str, Any]) -> str:
    """A run by its place in the plan."""
    fold = "" if run["fold"] is None else f", fold {run['fold']}"
    return f"{run['variant']}, {size_name(run['samples_per_class'])}, split {run['split']}{fold}, seed {run['seed']}"


def listed(names: Sequence[str]) -> str:
    """Names with commas and an "and"."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def grouped(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """The names of each text, without those that have none."""
    groups: dict[str, list[str]] = {}
    for name, text in texts.items():
        if text:
            groups.setdefault(text, []).append(name)
    return groups


def span(values: Iterable[int], noun: str = "") -> str:
    """A number, perhaps with its noun, or the least and the largest of several."""
    least, *others = sorted(set(values))
    number = f"{least} to {others[-1]}" if others else str(least)
    return f"{number} {noun}{'' if number == '1' else 's'}" if noun else number


def shortened(lines: Sequence[str], most: int = 40) -> list[str]:
    """The first lines, and how many more there are."""
    return [*lines[:most], f"and {len(lines) - most} more"] if len(lines) > most else list(lines)


def tail(name: str) -> str:
    """A file's name with its folder's."""
    return "/".join(Path(name).parts[-2:])


def settings_text(settings: dict[str, Any]) -> str:
    """Settings by the last part of their keys, or by as much of them as tells them apart."""
    last = [key.rpartition(".")[2] for key in settings]
    return ", ".join(
        f"{short if last.count(short) == 1 else key} {f'{value:.3g}' if isinstance(value, float) else value}"
        for (key, value), short in zip(settings.items(), last, strict=True)
    )


def text_of(value: Any) -> str:
    """A stored fact, which may be a dictionary of several."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return "" if value is None else str(value)


def distinct(runs: Iterable[dict[str, Any]], name: str) -> str:
    """The different values of a fact of the runs."""
    return "; ".join(dict.fromkeys(text for run in runs if (text := text_of(run.get(name)))))
