"""Class embeddings whose dot products are the similarities of the classes in a hierarchy."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from metricloss_pl.class_embeddings.hierarchy import Hierarchy
from metricloss_pl.class_embeddings.matching import match_classes, read_class_list
from metricloss_pl.errors import UserError, plural, reason
from metricloss_pl.files import UNREADABLE_PICKLE, FilePath

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["are_embeddings", "read_embeddings", "semantic", "stored"]

_SUFFIXES = (".npz", ".pickle", ".pkl")
_ITEMS = re.compile(r"[biufSU]\d+|O\d*")  # of arrays in a pickle: truth values, numbers, texts, objects
_LEAST_NORM = 1e-6  # of a row before it is brought to norm 1; less is rounding


def semantic(hierarchy: Hierarchy, class_names: Sequence[str] | None = None, dim: int | None = None) -> Tensor:
    """Return embeddings (C, D), float64, rows of norm 1, whose dot products are S = 1 - height(LCA) / height(root).

    They are the Cholesky factor of S: D = C, lower triangular, without negative entries. Barz & Denzler (2019,
    "Hierarchy-based Image Embeddings for Semantic Image Retrieval") solve for it class by class. It always exists,
    since no eigenvalue of S is below 1 / height(root).

    With `dim` the dot products are approximate: Q sqrt(Lambda) of the `dim` largest eigenvalues Lambda of S, each row
    then divided by its norm.

    Args:
        hierarchy: The tree.
        class_names: Names of the C classes in label order, matched by `Hierarchy.leaves_of`; None: all leaves, in the
            order of `Hierarchy.leaves`.
        dim: D, from 1 to C; None or C: the exact embeddings.

    Raises:
        UserError: A class is no leaf; there are fewer than two; or `dim` is out of range, or too small to place every
            class.
    """
    leaves = hierarchy.leaves if class_names is None else hierarchy.leaves_of(class_names)
    if len(leaves) < 2:
        raise UserError(f"{hierarchy.source} gives {len(leaves)} class: class embeddings need at least 2")
    similarities = hierarchy.similarities(leaves)
    if dim is None or dim == len(leaves):
        return torch.from_numpy(np.linalg.cholesky(similarities))
    if not 1 <= dim <= len(leaves):
        raise UserError(f"{dim} dimensions of semantic class embeddings: they must be 1 to {len(leaves)}, the classes")
    from scipy.linalg import eigh

    values, vectors = eigh(similarities, subset_by_index=(len(leaves) - dim, len(leaves) - 1))
    embeddings = vectors * np.sqrt(values)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if norms.min() < _LEAST_NORM:
        name = (leaves if class_names is None else class_names)[int(norms.argmin())]
        raise UserError(f"class {name!r} of {hierarchy.source} has no part in {dim} dimensions: take more of them")
    return torch.from_numpy(embeddings / norms)


# ------------------------------------------------------------------------------------------------ authors' files


def read_embeddings(path: FilePath) -> tuple[list[str], NDArray[np.float64]]:
    """Read class embeddings as Barz & Denzler's programs write them: an array `embedding` and `ind2label`.

    Args:
        path: A pickled dictionary, or an `.npz` archive. Nothing in the file is executed.

    Returns:
        Ids of the C classes, as texts, and their embeddings (C, D).

    Raises:
        UserError: The file is missing, broken, or holds anything but arrays and plain containers.
    """
    try:
        with Path(path).open("rb") as file:
            is_zip = _is_zip(file)
            content: Any = dict(np.load(file, allow_pickle=False)) if is_zip else _ArraysAndContainers(file).load()
    except FileNotFoundError as error:
        raise UserError(f"embeddings {path}: there is no such file") from error
    except UNREADABLE_PICKLE as error:
        raise UserError(f"embeddings {path} can't be read ({reason(error)}): a pickle or .npz is needed") from error
    try:
        array = np.asarray(content["embedding"], dtype=np.float64)
        labels = content["ind2label"]
        if isinstance(labels, dict):  # from rows to labels
            labels = [labels[row] for row in range(len(labels))]
        names = list(map(str, labels))
    except (LookupError, TypeError, ValueError) as error:
        needed = "numbers as `embedding` and the classes' ids as `ind2label` are needed"
        raise UserError(f"embeddings {path} can't be read ({reason(error)}): {needed}") from error
    if array.ndim != 2 or len(array) != len(names) or not np.isfinite(array).all():
        raise UserError(
            f"embeddings {path}: {array.shape} numbers for {plural(len(names), 'class')}; (C, D) finite are needed"
        )
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"embeddings {path}: {repeated[0]!r} has two rows; each class has one")
    return names, array


def are_embeddings(path: FilePath) -> bool:
    """Return whether a file is one of embeddings, by its suffix, not one of a hierarchy."""
    return Path(path).suffix.lower() in _SUFFIXES


def stored(path: FilePath, class_names: Sequence[str], class_list: FilePath | None = None) -> Tensor:
    """Return class embeddings (C, D), float64, from a file that `read_embeddings` reads.

    Args:
        path: The file; it may hold more classes.
        class_names: Names of the C classes in label order, matched like those of a hierarchy's leaves.
        class_list: File of lines `<id> <name>`, where the ids of the file are not the names.

    Raises:
        UserError: The file can't be read, or a class has no row.
    """
    ids, array = read_embeddings(path)
    listed = {} if class_list is None else read_class_list(class_list)
    rows = {key: row for row, key in enumerate(ids)}
    found = match_classes(class_names, ids, listed, f"embeddings {path}", ("row", "rows"))
    return torch.from_numpy(array[[rows[key] for key in found]])


def _is_zip(file: IO[bytes]) -> bool:
    start = file.read(2)
    file.seek(0)
    return start == b"PK"


class _ArraysAndContainers(pickle.Unpickler):
    """An unpickler that knows nothing but numpy's arrays; lists, dictionaries and numbers need no name.

    The arrays are built here: numpy itself believes a pickle about the size of items and where in them pointers stand,
    so that a forged one has it read any memory.
    """

    def find_class(self, module: str, name: str) -> Any:
        home = module.replace("numpy.core", "numpy._core")  # as it is called since numpy 2
        known = {
            ("_codecs", "encode"): _latin1,
            ("numpy", "ndarray"): None,  # handed to _reconstruct
            ("numpy", "dtype"): _Dtype,
            ("numpy._core.multiarray", "_reconstruct"): _Array,
            ("numpy._core.multiarray", "scalar"): _scalar,
            ("numpy._core.numeric", "_frombuffer"): _from_buffer,
        }
        if (home, name) not in known:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, where only numpy arrays and plain containers may be"
            )
        return known[home, name]


class _Dtype:
    """Type of an array's items as a pickle spells it: its code, such as f8, then its byte order."""

    def __init__(self, code: str, *_: object) -> None:
        if not _ITEMS.fullmatch(code):
            raise pickle.UnpicklingError(f"it has an array of {code}, where only numbers and texts may be")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """An array that a pickle fills after it has made it."""

    def __init__(self, *_: object) -> None:
        self.array: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, items, in_fortran_order, content = state
        self.array = _from_buffer(content, items, shape, "F" if in_fortran_order else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.array.astype(dtype or self.array.dtype)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.array)


def _from_buffer(content: Any, items: _Dtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> NDArray[Any]:
    if items.dtype == object:
        array = np.empty(len(content), dtype=object)
        array[:] = content
    else:
        array = np.frombuffer(content, items.dtype)
    return array.reshape(shape, order=order)


def _scalar(items: _Dtype, content: bytes) -> Any:
    return _from_buffer(content, items, (), "C")[()]


def _latin1(text: str, encoding: str) -> bytes:
    """Return bytes as pickles of old protocols spell them."""
    return text.encode("latin-1")
