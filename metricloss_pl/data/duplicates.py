"""Images that stand twice in a data set: in two parts, or under two classes."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from metricloss_pl.data.samples import Samples

_SHOWN = 3  # pairs, of as many as there are


class Duplicate(NamedTuple):
    """An image, and the first one that is the same byte for byte: of another part, or of another class."""

    part: str
    name: str
    label: int
    earlier_part: str
    earlier_name: str
    earlier_label: int


def find_duplicates(parts: Mapping[str, Samples]) -> list[Duplicate]:
    """Finds images that stand in two parts, or under two classes.

    Args:
        parts: In the order in which one is earlier than another. Files are compared byte for byte, and read only where
            another part or class has a file of the same size.

    Returns:
        Each such image once, with the first one like it.
    """
    found = []
    first: dict[Hashable, tuple[str, str, int]] = {}
    labels = {part: samples.labels.tolist() for part, samples in parts.items()}
    contents = _contents(parts, labels)
    for part, samples in parts.items():
        for content, name, label in zip(contents[part], samples.names, labels[part], strict=True):
            if content is None:
                continue
            earlier = first.setdefault(content, (part, name, label))
            if (part, label) != (earlier[0], earlier[2]):
                found.append(Duplicate(part, name, label, *earlier))
    return found


def describe_duplicates(found: Iterable[Duplicate], class_names: Sequence[str]) -> list[str]:
    """Says of both kinds, where there are any, how many images they are, with the first pairs; a line each."""
    in_two_parts, under_two_classes = [], []
    for part, name, label, earlier_part, earlier_name, earlier_label in found:
        if part != earlier_part:
            in_two_parts.append(f"{name} ({part}) = {earlier_name} ({earlier_part})")
        if label != earlier_label:
            classes = class_names[label], class_names[earlier_label]
            under_two_classes.append(f"{name} ({part}, {classes[0]}) = {earlier_name} ({earlier_part}, {classes[1]})")
    kinds = {
        "in more than one part, so that figures flatter": in_two_parts,
        "under two classes, of which one must be wrong": under_two_classes,
    }
    return [
        f"{'1 image stands' if len(pairs) == 1 else f'{len(pairs)} images stand'} {where}: "
        f"{', '.join(pairs[:_SHOWN])}{', ...' if len(pairs) > _SHOWN else ''}"
        for where, pairs in kinds.items()
        if pairs
    ]


def _contents(parts: Mapping[str, Samples], labels: Mapping[str, list[int]]) -> dict[str, list[Hashable]]:
    """Something an image that is equal for equal images; None where no other part or class can hold the image."""
    sizes = {
        part: [path.stat().st_size for path in samples.images]
        for part, samples in parts.items()
        if isinstance(samples.images, list)
    }
    where = defaultdict(set)
    for part, of_part in sizes.items():
        for size, label in zip(of_part, labels[part], strict=True):
            where[size].add((part, label))
    contents: dict[str, list[Hashable]] = {}
    for part, samples in parts.items():
        if isinstance(samples.images, Tensor):
            head = (samples.images.dtype, samples.images.shape[1:])
            contents[part] = [(head, _digest(image.numpy().tobytes())) for image in samples.images]
        else:
            files = zip(samples.images, sizes[part], strict=True)
            contents[part] = [_file_digest(path) if len(where[size]) > 1 else None for path, size in files]
    return contents


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _file_digest(path: Path) -> bytes:
    return _digest(path.read_bytes())
