"""Exception for a user's mistake, and the origin of other exceptions."""

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

    The line names the setting, the value given, right values, and the place.
    """


def reason(error: BaseException) -> str:
    """Return the message of another library's error on one line, to be quoted in a message of ours."""
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
    """Return whether a user's mistake shows its traceback, too."""
    return "--debug" in arguments or os.environ.get("METRICLOSS_DEBUG", "0") not in ("", "0")


def raised_in(error: BaseException, *packages: str) -> bool:
    """Return whether the code that raised an error is in one of these packages."""
    if error.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    module = str(frame.f_globals.get("__name__"))
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def causes_of(error: BaseException) -> list[BaseException]:
    """Return an error and the exceptions that it was explicitly raised from, outermost first."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    return causes


def cause_outside(error: BaseException, package: str) -> BaseException | None:
    """Return the first of an error and its causes that was raised outside of a package, or None."""
    return next((cause for cause in causes_of(error) if not raised_in(cause, package)), None)


@contextmanager
def refusing(package: str, kinds: type[Exception] | tuple[type[Exception], ...], line: str = "{}") -> Iterator[None]:
    """Turn exceptions of a package on a setting that was passed to it into a `UserError`.

    Args:
        package: Import path of the package. The same exception from elsewhere is a bug.
        kinds: Types of exceptions that a wrong setting raises.
        line: Message, with {} in place of the package's own.
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, UserError) or not raised_in(error, package):
            raise
        raise UserError(line.format(reason(error))) from error


def check_distinct(source: str, names: Sequence[str]) -> None:
    """Check that names of classes differ.

    Raises:
        UserError: One is given twice; the message begins with `source`.
    """
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{source} has {twice!r} twice: each class needs a name of its own")


def check_choice(name: str, value: object, choices: object) -> None:
    """Check an option against the Literal (or Literal | None) that lists its values.

    Raises:
        UserError: It is none of them.
    """
    allowed = [choice for part in (get_args(choices) or (choices,)) for choice in (get_args(part) or (part,))]
    allowed = [None if choice is type(None) else choice for choice in allowed]
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
