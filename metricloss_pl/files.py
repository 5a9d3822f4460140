"""Files: named in a config relative to it, and written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from metricloss_pl.errors import UserError, reason

__all__ = ["FilePath", "replacing"]

if TYPE_CHECKING:
    FilePath: TypeAlias = str | os.PathLike[str]
else:
    from jsonargparse.typing import register_type

    class FilePath(str):
        """The type of an option that is a file: in a YAML file, relative to that file; as a flag, to where one is."""

        __slots__ = ()

        def __fspath__(self) -> str:  # else jsonargparse takes the file's content for the option's value
            return str(self)

    def _beside_config(value: str) -> FilePath:
        """The file's absolute path, as far as there is such a file; a config is parsed within its own folder."""
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is no path")
        return FilePath(os.path.abspath(value) if os.path.isfile(value) else value)

    register_type(FilePath, deserializer=_beside_config)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a file beside ``path`` to be written, which then takes its place; after an error nothing of it stays.

    Args:
        path: The file to replace, or a link to it; its folder is made.

    Raises:
        UserError: It is no file, such as a folder or a device; or its folder can't be made.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no file that could be replaced")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} can't be written ({reason(error)}): another place is needed") from error
    beside = path.with_name(f".{path.stem[:100]}.{os.getpid()}.part{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
