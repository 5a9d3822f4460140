"""Reading of the text and MATLAB files in which published sets describe their images."""

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
    """Return the remedy for a broken index file in a set's own folder."""
    return f"remove {folder} to have it unpacked again"


def read_numbered(file: Path, remedy: str, number: str = "[0-9]{1,18}") -> dict[str, Line]:
    """Read lines of `<number> <text>`, where each number occurs once.

    Args:
        file: The file.
        remedy: Advice if it is missing or empty.
        number: Regular expression that a number matches.

    Raises:
        UserError: The file cannot be read, a line has another form, or its number occurred before.
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
    """Read lines of `<file> <label>`; the name of a file may have spaces, a label may not.

    Returns:
        Place (for messages), file and label of each line.

    Raises:
        UserError: The file cannot be read, or a line has no label.
    """
    listed = []
    for place, line in read_lines(file, remedy="a list of lines `<file> <label>` is needed"):
        words = line.rsplit(maxsplit=1)
        if len(words) != 2:
            raise UserError(f"{place}: {line!r}, where a file and a label are needed")
        listed.append((place, words[0], words[1]))
    return listed


def read_mat(file: Path, variable: str, remedy: str, fields: Sequence[str] = ()) -> npt.NDArray[Any]:
    """Read one variable of a MATLAB file as an array of one dimension, a struct as a structured array.

    Args:
        file: The file.
        variable: Its name in the file.
        remedy: Advice if the file is missing or broken.
        fields: Fields that the struct must have.

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
