"""The program: a table of subcommands that answers at once and hands the rest to the subcommand."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

import metricloss_pl
from metricloss_pl.cli.configs import configs
from metricloss_pl.cli.subcommands import DESCRIPTIONS
from metricloss_pl.errors import DEBUG_HELP, UserError, is_debugging, is_it, shell_command

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> None:
    """Run the program, as `metricloss`, `python -m metricloss_pl` and a clone's `python cli.py` do.

    Args:
        args: Arguments such as `["fit", "--config", "digits_cosine.yaml"]`. None: those of the process.

    Raises:
        SystemExit: With status 1 after a user's mistake, whose one line is on standard error; 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if isinstance(sys.stdout, TextIOWrapper):  # names may have characters that it can't encode
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        subcommand = _subcommand(arguments)
        if subcommand == "configs":
            configs([argument for argument in arguments[1:] if argument != "--debug"])
        else:
            from metricloss_pl.cli import dispatch

            dispatch.main(arguments)
    except UserError as error:
        if is_debugging(arguments):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except BrokenPipeError as error:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from error


def _subcommand(arguments: Sequence[str]) -> str:
    """Return the subcommand that the arguments name; answer `--help` and `--version`."""
    first = arguments[0] if arguments else "--help"
    if first in DESCRIPTIONS:
        return first
    if first not in ("-h", "--help", "--version"):
        raise UserError(f"{first} is no subcommand{is_it(first, DESCRIPTIONS)}; there are {', '.join(DESCRIPTIONS)}")
    parser = argparse.ArgumentParser(
        prog=shell_command(),
        usage="%(prog)s SUBCOMMAND [options]",
        description="Train, evaluate and compare image classifiers with metric losses.",
        epilog="\n".join(
            [
                "subcommands:",
                *(f"  {name:<10} {line}" for name, line in DESCRIPTIONS.items()),
                f"\nOptions of a subcommand: {shell_command('SUBCOMMAND', '--help')}",
                DEBUG_HELP,
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"metricloss_pl {metricloss_pl.__version__}")
    parser.parse_args([first])
    raise AssertionError("argparse ends the program with its answer")
