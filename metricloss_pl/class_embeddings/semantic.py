"""Class embeddings whose dot products are the similarities of the classes in a hierarchy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
_CONVERT = (
    "python -c \"import pickle, numpy as np; d = pickle.load(open('e.pickle', 'rb')); e = d['embedding']; "
    "np.savez('e.npz', embedding=e, ind2label=[str(d['ind2label'][i]) for i in range(len(e))])\""
)
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
        raise UserError(
            f"class {name!r} of {hierarchy.source} has an embedding of length 0 in {dim} dimensions: take more of them"
        )
    return torch.from_numpy(embeddings / norms)


# ------------------------------------------------------------------------------------------------ authors' files


def read_embeddings(path: FilePath) -> tuple[list[str], NDArray[np.float64]]:
    """Read class embeddings: an array `embedding` (C, D) and the classes' ids `ind2label` (C,).

    Args:
        path: An `.npz` archive. A pickle, such as those of Barz & Denzler's programs, has to be converted: reading it
            could run code.

    Returns:
        Ids of the C classes, as texts, and their embeddings (C, D).

    Raises:
        UserError: The file is missing, broken, a pickle, or lacks an array.
    """
    if not Path(path).is_file():
        raise UserError(f"embeddings {path}: there is no such file")
    if Path(path).suffix.lower() != ".npz":
        raise UserError(f"embeddings {path}: an .npz file is needed; to convert a pickle that you trust: {_CONVERT}")
    try:
        with np.load(path, allow_pickle=False) as file:
            content = dict(file)
    except UNREADABLE_PICKLE as error:
        raise UserError(f"embeddings {path} can't be read ({reason(error)}): an .npz file is needed") from error
    try:
        array = np.asarray(content["embedding"], dtype=np.float64)
        names = list(map(str, content["ind2label"].tolist()))
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
