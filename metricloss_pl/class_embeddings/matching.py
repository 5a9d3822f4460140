"""Which entry of a hierarchy or of a file of embeddings is which class of the data."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from metricloss_pl.errors import UserError
from metricloss_pl.files import FilePath, Line, read_lines

__all__ = ["match_classes", "read_class_list", "read_pairs"]

_NAMED = 3  # of many classes or ids
_COMMENT = re.compile(r"(?<!\s)(\s+\?|\s+\([^()]*\))+$")


def match_classes(
    class_names: Sequence[str],
    ids: Sequence[str],
    listed: Mapping[str, str],
    source: str,
    entry: tuple[str, str],
    inner: Iterable[str] = (),
) -> list[str]:
    """The id of each class, by the first of these rules that finds the most of them.

    1. The same id, or the same but for a ``?`` or a comment in brackets behind it.
    2. The id that the class list says the same of: ``<id> <class name>`` or ``<class name> <id>``.
    3. For names that begin with a number, such as 017.Cardinal: the id that is this number, 17 or 0017.

    Args:
        class_names: Names of the classes.
        ids: What the source has.
        listed: From ids to names, or from names to ids.
        source: What messages call the source.
        entry: What messages call one id, and several of them.
        inner: Ids that are no classes though the source has them.

    Raises:
        UserError: A class has no id, or two have the same; or the class list says a name of two.
    """
    same = _of_one((_COMMENT.sub("", key), key) for key in ids) | {key: key for key in ids}
    of_listed: dict[str, str] = {}
    for first, second in listed.items():
        found, other = (same[first], second) if first in same else (same.get(second), first)
        if found is not None and of_listed.setdefault(other, found) != found:
            raise UserError(f"the class list says {other!r} of two {entry[1]}, {of_listed[other]!r} and {found!r}")
    numbers = _of_one((key.lstrip("0"), key) for key in ids if re.fullmatch("[0-9]+", key))
    leading = {name: match[0] for name in class_names if (match := re.match("[0-9]+", name))}
    numbered = {name: numbers.get(number.lstrip("0")) for name, number in leading.items()}
    rules: list[Mapping[str, str | None]] = [same, of_listed, numbered]
    chosen = max(([rule.get(name) for name in class_names] for rule in rules), key=lambda keys: len({*keys} - {None}))
    if lacking := [name for name, key in zip(class_names, chosen, strict=True) if key is None]:
        what = "an inner node" if lacking[0] in inner else f"no {entry[0]}"
        others = f"; not so {_some(lacking[1:])}" if len(lacking) > 1 else ""
        called, used = {key: name for name, key in of_listed.items()}, set(chosen)
        left = _nearest_first([called.get(key, key) for key in ids if key not in used], lacking[:_NAMED])
        which = f"{entry[1]} without a class: {_some(left)}" if left else f"all {entry[1]} are other classes"
        raise UserError(
            f"class {lacking[0]!r} is {what} of {source} ({len(chosen) - len(lacking)} of {len(chosen)} classes are "
            f"{entry[1]}{others}); {which}; mend the names, or give class_list, a file of lines <id> <class name>"
        )
    owner: dict[str, str] = {}
    for name, key in zip(class_names, chosen, strict=True):
        assert key is not None
        if key in owner:
            raise UserError(f"classes {owner[key]!r} and {name!r} are both the {entry[0]} {key!r} of {source}")
        owner[key] = name
    return list(owner)


def _nearest_first(names: list[str], wanted: Sequence[str]) -> list[str]:
    """The names, those first that are like one of the wanted."""
    near = [match for name in wanted for match in difflib.get_close_matches(name, names, n=1)]
    return list(dict.fromkeys([*near, *names]))


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_NAMED])) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _of_one(pairs: Iterator[tuple[str, str]]) -> dict[str, str]:
    """From what stands for one id alone to this id."""
    found: dict[str, set[str]] = {}
    for short, key in pairs:
        found.setdefault(short, set()).add(key)
    return {short: keys.pop() for short, keys in found.items() if len(keys) == 1}


def read_class_list(path: FilePath) -> dict[str, str]:
    """Reads lines ``<id> <name>`` into a dictionary; the name may hold spaces.

    Raises:
        UserError: The file is missing or malformed, or has an id twice.
    """
    source = f"class list {path}"
    names: dict[str, str] = {}
    for key, name in read_pairs(read_lines(path, source, comments=True)):
        if names.setdefault(key, name) != name:
            raise UserError(f"{source}: {key!r} is listed twice, as {names[key]!r} and {name!r}")
    return names


def read_pairs(lines: Iterable[Line]) -> list[tuple[str, str]]:
    """Two words of each line, of which the second may hold spaces.

    Raises:
        UserError: A line has but one.
    """
    pairs = []
    for place, line in lines:
        words = line.split(maxsplit=1)
        if len(words) != 2:
            raise UserError(f"{place}: {line!r} is one word, where two are needed")
        pairs.append((words[0], words[1]))
    return pairs
