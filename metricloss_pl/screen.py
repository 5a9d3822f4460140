"""What the screen says: names and values in two columns, paths as short as can be, and nothing of no use."""

from __future__ import annotations

import logging
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["print_rows", "quiet", "shell_command", "short"]


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def short(path: str | Path) -> str:
    """A path relative to the working folder where it lies inside."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


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


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings and without what Lightning says of each run."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
