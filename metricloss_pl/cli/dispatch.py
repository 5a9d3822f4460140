"""Subcommands that need Lightning: those that run a Trainer, and functions."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentParser
from lightning.pytorch.utilities.exceptions import SIGTERMException

from metricloss_pl.cli import processes
from metricloss_pl.cli.check import check
from metricloss_pl.cli.command_line import MetricLossCLI
from metricloss_pl.cli.compare import compare
from metricloss_pl.cli.console import filter_library_messages
from metricloss_pl.cli.errors import format_user_error, hint_of, lightning_refusals
from metricloss_pl.cli.export import export_checkpoint
from metricloss_pl.cli.figure import draw_figure
from metricloss_pl.cli.hierarchy import show_hierarchy
from metricloss_pl.cli.predict import is_positional, predict
from metricloss_pl.cli.report import show_report
from metricloss_pl.cli.similar import similar
from metricloss_pl.errors import DEBUG_HELP, is_debugging, shell_command

__all__ = ["main"]

_FUNCTIONS: dict[str, Callable[..., None]] = {
    "check": check,
    "export": export_checkpoint,
    "figure": draw_figure,
    "hierarchy": show_hierarchy,
    "report": show_report,
}


def main(args: Sequence[str]) -> None:
    """Run a subcommand that needs Lightning; `metricloss_pl.cli.main` is the whole program.

    Args:
        args: Arguments, the subcommand first.

    Raises:
        SystemExit: With status 1 after a user's mistake, whose one line is on standard error; 143 after SIGTERM.
    """
    arguments = [argument for argument in args if argument != "--debug"]
    try:
        with filter_library_messages(), lightning_refusals():
            function = _FUNCTIONS.get(arguments[0]) if arguments else None
            if arguments[:1] == ["compare"]:
                compare(arguments[1:])
            elif arguments[:1] == ["predict"] and is_positional(arguments[1:]):
                predict(arguments[1:])
            elif arguments[:1] == ["similar"]:
                similar(arguments[1:])
            elif function is not None:
                parser = ArgumentParser(prog=shell_command(arguments[0]), exit_on_error=False, epilog=DEBUG_HELP)
                parser.add_function_arguments(function, as_positional=True)
                function(**parser.parse_args(arguments[1:]))
            else:
                MetricLossCLI(args=arguments)
    except SIGTERMException as error:
        raise SystemExit(128 + signal.SIGTERM) from error
    except BrokenPipeError:
        raise
    except Exception as error:
        line = None if is_debugging(args) else format_user_error(error)
        if line is None:
            if hint := hint_of(error):
                error.add_note(hint)
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(processes.exit_status()) from error
