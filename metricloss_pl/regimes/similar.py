"""Search for the images that are most similar to others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from metricloss_pl.data.reading import UnreadableImages
from metricloss_pl.errors import UserError
from metricloss_pl.losses import functional as F
from metricloss_pl.regimes.prediction import predict_files

if TYPE_CHECKING:
    from metricloss_pl.regimes.base import Classifier

__all__ = ["Neighbor", "SimilarImages", "find_similar"]

_ROWS = 256  # queries whose distances to the whole gallery are in memory at once


class Neighbor(NamedTuple):
    """An image of the gallery among the nearest of a query."""

    query: Path
    rank: int  # from 1
    file: Path
    distance: float


class SimilarImages(NamedTuple):
    """Nearest images of each query, and the reason for each file that cannot be decoded."""

    neighbors: list[Neighbor]
    broken: dict[Path, str]


def find_similar(
    model: Classifier,
    queries: str | Path | Iterable[str | Path],
    gallery: str | Path | Iterable[str | Path],
    k: int = 5,
) -> SimilarImages:
    """Find the images of a gallery whose embeddings are nearest to those of other images.

    The distance is the Euclidean one between the `metric_embeddings` of a regime. Regimes that ignore the norm of an
    embedding (cosine, ArcFace and similar, linear probe) compare on the unit sphere, where the squared distance is
    2 - 2 cos and the order that of the cosine similarity.

    Args:
        model: Regime that was trained on an `ImageDataModule`.
        queries: Files, or folders of images.
        gallery: Files, or folders of images. A query in the gallery is no neighbor of itself, nor are links to it.
        k: Neighbors per query, at least 1; at most as many as there are.

    Returns:
        The neighbors by query, nearest first. Files that cannot be decoded are left out and named.

    Raises:
        UserError: `k` is below 1, a folder holds no image, or no query or no image of the gallery can be read.
    """
    if k < 1:
        raise UserError(f"k is {k}: at least 1 is needed")
    broken: dict[Path, str] = {}
    asked, wanted = _embed(model, queries, broken)
    files, points = _embed(model, gallery, broken)
    places: dict[Path, list[int]] = {}  # several for a file and links to it
    for index, file in enumerate(files):
        places.setdefault(file.resolve(), []).append(index)
    neighbors = []
    for start in range(0, len(asked), _ROWS):
        distances = F.squared_distances(wanted[start : start + _ROWS], points).sqrt()
        for query, row in zip(asked[start : start + _ROWS], distances, strict=True):
            itself = places.get(query.resolve(), [])
            row[itself] = torch.inf
            count = min(k, len(files) - len(itself))
            nearest = row.sort(stable=True).indices[:count].tolist()
            neighbors += [
                Neighbor(query, rank, files[index], row[index].item()) for rank, index in enumerate(nearest, 1)
            ]
    return SimilarImages(neighbors, broken)


def _embed(
    model: Classifier, paths: str | Path | Iterable[str | Path], broken: dict[Path, str]
) -> tuple[list[Path], Tensor]:
    """Return the files that can be decoded and their embeddings (N, D); add the others to the broken ones."""
    files, found = [], []
    of_paths: dict[Path, str] = {}
    for batch in predict_files(model, paths):
        files += batch.files
        found.append(batch.embeddings)
        of_paths |= batch.broken
    if not files:
        raise UnreadableImages.of(of_paths)
    broken |= of_paths
    return files, torch.cat(found)
