"""Filters of the templates of reports and model cards: values as text, and text escaped for Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

__all__ = ["FILTERS", "duration", "escape_markdown", "is_known"]

_MINUS, _FIXED_SPACE = "\u2212", "\u00a0"


def is_known(value: Any) -> bool:
    """Return whether a cell of a table holds a number."""
    return value is not None and not math.isnan(value)


def escape_markdown(value: Any) -> Markup:
    """Return text in which Markdown sees no mark-up, on one line."""
    if isinstance(value, Markup):
        return value
    return Markup(re.sub(r"([\\`*_<>|\[\]#])", r"\\\1", re.sub(r"\s+", " ", str(value))))


def percent(value: Any, digits: int = 1) -> str:
    """Return a fraction as percentage."""
    return f"{100 * value:.{digits}f}".replace("-", _MINUS) if is_known(value) else ""


def points(value: Any) -> str:
    """Return a difference as signed percentage points."""
    if not is_known(value):
        return ""
    text = f"{100 * value:+.1f}"
    return text[1:] if float(text) == 0 else text.replace("-", _MINUS)


def p_value(value: float) -> str:
    """Return a p-value with as many digits as matter."""
    return f"<{_FIXED_SPACE}0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def duration(seconds: Any) -> str:
    """Return seconds, minutes or hours: "45 s", "12 min", "3.4 h"."""
    if not is_known(seconds):
        return ""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def number(value: Any, digits: int = 3) -> str:
    """Return a number with some significant digits."""
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def short(name: str) -> str:
    """Return the last part of the dotted name of a setting."""
    return name.rpartition(".")[2]


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def size_name(size: int | None) -> str:
    """Return a training-set size."""
    return "all images" if size is None else f"{counted(size, 'image')} per class"


def at_size(size: int | None) -> str:
    """Return a training-set size as the place where something holds."""
    return f"{'with' if size is None else 'at'} {size_name(size)}"


def listed(names: Sequence[str]) -> str:
    """Return names with commas and an "and"."""
    names = [str(name) for name in names]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def ends(values: Collection[Any]) -> list[Any]:
    """Return the least and the largest of several values, or the only one."""
    return sorted({min(values), max(values)})


def place(value: float, low: float, high: float) -> str:
    """Return where a value lies between the ends of a scale, in % of its length."""
    return f"{100 * (value - low) / (high - low) if high != low else 50:.1f}"


def with_flags(text: str) -> Markup:
    """Return HTML in which no line break parts a flag of the command line, nor a flag and its number."""
    return Markup(re.sub(r"--[a-z_.]{1,30}(?: \d+)?", r"<code>\g<0></code>", str(escape(text))))


def one_line(text: str) -> Markup:
    """Return text on one line, not escaped: for a block of code in Markdown."""
    return Markup(" ".join(text.split()))


def tail(name: str) -> str:
    """Return a file's name with its folder's."""
    return "/".join(Path(name).parts[-2:])


FILTERS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        at_size, counted, duration, ends, listed, number, one_line, p_value, percent, place, points, short,
        size_name, tail, with_flags,
    )
}  # fmt: skip
