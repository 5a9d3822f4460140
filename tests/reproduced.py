"""Reads docs/reproduce.md: its tables, and the commands that their templates make of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parent.parent
DOCUMENT = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
PUBLISHED, _, OWN = DOCUMENT.partition("\n## Small real runs\n")


class Row(NamedTuple):
    """One figure of the document."""

    place: str
    figure: str
    command: str
    is_hours: bool


def rows_of(section: str) -> Iterator[Row]:
    """All figures of a section, each with the template above its table filled in."""
    title = section.partition("\n")[0].strip("# ")
    for block in section.split("```bash\n")[1:]:
        template, _, text = block.partition("\n```\n")
        header, _, *body = table_of(text) or [[], []]
        named = {column: cell.strip("`<>") for column, cell in enumerate(header) if cell.startswith("`<")}
        if unknown := set(named.values()) - set(re.findall(r"<(\w+)>", template)):
            raise ValueError(f"{title}: {template} has no place for {unknown}")
        for cells in body:
            command = filled(template, {name: cells[column].strip("`") for column, name in named.items()})
            for column, cell in enumerate(cells):
                if column == 0 or column in named or not cell:
                    continue
                place = f"{title}: {cells[0]}, {header[column]}"
                is_hours = cells[0].startswith("hours") or header[column] == "hours"
                figure, _, rate = cell.partition(" @ ")
                words = {"rate": "0.1" if is_hours else rate.partition(",")[0]}
                if above := re.search("`(.*)`", header[column]):
                    [name] = {*re.findall(r"<(\w+)>", command)} - {"rate"}
                    words[name] = above[1]
                yield Row(place, figure, filled(command, words), is_hours)


def table_of(text: str) -> list[list[str]]:
    """Header, ruler and rows of a table, all cells stripped."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def filled(template: str, words: dict[str, str]) -> str:
    """The template with these names replaced."""
    for name, value in words.items():
        template = template.replace(f"<{name}>", value)
    return " ".join(template.split())


def _rows(text: str) -> list[Row]:
    return [row for section in re.split(r"^(?=##)", text, flags=re.MULTILINE) for row in rows_of(section)]


ROWS = _rows(PUBLISHED)
OURS = _rows(OWN)
HOURS = [row for row in ROWS if row.is_hours]
FIGURES = [row for row in ROWS if not row.is_hours]
FITS = [
    command for command in dict.fromkeys(row.command for row in FIGURES) if command.startswith("python cli.py fit ")
]


def options_of(command: str) -> list[tuple[str, str]]:
    """Names and values of a command's options."""
    program, *given = shlex.split(command)
    given = given[1:] if program == "metricloss" else given[2:]  # python cli.py
    words = [part for word in given for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    return list(zip(words[::2], words[1::2], strict=True))


def covering(commands: Iterable[str], parts: Callable[[str], set[Any]], done: Iterable[Any] = ()) -> list[str]:
    """Few commands that have all parts of all commands: the one with most parts that are new, again and again."""
    left = {command: parts(command) for command in commands}
    seen, chosen = set(done), []
    while new := max((len(have - seen) for have in left.values()), default=0):
        best = next(command for command, have in left.items() if len(have - seen) == new)
        seen |= left.pop(best)
        chosen.append(best)
    return chosen


def settings(command: str) -> set[tuple[str, str]]:
    """A command's options; one number stands for another."""
    return {(name, re.sub(r"\d+(\.\d+)?", "0", value)) for name, value in options_of(command)}


def blocks(command: str) -> set[str]:
    """What a command's training is made of: its blocks, those of the run file too, and settings that are no numbers."""
    names = {name for name, value in options_of(command) if re.search("[a-zA-Z]", value)}
    return (names | set(files_of(command).values())) - {"--config", "--data", "--model", "--trainer"}


def files_of(command: str) -> dict[str, str]:
    """The files of the blocks of data, model and trainer."""
    options = dict(options_of(command))
    run_file = yaml.safe_load((ROOT / options["--config"]).read_text())
    return {f"--{name}": options.get(f"--{name}", f"configs/{run_file[name]}") for name in ("data", "model", "trainer")}


def configured(command: str) -> dict[str, Any]:
    """What the command's blocks and flags say, numbers parsed: ``data.class_path``, ``model.backbone.name``, ..."""
    found = {}
    for name, file in files_of(command).items():
        flatten(yaml.safe_load((ROOT / file).read_text()), name, found)
    for name, value in options_of(command):
        found[name] = yaml.safe_load(value)
    return {name[2:]: value for name, value in found.items()}


def flatten(content: dict[str, Any], name: str, into: dict[str, Any]) -> None:
    """Settings by dotted names, as flags have them: without ``init_args``."""
    for key, value in content.items():
        place = name if key == "init_args" else f"{name}.{key}"
        if isinstance(value, dict):
            flatten(value, place, into)
        else:
            into[place] = value
