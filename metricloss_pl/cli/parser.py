"""The parser of the subcommands that run a Trainer: short usage lines, and short lists of classes in its help."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections import Counter
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

__all__ = ["Parser"]

_COLUMN = 24  # of argparse's help texts
_PARAGRAPH = re.compile(rf"(?:^ {{{_COLUMN}}}\S.*\n)+", flags=re.MULTILINE)
_CLASSES = re.compile(r"(?<=known subclasses: )[\w.]+(?:, [\w.]+)*")


class Parser(LightningArgumentParser):
    """LightningCLI's parser, strict, and with a help that can be read.

    Args:
        usage: As in argparse. Default: none, since a list of all options says nothing that the help does not say.
        exit_on_error: As in jsonargparse.
        allow_abbrev: As in argparse.
        kwargs: Other arguments of LightningCLI's parser.
    """

    def __init__(
        self,
        *args: Any,
        usage: str | None = argparse.SUPPRESS,
        exit_on_error: bool = False,
        allow_abbrev: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, usage=usage, exit_on_error=exit_on_error, allow_abbrev=allow_abbrev, **kwargs)

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return the help, with the short names of known classes, which are those that a user types."""
        return _PARAGRAPH.sub(_with_short_names, super().format_help(*args, **kwargs))


def _with_short_names(paragraph: re.Match[str]) -> str:
    text = " ".join(paragraph[0].split())
    shortened = _CLASSES.sub(_short_names, text)
    if shortened == text:
        return paragraph[0]
    width = max(map(len, paragraph[0].splitlines()))
    indent = " " * _COLUMN
    return textwrap.fill(shortened, width, initial_indent=indent, subsequent_indent=indent) + "\n"


def _short_names(classes: re.Match[str]) -> str:
    """Return the classes without their modules, except for those of equal names."""
    paths = classes[0].split(", ")
    names = [path.rpartition(".")[2] for path in paths]
    often = Counter(names)
    return ", ".join(name if often[name] == 1 else path for name, path in zip(names, paths, strict=True))
