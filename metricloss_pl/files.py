"""Files: named in a config relative to it, read line by line, and written completely or not at all."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

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
    "sha256",
    "stem_of_result",
    "writing_csv",
]

if TYPE_CHECKING:
    FilePath: TypeAlias = str | os.PathLike[str]
else:
    from jsonargparse.typing import register_type

    class FilePath(str):
        """Type of an option that is a file: relative to the YAML file that names it, or to the working folder."""

        __slots__ = ()

        def __fspath__(self) -> str:  # else jsonargparse takes the file's content for the option's value
            return str(self)

    def _beside_config(value: str) -> FilePath:
        """Return the absolute path of a file that exists; the parser reads a config in the config's folder."""
        if not isinstance(value, str):
            raise TypeError(f"{value!r} is no path")
        return FilePath(os.path.abspath(value) if os.path.isfile(value) else value)

    register_type(FilePath, deserializer=_beside_config)


# A truncated or foreign file that is read as a pickle, or as an archive of pickles, raises exceptions of any type.
UNREADABLE_PICKLE = (Exception,)
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


class Line(NamedTuple):
    """One line of a text file."""

    place: str  # file and line number, for messages
    text: str


def read_lines(
    path: FilePath | Path, source: str | None = None, remedy: str | None = None, comments: bool = False
) -> list[Line]:
    """Return the lines of a text file that are not empty, without the white space around them.

    Args:
        path: File in UTF-8.
        source: Name of the file in messages. None: its path.
        remedy: Advice for messages if the file is missing or empty. None: it may be empty.
        comments: Whether to skip lines that begin with #.

    Raises:
        UserError: The file is missing, can't be read, or is empty.
    """
    source = str(path) if source is None else source
    advice = "" if remedy is None else f": {remedy}"
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"{source}: there is no such file{advice}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source} can't be read as text: {reason(error)}") from error
    stripped = [Line(f"{source}, line {number}", line.strip()) for number, line in enumerate(lines, start=1)]
    found = [line for line in stripped if line.text and not (comments and line.text.startswith("#"))]
    if not found and remedy is not None:
        raise UserError(f"{source} is empty: {remedy}")
    return found


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside a path, which replaces the path at the end; after an error it is removed.

    Args:
        path: File to replace, or a link to it. Its folder is created.

    Raises:
        UserError: The path is a folder or device, or it can't be written completely.
    """
    path = Path(path).resolve()
    beside = path.with_name(f".{path.stem[:100]}.{os.getpid()}.part{path.suffix}")
    with _blaming(path):
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file, so it can't be replaced")
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


@contextmanager
def writing_csv(path: str | Path) -> Iterator[Any]:
    """Yield a `csv.writer` whose file replaces a path at the end, as with `replacing`.

    Raises:
        UserError: The path is a file of another kind, such as an image whose name was meant as an input.
    """
    if Path(path).is_file() and Path(path).suffix.lower() != ".csv":
        raise UserError(f"{path} exists and its name does not end in .csv, so it is not replaced: name another one")
    with (
        replacing(path) as beside,
        beside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,  # names may be no UTF-8
    ):
        yield csv.writer(file)


def is_no_room(error: OSError) -> bool:
    """Return whether the disk is full, or a limit has been reached."""
    return error.errno in _NO_ROOM


def no_room(path: Path | str, error: OSError) -> UserError:
    """Return the error for a full disk, or a limit that has been reached."""
    return UserError(f"{path} can't be written whole ({error.strerror}): make room there, and start again")


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} can't be written ({reason(error)}): another place is needed") from error


def stem_of_result(folder: Path, stem: str, command: str | None) -> str:
    """Return the stem of the files with a command's result: `test`, or `test_2` beside the result of another command.

    The file `<stem>.json` names the command.

    Args:
        folder: Folder of the results.
        stem: Stem without a number.
        command: Command that writes the result. None: a script, which replaces the first result.
    """
    stems = (stem if number == 1 else f"{stem}_{number}" for number in count(1))
    return next(
        name
        for name in stems
        if command is None or not any(folder.glob(f"{name}.*")) or _command_of(folder / f"{name}.json") == command
    )


def note_command(result: Path, command: str | None, **facts: Any) -> None:
    """Write the command, and other facts, beside its result, for `stem_of_result`."""
    if command is not None:
        with replacing(result.with_suffix(".json")) as beside:
            beside.write_text(json.dumps({"command": command, **facts}) + "\n", encoding="utf-8")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _command_of(file: Path) -> str | None:
    """Return the command that a result file names, or None."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result.get("command") if isinstance(result, dict) else None
