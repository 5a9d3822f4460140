"""What a folder holds of other plans than the one that is to be run in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from metricloss_pl.cli.console import relative_path
from metricloss_pl.compare.results import Results
from metricloss_pl.compare.words import count, shortened
from metricloss_pl.errors import UserError

__all__ = ["earlier_plan", "of_other_plans"]

_MOST = 5  # differences that are named
_BRIEF = 40  # characters of a value that is named
_PLANNED = ("baseline", "samples_per_class", "seeds", "splits", "folds", "steps", "metric", "images")


def earlier_plan(results: Results) -> Mapping[str, Any]:
    """What plan.json holds; nothing where it is missing or unsound, since it is about to be written anew."""
    try:
        return results.read_plan()
    except UserError:
        return {}


def of_other_plans(results: Results, before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """For the screen: how many results the report leaves out, how the last plan differs, and how its report comes back.

    Args:
        results: Which have been read.
        before: As :func:`earlier_plan` gives it.
        now: What is to stand in plan.json.
    """
    of_last = set(results.others) & set(before.get("keys", ()))
    try:
        differing = _differences(before, now) if of_last else []
    except (AttributeError, KeyError, TypeError):  # a plan.json of another version
        differing = []
    how = f" ({'; '.join(shortened(differing, _MOST))})" if differing else ""
    command = before.get("command") if of_last else None
    back = f"; the one on that plan comes back with: {command}" if command and command != now.get("command") else ""
    return (
        f"{relative_path(results.folder)} also holds {count(len(results.others), 'result')} of another plan{how}: "
        f"they stay, "
        f"and the report will be without them; --folder takes another place{back}"
    )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings that two plans have otherwise, each once, though it be so for several variants."""
    old, new = dict(_settings(before)), dict(_settings(now))
    texts = []
    for place in old:
        if place in new and old[place] != new[place]:
            was, becomes = json.dumps(old[place]), json.dumps(new[place])
            brief = max(len(was), len(becomes)) <= _BRIEF
            texts.append(f"{place[1]} {was}, now {becomes}" if brief else f"other {place[1]}")
    return list(dict.fromkeys(texts))


def _settings(plan: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], Any]]:
    """Each with the variant that it is of, or nothing, and its name."""
    yield ("", "variants"), list(plan["variants"])
    for name in _PLANNED:
        if name in plan:
            yield ("", name), plan[name]
    for name, value in _leaves(plan["tuning"], "tuning"):
        yield ("", name), value
    for variant, described in plan["variants"].items():
        for name, value in [*_leaves(described["settings"]), *_leaves(described["space"], "range")]:
            yield (variant, name.replace(".init_args.", ".")), value


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}".removeprefix("."))
    else:
        yield name, value
