"""Output to the terminal: tables of names and values, relative paths, and silence while others run."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["filter_library_messages", "print_columns", "print_table", "relative_path", "silence_lightning"]

# Modules of Lightning that warn of intended settings: no validation images, a resumed run, averaged weights.
_MODULES = "utilities.data|loops.training_epoch_loop|callbacks.model_checkpoint|callbacks.weight_averaging"
_PACKAGE = Path(__file__).parent.parent
_ONE_LINE = 10_000  # columns


def print_table(rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def print_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below a header, all columns but the first aligned to the right; off a terminal each on one line."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else _ONE_LINE
    Console(markup=False, emoji=False, highlight=False, width=width).print(table, "")


def relative_path(path: str | Path) -> str:
    """Return a path relative to the working folder if it lies inside, else the absolute path."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@contextmanager
def silence_lightning() -> Iterator[None]:
    """Suppress warnings and Lightning's log messages."""
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


@contextmanager
def filter_library_messages() -> Iterator[None]:
    """Suppress messages of libraries that users can't act on, and print each warning to users on one line.

    Information is kept where this package, or a callback or tuner of Lightning's that the user has asked for, gives it.
    """
    from lightning.fabric.utilities.warnings import PossibleUserWarning  # slow to import

    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    format_in_full = warnings.formatwarning

    def format_on_one_line(message: Warning | str, category: type[Warning], *where: Any, **line: Any) -> str:
        if issubclass(category, UserWarning):
            return f"warning: {' '.join(str(message).split())}\n"
        return format_in_full(message, category, *where, **line)

    logger.addFilter(_is_asked_for)
    warnings.formatwarning = format_on_one_line
    try:
        with warnings.catch_warnings():
            for category in (PossibleUserWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            warnings.filterwarnings("ignore", category=UserWarning, module=rf"lightning\.pytorch\.({_MODULES})$")
            yield
    finally:
        warnings.formatwarning = format_in_full
        logger.removeFilter(_is_asked_for)


def _is_asked_for(record: logging.LogRecord) -> bool:
    path = Path(record.pathname)
    return record.levelno > logging.INFO or path.parent.name in ("callbacks", "tuner") or _PACKAGE in path.parents
