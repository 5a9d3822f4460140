"""Matching of the data's class names to entries of a hierarchy or of a file of embeddings."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from metricloss_pl.errors import UserError
from metricloss_pl.files import FilePath, Line, read_lines

__all__ = ["match_classes", "read_class_list", "read_pairs"]

_COMMENT = re.compile(r"(\s+\?|\s+\([^()]*\))+$")


def match_classes(
    class_names: Sequence[str],
    ids: Sequence[str],
    listed: Mapping[str, str],
    source: str,
    entry: tuple[str, str],
    inner: Iterable[str] = (),
) -> list[str]:
    """Return the id of each class, by the first of these rules that finds the most of them.

    1. The same id, except for a `?` or a comment in brackets behind it.
    2. The id that the class list pairs with the name: `<id> <class name>` or `<class name> <id>`.
    3. For names that begin with a number, such as 017.Cardinal: the id that is this number, 17 or 0017.

    Args:
        class_names: Names of the classes.
        ids: Ids in the source.
        listed: Names by id, or ids by name.
        source: Name of the source, for the messages.
        entry: Singular and plural of the source's entries, for the messages.
        inner: Ids in the source that are no classes.

    Raises:
        UserError: A class has no id, or two have the same; or the class list gives a name to two ids.
    """
    same = _unique((_COMMENT.sub("", key), key) for key in ids) | {key: key for key in ids}
    listed_ids: dict[str, str] = {}
    for first, second in listed.items():
        found, other = (same[first], second) if first in same else (same.get(second), first)
        if found is not None and listed_ids.setdefault(other, found) != found:
            raise UserError(f"the class list gives {other!r} to two {entry[1]}, {listed_ids[other]!r} and {found!r}")
    numbers = _unique((key.lstrip("0"), key) for key in ids if re.fullmatch("[0-9]+", key))
    leading = {name: match[0] for name in class_names if (match := re.match("[0-9]+", name))}
    numbered = {name: numbers.get(number.lstrip("0")) for name, number in leading.items()}
    rules: list[Mapping[str, str | None]] = [same, listed_ids, numbered]
    chosen = max(([rule.get(name) for name in class_names] for rule in rules), key=lambda keys: len({*keys} - {None}))

    owner: dict[str, str] = {}
    for name, key in zip(class_names, chosen, strict=True):
        if key is None:
            problem = "an inner node" if name in inner else f"no {entry[0]}"
            count = sum(found is not None for found in chosen)
            called, used = {key: name for name, key in listed_ids.items()}, set(chosen)
            left = [called.get(key, key) for key in ids if key not in used]
            near = list(dict.fromkeys([*difflib.get_close_matches(name, left), *left]))
            raise UserError(
                f"class {name!r} is {problem} of {source} ({count} of {len(chosen)} classes are {entry[1]}); "
                f"{entry[1]} without a class: {', '.join(map(repr, near[:3])) or 'none'}; "
                "repair the names, or give class_list, a file of lines <id> <class name>"
            )
        if key in owner:
            raise UserError(f"classes {owner[key]!r} and {name!r} are both the {entry[0]} {key!r} of {source}")
        owner[key] = name
    return list(owner)


def _unique(pairs: Iterator[tuple[str, str]]) -> dict[str, str]:
    """Return the id of each short form that belongs to a single id."""
    found: dict[str, set[str]] = {}
    for short, key in pairs:
        found.setdefault(short, set()).add(key)
    return {short: keys.pop() for short, keys in found.items() if len(keys) == 1}


def read_class_list(path: FilePath) -> dict[str, str]:
    """Read lines `<id> <name>` into a dictionary; the name may hold spaces.

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
    """Split each line into two words, of which the second may hold spaces.

    Raises:
        UserError: A line has only one.
    """
    pairs = []
    for place, line in lines:
        words = line.split(maxsplit=1)
        if len(words) != 2:
            raise UserError(f"{place}: {line!r} is one word, where two are needed")
        pairs.append((words[0], words[1]))
    return pairs
