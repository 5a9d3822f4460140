"""Images that stand twice in a data set: in two parts, under two classes, or within one class of one part."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from metricloss_pl.data.samples import Samples

_SHOWN = 3  # pairs, of as many as there are


class Duplicate(NamedTuple):
    """An image, and the first one that is the same byte for byte."""

    part: str
    name: str
    label: int
    earlier_part: str
    earlier_name: str
    earlier_label: int


def find_duplicates(parts: Mapping[str, Samples]) -> list[Duplicate]:
    """Finds images that stand twice or more.

    Args:
        parts: In the order in which one is earlier than another. Files are compared byte for byte, and read only where
            another one has the same size.

    Returns:
        Each such image once, with the first one like it.
    """
    found = []
    first: dict[Hashable, tuple[str, str, int]] = {}
    contents = _contents(parts)
    for part, samples in parts.items():
        for content, name, label in zip(contents[part], samples.names, samples.labels.tolist(), strict=True):
            if content is None:
                continue
            if content in first:
                found.append(Duplicate(part, name, label, *first[content]))
            else:
                first[content] = (part, name, label)
    return found


def describe_duplicates(found: Iterable[Duplicate], class_names: Sequence[str]) -> list[str]:
    """Says of each kind, where there are any, how many images they are, with the first pairs; a line each."""
    in_two_parts, under_two_classes, within = [], [], []
    for part, name, label, earlier_part, earlier_name, earlier_label in found:
        if part != earlier_part:
            in_two_parts.append(f"{name} ({part}) = {earlier_name} ({earlier_part})")
        if label != earlier_label:
            classes = class_names[label], class_names[earlier_label]
            under_two_classes.append(f"{name} ({part}, {classes[0]}) = {earlier_name} ({earlier_part}, {classes[1]})")
        if (part, label) == (earlier_part, earlier_label):
            within.append(f"{name} = {earlier_name} ({part})")
    kinds = {
        "in more than one part, so that results look better than they are": in_two_parts,
        "under two classes, of which one must be wrong": under_two_classes,
        "again within a part, where the same picture counts more than once": within,
    }
    return [
        f"{'1 image stands' if len(pairs) == 1 else f'{len(pairs)} images stand'} {where}: "
        f"{', '.join(pairs[:_SHOWN])}{', ...' if len(pairs) > _SHOWN else ''}"
        for where, pairs in kinds.items()
        if pairs
    ]


def _contents(parts: Mapping[str, Samples]) -> dict[str, list[Hashable]]:
    """Something an image that is equal for equal images; None where no other file can be the same."""
    sizes = {
        part: [path.stat().st_size for path in samples.images]
        for part, samples in parts.items()
        if isinstance(samples.images, list)
    }
    of_size = Counter(size for of_part in sizes.values() for size in of_part)
    contents: dict[str, list[Hashable]] = {}
    for part, samples in parts.items():
        if isinstance(samples.images, Tensor):
            head = (samples.images.dtype, samples.images.shape[1:])
            contents[part] = [(head, _digest(image.numpy().tobytes())) for image in samples.images]
        else:
            files = zip(samples.images, sizes[part], strict=True)
            contents[part] = [_file_digest(path) if of_size[size] > 1 else None for path, size in files]
    return contents


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _file_digest(path: Path) -> bytes:
    return _digest(path.read_bytes())
