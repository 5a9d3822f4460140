"""The one exception that stands for a user's mistake, and what becomes one."""

from __future__ import annotations

import difflib
import os
import shlex
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args


class UserError(ValueError):
    """A mistake in a config, a command or the data; its message is one line that the command line shows as it is.

    The line says what is wrong, the value given, what would be right, and where.
    """


def reason(error: BaseException) -> str:
    """What another library's error says, on one line, to be quoted in one of ours."""
    text = getattr(error, "strerror", None) or str(error)  # an OSError's without its number and file
    return " ".join(text.split()) or type(error).__name__


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: "1 class", "2 classes", "1,200 images"."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def is_it(name: str, known: Iterable[str]) -> str:
    """Return ": is it NAME" with the known name that is nearest to an unknown one, or an empty string."""
    by_lower = {one.lower(): one for one in known}
    return "".join(f": is it {by_lower[one]}" for one in difflib.get_close_matches(name.lower(), by_lower, 1, 0.65))


def shell_command(*arguments: str) -> str:
    """Return the command that runs this program with these arguments, spelled the way it was started.

    Args:
        arguments: Arguments such as `"test"`, `"--ckpt_path"`, `"best.ckpt"`.

    Returns:
        `python cli.py ...`, `python -m metricloss_pl ...` or `metricloss ...`, quoted for a shell.
    """
    script = Path(sys.argv[0])
    if script.name == "cli.py":
        program = ["python", sys.argv[0]]
    elif script.name == "__main__.py" and script.absolute().parent == Path(__file__).absolute().parent:
        program = ["python", "-m", "metricloss_pl"]
    else:
        program = ["metricloss"]
    return shlex.join([*program, *arguments])


DEBUG_HELP = "With --debug after a subcommand, or METRICLOSS_DEBUG=1, an error shows its traceback."


def is_debugging(arguments: Sequence[str]) -> bool:
    """Return whether every error is to keep its traceback, also a user's mistake."""
    return "--debug" in arguments or os.environ.get("METRICLOSS_DEBUG", "0") not in ("", "0")


def raised_in(error: BaseException, *packages: str) -> bool:
    """Return whether the code that raised an error is in one of these packages."""
    if error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    module = str(frame.f_globals.get("__name__"))
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@contextmanager
def refusing(package: str, kinds: type[Exception] | tuple[type[Exception], ...], line: str = "{}") -> Iterator[None]:
    """Turn what a package raises on a setting that was handed on to it into a `UserError`.

    Args:
        package: Its import path; the same exception from elsewhere is a bug.
        kinds: Types of exceptions that mean the setting.
        line: The message, with {} for what the package says.
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, UserError) or not raised_in(error, package):
            raise
        raise UserError(line.format(reason(error))) from error


def check_choice(name: str, value: object, choices: object) -> None:
    """Check an option against the Literal (or Literal | None) that lists its values.

    Raises:
        UserError: It is none of them.
    """
    allowed = [choice for part in (get_args(choices) or (choices,)) for choice in (get_args(part) or (part,))]
    allowed = [None if choice is type(None) else choice for choice in allowed]
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
