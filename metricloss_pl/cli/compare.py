"""`metricloss compare`: comparison that a YAML file and flags describe."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

from metricloss_pl.cli.arguments import option, with_shipped_configs
from metricloss_pl.config_files import find_config
from metricloss_pl.errors import DEBUG_HELP, UserError, shell_command

__all__ = ["compare"]

_OWN_IMAGES = "folder.yaml"


def compare(arguments: Sequence[str]) -> None:
    """Run the comparison that the arguments describe; images alone stand for `compare/folder.yaml`.

    Args:
        arguments: Arguments after `compare` on the command line.

    Raises:
        UserError: There is an unknown setting, or the comparison can't be run.
    """
    from metricloss_pl.compare import api
    from metricloss_pl.compare.config import ComparisonConfig

    parser = ArgumentParser(
        prog=shell_command("compare"),
        usage="%(prog)s (--config FILE | --data_root IMAGES) [options]",
        description="Compare variants on the same images: equal tuning, several seeds, one test of each run.",
        epilog=DEBUG_HELP,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Comparison, as YAML.")
    names = parser.add_class_arguments(ComparisonConfig)
    parser.add_function_arguments(api.compare, skip={"variants", "command", *names})
    given = with_shipped_configs(arguments, "compare")
    for argument in given:
        if setting := re.match(r"--((?:data|model|trainer)\.[\w.]+)", argument):
            raise UserError(
                f"compare has no {setting[0]}: settings for all variants are given by "
                f'--overrides "{{{setting[1]}: VALUE}}"'
            )
    for name in ("include", "sizes", "seeds"):
        value = option(given, f"--{name}")
        if value is not None and not value.lstrip().startswith("[") and value != "null":
            raise UserError(f'{name} is {value}; it must be a list, as in --{name} "[{value}]"')
    file = option(given, "--config") or option(given, "-c")
    if file is None and option(given, "--data_root") is not None:
        file = find_config(_OWN_IMAGES, "compare")
        given = [f"--config={file}", *given]
    settings = parser.instantiate(parser.parse_args(given)).as_dict()
    if file is None:
        raise UserError(
            "compare needs --config with a comparison, such as compare/digits.yaml, or --data_root with a folder of "
            "images, a CSV list or an npz file"
        )
    settings.pop("config")
    described = {name: settings.pop(name) for name in names}
    of_file = parser.parse_args([f"--config={file}"]).overrides  # a flag changes some of them
    described["overrides"] = {**of_file, **described["overrides"]}
    for length, other in (("epochs", "steps"), ("steps", "epochs")):  # a flag replaces the file's other one
        if option(given, f"--{length}") is not None and option(given, f"--{other}") is None:
            described[other] = None
    if described["name"] is None:
        images, stem = Path(described["data_root"] or "").resolve(), Path(file).stem
        own = "" if stem == Path(_OWN_IMAGES).stem else f"-{stem}"
        name = images.name if images.is_dir() else images.stem
        described["name"] = name + own if described["data_root"] else stem
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # sent by schedulers of clusters
    try:
        api.compare(ComparisonConfig(**described), **settings, command=shell_command("compare", *arguments))
    except KeyboardInterrupt as error:  # its line has been printed
        raise SystemExit(128 + signal.SIGINT) from error
