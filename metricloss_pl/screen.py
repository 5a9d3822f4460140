"""What the screen says: names and values in two columns, and paths as short as can be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["print_rows", "short"]


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def short(path: str | Path) -> str:
    """A path relative to the working folder where it lies inside."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
