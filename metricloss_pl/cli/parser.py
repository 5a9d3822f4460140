"""Parser of the subcommands that run a Trainer."""

from __future__ import annotations

import argparse
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

__all__ = ["Parser"]


class Parser(LightningArgumentParser):
    """LightningCLI's parser, without abbreviated options, an exit on errors and usage lines of all options.

    Args:
        usage: Usage line, as in argparse.
        exit_on_error: Whether to exit on an error, as in jsonargparse.
        allow_abbrev: Whether options may be abbreviated, as in argparse.
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
