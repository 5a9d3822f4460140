"""How the numbers of a comparison came about: images, network, tuning, training, and where it ran."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from metricloss_pl.compare import remarks
from metricloss_pl.compare.words import (
    by_size,
    count,
    distinct,
    duration,
    grouped,
    length_of,
    listed,
    minute,
    settings_text,
    span,
    text_of,
)

if TYPE_CHECKING:
    from metricloss_pl.compare.results import Line
    from metricloss_pl.compare.summary import Findings
    from metricloss_pl.compare.words import Size

__all__ = ["conditions"]

_MAX_CLASSES_NAMED = 12
_DIGEST = re.compile(r"([0-9a-f]{16})[0-9a-f]{25,}")  # of a file that a setting names
_CHANNELS = {1: "grey", 3: "colour"}
_PRUNERS = {
    "median": "; a trial below the median of those before it ends early",
    "halving": "; successive halving ends trials early",
}


def conditions(comparison: Findings) -> list[tuple[str, str]]:
    """Names and what they stand for, without what is not known."""
    plan = comparison.plan
    runs = [*comparison.finals.values(), *comparison.trials]
    dates = sorted(str(run["date"]) for run in runs if run.get("date"))
    seconds = sum(run.get("seconds") or 0 for run in runs)
    named = comparison.class_names[:_MAX_CLASSES_NAMED]
    more = len(comparison.class_names) - len(named)
    items = [
        ("Data", text_of(plan.get("data"))),
        ("Classes", f"{len(comparison.class_names)}: {', '.join(named)}{f' and {more} more' if more else ''}"),
        ("Training images a class", ", ".join("all" if n is None else str(n) for n in comparison.sizes)),
        ("Image size", _of_variants(comparison, _image_size)),
        ("Network", _of_variants(comparison, _network)),
        ("Embedding dimension", _of_variants(comparison, _embedding)),
        ("Batch size", _of_variants(comparison, _batch)),
        ("Repetitions", remarks.repetitions(comparison)),
        ("Images of a final run", by_size(comparison.sizes, lambda size: _images(comparison, "final", size))),
        *remarks.trainings(comparison),
        ("Tuning", _tuning(comparison)),
        ("Images of a trial", by_size(comparison.sizes, lambda size: _images(comparison, "trial", size))),
        ("Training of a trial", _trial(comparison)),
        ("Test", "once, at the end of each final run; test images choose nothing"),
        ("Versions", distinct(runs, "versions")),
        ("Hardware", distinct(runs, "hardware")),
        ("Git", distinct(runs, "git")),
        ("Command", text_of(plan.get("command"))),
        ("Time", f"{minute(dates[0])} to {minute(dates[-1])}; {duration(seconds)} of runs" if dates else ""),
        ("All settings", "plan.json, in the folder of this report"),
    ]
    return [(name, value) for name, value in items if value]


def _images(comparison: Findings, kind: str, size: Size) -> str:
    """How many images a trial or final run of a size has for what."""
    runs = [p for p in comparison.plan.get("parts") or () if (p["kind"], p["samples_per_class"]) == (kind, size)]
    numbers = {"training": [part["train"] for part in runs]}
    if kind == "trial":
        numbers["validation"] = [part["val"] for part in runs]
    else:
        keys = [key for variant in comparison.variants for key in comparison.finals_of(variant, size)]
        found = comparison.predictions
        numbers["test"] = [len(found[key].labels) for key in keys if key in found]
    return ", ".join(f"{span(values)} for {part}" for part, values in numbers.items() if values)


def _of_variants(comparison: Findings, words: Callable[[Findings, str], str]) -> str:
    """What is said of all variants, or of each where they differ."""
    described = [name for name in comparison.variants if comparison.plan["variants"][name].get("settings")]
    groups = grouped({name: words(comparison, name) for name in described})
    return "; ".join(f"{listed(names)} {text}" if len(groups) > 1 else text for text, names in groups.items())


def _setting(comparison: Findings, variant: str, name: str) -> Any:
    """The value of a setting by its dotted name; "tuned" where trials choose it."""
    described = comparison.plan["variants"][variant]
    if comparison.plan.get("trials") and name in (described.get("space") or ()):
        return "tuned"
    value = described["settings"]
    for part in name.split("."):
        value = value.get("init_args", value).get(part) if isinstance(value, dict) else None
    return value


def _image_size(comparison: Findings, variant: str) -> str:
    names = ("image_size", "resize", "in_channels")
    size, resize, channels = (_setting(comparison, variant, f"data.{name}") for name in names)
    if size is None:
        text = "as they are" if resize is None else f"shorter side {resize} px"
    else:
        text = f"{size} px" if resize in (None, size) else f"{size} px out of {resize} px"
    return f"{text}, {_CHANNELS[channels]}" if channels in _CHANNELS else text


def _network(comparison: Findings, variant: str) -> str:
    backbone = _setting(comparison, variant, "model.backbone")
    if not isinstance(backbone, dict):
        return ""
    values = {name: _setting(comparison, variant, f"model.backbone.{name}") for name in backbone.get("init_args") or ()}
    known = {name: value for name, value in values.items() if value}  # others are off
    short = {name: _DIGEST.sub(r"\1...", value) if isinstance(value, str) else value for name, value in known.items()}
    name = backbone["class_path"].rpartition(".")[2]
    return f"{name} ({settings_text(short)})" if short else name


def _embedding(comparison: Findings, variant: str) -> str:
    dim = _setting(comparison, variant, "model.embedding_dim")
    return {None: "that of the features", "auto": "that of the class embeddings"}.get(dim, str(dim))


def _batch(comparison: Findings, variant: str) -> str:
    size = _setting(comparison, variant, "data.batch_size")
    batches = _setting(comparison, variant, "trainer.accumulate_grad_batches")
    return f"{size}" if batches in (None, 1) else f"{size}, with {batches} batches a step"


def _tuning(comparison: Findings) -> str:
    trials = comparison.plan.get("trials")
    if not trials:
        return "none: each variant as it is configured"
    ended = Counter(str(run["status"]) for run in comparison.trials)
    sums = f" ({listed([f'{number} {status}' for status, number in sorted(ended.items())])})" if ended else ""
    each = "variant, size and fold" if comparison.plan.get("folds") else "variant and size"
    pruner = str((comparison.plan.get("tuning") or {}).get("pruner"))
    return (
        f"{count(trials, 'trial')} for each {each}, the same for all{sums}; chosen by "
        f"{comparison.chosen_by.replace('_', ' ')} on validation images{_PRUNERS.get(pruner, '')}"
    )


def _trial(comparison: Findings) -> str:
    """How long those trials trained that did not end early, and why that is not the length of final runs."""
    trials = [run for run in comparison.trials if run["status"] == "ok"]
    text, of_finals = _length(comparison, trials), _length(comparison, comparison.finals.values())
    if not text or "steps" not in comparison.plan:
        return text
    if text == of_finals:
        return "as long as that of a final run"
    if comparison.plan["steps"] is not None:
        return f"{text} (as many steps as in a final run, but epochs without validation images are shorter)"
    if (comparison.plan.get("tuning") or {}).get("epochs") is not None:
        return f"{text} (as tuning.epochs says)"
    return f"{text} (as many epochs as in a final run, but without validation images they are shorter)"


def _length(comparison: Findings, runs: Iterable[Line]) -> str:
    of_size: dict[Size, list[Line]] = {size: [] for size in comparison.sizes}
    for run in runs:
        of_size[run["samples_per_class"]].append(run)
    return by_size(comparison.sizes, lambda size: length_of(of_size[size]))
