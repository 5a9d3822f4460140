"""Writing files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metricloss_pl.errors import UserError

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a file beside ``path`` to be written, which then takes its place; after an error nothing of it stays.

    Args:
        path: The file to replace, or a link to it; its folder is made.

    Raises:
        UserError: It is no file, such as a folder or a device.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file that could be replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem[:100]}.{os.getpid()}.part{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
