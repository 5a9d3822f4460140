"""Commands from the tables of docs/reproduce.md and docs/results.md and the templates above them, and stored ones."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parent.parent
PUBLISHED = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
OWN = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
PROGRAM = "python cli.py "


class Row(NamedTuple):
    """Number in a table, and its command."""

    place: str
    figure: str
    command: str
    is_hours: bool


def rows_of(text: str) -> Iterator[Row]:
    """Yield all numbers of a text, each with the template above its table filled in."""
    for section in re.split(r"^(?=##)", text, flags=re.MULTILINE):
        title = section.partition("\n")[0].strip("# ")
        for block in section.split("```bash\n")[1:]:
            template, _, below = block.partition("\n```\n")
            header, _, *body = table_of(below) or [[], []]
            named = {column: cell.strip("`<>") for column, cell in enumerate(header) if cell.startswith("`<")}
            assert set(named.values()) <= set(re.findall(r"<(\w+)>", template)), title
            for cells in body:
                command = filled(template, {name: cells[column].strip("`") for column, name in named.items()})
                for column, cell in enumerate(cells):
                    if column == 0 or column in named or not cell:
                        continue
                    is_hours = cells[0].startswith("hours") or header[column] == "hours"
                    figure, _, rate = cell.partition(" @ ")
                    words = {"rate": "0.1" if is_hours else rate.partition(",")[0]}
                    if above := re.search("`(.*)`", header[column]):
                        [name] = {*re.findall(r"<(\w+)>", command)} - {"rate"}
                        words[name] = above[1]
                    yield Row(f"{title}: {cells[0]}, {header[column]}", figure, filled(command, words), is_hours)


def table_of(text: str) -> list[list[str]]:
    """Return header, ruler and rows of a table, all cells stripped."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def filled(template: str, words: dict[str, str]) -> str:
    """Return the template with the names in angle brackets replaced."""
    for name, value in words.items():
        template = template.replace(f"<{name}>", value)
    return " ".join(template.split())


ROWS = list(rows_of(PUBLISHED))
OURS = [row for row in rows_of(OWN) if row.command.startswith(PROGRAM)]  # not those of the scripts in results
HOURS = [row for row in ROWS if row.is_hours]
FIGURES = [row for row in ROWS if not row.is_hours]
FITS = [command for command in dict.fromkeys(row.command for row in FIGURES) if command.startswith(f"{PROGRAM}fit ")]


RESULTS = [
    result | {"command": result["command"].replace("metricloss fit --config ", f"{PROGRAM}fit --config configs/")}
    for file in sorted((ROOT / "results").glob("*.jsonl"))
    for result in map(json.loads, file.read_text().splitlines())
    if "metrics" in result
]


def options_of(command: str) -> list[tuple[str, str]]:
    """Return names and values of the options of a command."""
    given = shlex.split(command.removeprefix(PROGRAM))[1:]
    words = [part for word in given for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    return list(zip(words[::2], words[1::2], strict=True))


def covering(commands: Iterable[str], parts: Callable[[str], set[Any]]) -> list[str]:
    """Return few commands that together have all parts of all commands, by greedy set cover."""
    left = {command: parts(command) for command in commands}
    seen, chosen = set(), []
    while new := max((len(have - seen) for have in left.values()), default=0):
        best = next(command for command, have in left.items() if len(have - seen) == new)
        seen |= left.pop(best)
        chosen.append(best)
    return chosen


def settings(command: str) -> set[tuple[str, str]]:
    """Return the options of a command, with all numbers replaced by 0."""
    return {(name, re.sub(r"\d+(\.\d+)?", "0", value)) for name, value in options_of(command)}


def blocks(command: str) -> set[str]:
    """Return the blocks of a command and its run file, and the names of all settings that are no numbers."""
    names = {name for name, value in options_of(command) if re.search("[a-zA-Z]", value)}
    return (names | set(files_of(command).values())) - {"--config", "--data", "--model", "--trainer"}


def files_of(command: str) -> dict[str, str]:
    """Return the files of the data, model and trainer blocks."""
    options = dict(options_of(command))
    run_file = yaml.safe_load((ROOT / options["--config"]).read_text())
    return {name: options.get(f"--{name}", f"configs/{run_file[name]}") for name in ("data", "model", "trainer")}


def configured(command: str) -> dict[str, Any]:
    """Return the settings of the blocks and flags of a command: `data.class_path`, `model.backbone.name`, ..."""
    found = {}
    for name, file in files_of(command).items():
        is_class = not file.endswith(".yaml")
        flatten({"class_path": file} if is_class else yaml.safe_load((ROOT / file).read_text()), name, found)
    flags = {name[2:]: yaml.safe_load(value) for name, value in options_of(command)}
    return found | {name: value for name, value in flags.items() if name not in ("config", "data", "model", "trainer")}


def flatten(content: dict[str, Any], name: str, into: dict[str, Any]) -> None:
    """Add settings by dotted names, as flags have them: without `init_args`."""
    for key, value in content.items():
        place = name if key == "init_args" else f"{name}.{key}"
        if isinstance(value, dict):
            flatten(value, place, into)
        else:
            into[place] = value
