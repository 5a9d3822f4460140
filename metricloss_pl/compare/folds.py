"""Digest and common folder of the images of a comparison."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from metricloss_pl.data.file_checks import digest_files
from metricloss_pl.data.samples import Samples

__all__ = ["digest", "images_root"]


def digest(images: Samples, known: dict[Path, bytes] | None = None) -> str:
    """Tells sets of images apart: by names, labels, groups, and the images themselves or their files.

    Args:
        images: The set.
        known: Digests of files that have been read; those of the others are added. None: all are read.
    """
    found = hashlib.blake2b(digest_size=10)
    found.update("\0".join(images.names).encode("utf-8", "surrogateescape"))
    found.update(images.labels.numpy().tobytes())
    if images.groups is not None:
        found.update(images.groups.numpy().tobytes())
    if isinstance(images.images, Tensor):
        found.update(images.images.contiguous().numpy().tobytes())
    else:
        known = {} if known is None else known
        new = [file for file in images.images if file not in known]
        known.update(zip(new, digest_files(new), strict=True))
        found.update(b"".join(known[file] for file in images.images))
    return found.hexdigest()


def images_root(parts: Iterable[Samples | None]) -> str | None:
    """The folder from which the names of the images lead to their files; None where there is no such folder.

    Args:
        parts: The images; None for parts that a data set does not have.
    """
    files = [
        (os.path.abspath(file), name)
        for samples in parts
        if samples is not None and not isinstance(samples.images, Tensor)
        for file, name in zip(samples.images, samples.names, strict=True)
    ]
    if not files:
        return None
    path, name = files[0]
    if os.path.isabs(name):  # a list may name files by their whole paths
        root = os.path.commonpath([os.path.dirname(path) for path, _ in files])
    else:
        root = path.removesuffix(os.sep + os.path.normpath(name))
    leads = all(os.path.normpath(os.path.join(root, name)) == path for path, name in files)
    return root if leads else None
