"""`metricloss configs`: the shipped configs, listed or copied."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from metricloss_pl.cli.console import print_table, relative_path
from metricloss_pl.config_files import copy_config, describe_config, list_configs, shipped_configs
from metricloss_pl.errors import DEBUG_HELP, shell_command

__all__ = ["configs"]

_KINDS = (  # folder of configs, and the command that takes its files
    ("", "Run files", ("fit", "--config")),
    ("compare", "Comparisons", ("compare", "--config")),
    ("data", "Data sets for a run file", ("fit", "--config", "RUN_FILE", "--data")),
)


def configs(arguments: Sequence[str]) -> None:
    """List the shipped configs, or copy one of them.

    Args:
        arguments: Arguments after `configs` on the command line.

    Raises:
        UserError: There is no config of the name to copy, or the file to write exists.
    """
    parser = argparse.ArgumentParser(
        prog=shell_command("configs"),
        description="List the configs that come with the package, or copy one.",
        epilog=DEBUG_HELP,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="subcommands", metavar="", dest="action")
    copy = actions.add_parser("copy", help="Write a config as one file for editing.", allow_abbrev=False)
    copy.add_argument("name", metavar="NAME", help="Name of the config, such as digits_cosine.yaml.")
    copy.add_argument("--out", metavar="FILE", help="File to write. Default: the config's own name, here.")
    given = parser.parse_args(arguments)
    if given.action == "copy":
        print_table([("config", relative_path(copy_config(given.name, given.out)))])
        return
    for kind, title, command in _KINDS:
        print(f"{title} ({shell_command(*command)} NAME):")
        print_table([(f"  {name}", describe_config(name)) for name in list_configs(kind)])
        print()
    print(f"Blocks for --model and --trainer are in {relative_path(shipped_configs())}.")
