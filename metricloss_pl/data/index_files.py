"""Reading the text and MATLAB files by which data sets say what their images are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metricloss_pl.errors import UserError, reason
from metricloss_pl.files import UNREADABLE_PICKLE, Line, read_lines


def reinstall_hint(folder: Path) -> str:
    """What a person can do about a broken index file in a set's own folder."""
    return f"remove {folder} to have it unpacked anew"


def read_numbered(file: Path, remedy: str, number: str = "[0-9]{1,18}") -> dict[str, Line]:
    """Reads lines of `<number> <text>`, where each number comes once.

    Args:
        file: The file.
        remedy: What a person can do where it is missing or empty.
        number: Regular expression that a number matches.

    Raises:
        UserError: A line is of another form, or its number came before; and as `read_lines`.
    """
    found: dict[str, Line] = {}
    for place, line in read_lines(file, remedy=remedy):
        words = line.split(maxsplit=1)
        if len(words) != 2 or not re.fullmatch(number, words[0]):
            raise UserError(f"{place}: {line!r}, where a number and a text are needed")
        if words[0] in found:
            raise UserError(f"{place}: number {words[0]} is listed already, at {found[words[0]].place}")
        found[words[0]] = Line(place, words[1])
    return found


def read_list(file: Path) -> list[tuple[str, str, str]]:
    """Reads lines of `<file> <label>`; a file's name may hold spaces, a label may not.

    Returns:
        Place (for messages), file and label of each line.

    Raises:
        UserError: A line has no label; and as `read_lines`.
    """
    listed = []
    for place, line in read_lines(file, remedy="a list of lines `<file> <label>` is needed"):
        words = line.rsplit(maxsplit=1)
        if len(words) != 2:
            raise UserError(f"{place}: {line!r}, where a file and a label are needed")
        listed.append((place, words[0], words[1]))
    return listed


def read_mat(file: Path, variable: str, remedy: str, fields: Sequence[str] = ()) -> npt.NDArray[Any]:
    """Reads one variable of a MATLAB file, as an array of one dimension; a struct is read as a structured array.

    Args:
        file: The file.
        variable: Its name in the file.
        remedy: What a person can do where the file is missing or broken.
        fields: That the struct has to have.

    Raises:
        UserError: The file is missing, cannot be read, or has no such variable or field.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not file.is_file():
        raise UserError(f"{file}: there is no such file: {remedy}")
    try:
        array = np.atleast_1d(loadmat(file, squeeze_me=True)[variable])
        for field in fields:
            array[field]
    except (MatReadError, *UNREADABLE_PICKLE) as error:
        raise UserError(f"{variable!r} cannot be read from {file} ({reason(error)}): {remedy}") from error
    return array
