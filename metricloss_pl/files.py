"""Files: named in a config relative to it, read line by line, and written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from metricloss_pl.errors import UserError, reason

__all__ = [
    "UNREADABLE_PICKLE",
    "FilePath",
    "Line",
    "is_no_room",
    "no_room",
    "note_command",
    "read_lines",
    "replacing",
    "stem_of_result",
]

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


# What reading a torn or foreign file as a pickle, or as an archive of them, raises, in torch and NumPy too.
UNREADABLE_PICKLE = (
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


class Line(NamedTuple):
    """One line of a text file."""

    place: str  # file and number, for messages
    text: str


def read_lines(
    path: FilePath | Path, source: str | None = None, remedy: str | None = None, comments: bool = False
) -> list[Line]:
    """Reads the lines of a text file, except for empty ones, without the white space around them.

    Args:
        path: The file, UTF-8.
        source: What messages call it. None: by its path.
        remedy: What a person can do where it is missing or empty. None: it may be empty.
        comments: Pass over lines that begin with #.

    Raises:
        UserError: The file is missing, cannot be read, or is empty.
    """
    source = str(path) if source is None else source
    right = "" if remedy is None else f": {remedy}"
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"{source}: there is no such file{right}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source} can't be read as text: {reason(error)}") from error
    stripped = [Line(f"{source}, line {number}", line.strip()) for number, line in enumerate(lines, start=1)]
    found = [line for line in stripped if line.text and not (comments and line.text.startswith("#"))]
    if not found and remedy is not None:
        raise UserError(f"{source} is empty: {remedy}")
    return found


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a file beside ``path`` to be written, which then takes its place; after an error nothing of it stays.

    Args:
        path: The file to replace, or a link to it; its folder is made.

    Raises:
        UserError: It is no file, such as a folder or a device; or it or its folder can't be written, or not whole.
    """
    path = Path(path).resolve()
    beside = path.with_name(f".{path.stem[:100]}.{os.getpid()}.part{path.suffix}")
    with _blaming(path):
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file that could be replaced")
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
    try:
        yield beside
        with _blaming(path):
            os.replace(beside, path)
    except OSError as error:
        if not is_no_room(error):
            raise
        raise no_room(path, error) from error
    finally:
        beside.unlink(missing_ok=True)


def is_no_room(error: OSError) -> bool:
    """Return whether the disk is full, or a limit has been reached."""
    return error.errno in _NO_ROOM


def no_room(path: Path | str, error: OSError) -> UserError:
    """What to say where the disk is full, or a limit has been reached."""
    return UserError(f"{path} can't be written whole ({error.strerror}): make room there, and start again")


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} can't be written ({reason(error)}): another place is needed") from error


def stem_of_result(folder: Path, stem: str, command: str | None) -> str:
    """Return the stem of a command's result: `test`, or `test_2` and so on beside the results of other commands.

    The file `<stem>.json` names the command that the files of this stem are of.

    Args:
        folder: Folder of the results.
        stem: Stem of the first one.
        command: The command. None: there is none, such as in a script; the first result is then replaced.
    """
    stems = (stem if number == 1 else f"{stem}_{number}" for number in count(1))
    return next(
        name
        for name in stems
        if command is None or not any(folder.glob(f"{name}.*")) or _command_of(folder / f"{name}.json") == command
    )


def note_command(result: Path, command: str | None) -> None:
    """Write the command that a result is of beside it, for `stem_of_result`; without one, nothing."""
    if command is not None:
        with replacing(result.with_suffix(".json")) as beside:
            beside.write_text(json.dumps({"command": command}) + "\n", encoding="utf-8")


def _command_of(file: Path) -> str | None:
    """Return the command that a result is of; None: it cannot be told."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result.get("command") if isinstance(result, dict) else None
