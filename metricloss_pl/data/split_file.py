"""A split as a CSV file: which image is in which set."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from torch import Tensor

from metricloss_pl.data.reading import digests_of
from metricloss_pl.data.samples import Samples, path_identity
from metricloss_pl.data.splits import hash_order
from metricloss_pl.errors import UserError, reason
from metricloss_pl.files import replacing

Part = Literal["train", "val", "test"]
# The names that folders and lists may give to a set.
PART_NAMES: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_FINGERPRINT = 16  # training images of which the contents are compared


class SplitRow(NamedTuple):
    """An image of a split."""

    identity: str
    file: str  # for people; the identity, except for arrays
    label: str
    split: Part


def rows_of(samples: Samples, part: Part, class_names: Sequence[str]) -> list[SplitRow]:
    """Return the rows of one set."""
    identities = samples.identify()
    files = samples.names if isinstance(samples.images, Tensor) else identities
    return [
        SplitRow(identity, file, class_names[label], part)
        for identity, file, label in zip(identities, files, samples.labels.tolist(), strict=True)
    ]


def digest_of_split(rows: Iterable[SplitRow]) -> str:
    """Return what tells a split from others, in whatever order its images are listed."""
    lines = sorted(f"{row.split} {row.identity}\0" for row in rows)
    return hashlib.blake2b("".join(lines).encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()


def write_split(path: str | Path, rows: Sequence[SplitRow]) -> None:
    """Write the columns `file`, `label` and `split`, and for arrays `digest`; the file is there whole or not at all."""
    columns = ["file", "label", "split"]
    if any(row.identity != row.file for row in rows):
        columns.append("digest")
    with replacing(path) as beside, _opened(beside, "w") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows((row.file, row.label, row.split, row.identity)[: len(columns)] for row in rows)


def read_split(path: str | os.PathLike[str]) -> list[SplitRow]:
    """Read a file that `write_split` has written, or one like it.

    Raises:
        UserError: The file is missing or cannot be read, lacks a column or a name, has an unknown set, or lists no
            image.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"split_file {path}: there is no such file; a run's split.csv is needed, or one like it")
    rows = []
    try:
        with _opened(path, "r") as file:
            reader = csv.DictReader(file)
            for column in ("file", "label", "split"):
                if column not in (reader.fieldnames or []):
                    raise UserError(f"split_file {path} has no column {column!r}: file, label and split are needed")
            for cells in reader:
                name, split = cells["file"] or "", (cells["split"] or "").strip().lower()
                if not name or split not in PART_NAMES:
                    raise UserError(
                        f"split_file {path}, line {reader.line_num}: a file and one of train, val and test are needed, "
                        f"not {name!r} and {cells['split']!r}"
                    )
                identity = cells.get("digest") or path_identity(name)
                rows.append(SplitRow(identity, name, cells["label"] or "", PART_NAMES[split]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"split_file {path} cannot be read as a CSV file in UTF-8: {reason(error)}") from error
    if not rows:
        raise UserError(f"split_file {path} lists no image")
    return rows


def _opened(path: Path, mode: Literal["r", "w"]):  # type: ignore[no-untyped-def]  # a text file
    # Names of files may be no UTF-8, and come back as they are.
    return path.open(mode, encoding="utf-8", newline="", errors="surrogateescape")


class Divided(NamedTuple):
    """Images in the sets that a split says."""

    parts: dict[Part, Samples]
    unlisted: list[str]  # names of images that the split lacks
    missing: list[SplitRow]  # rows without an image


def divide_by(rows: Sequence[SplitRow], images: Samples, class_names: Sequence[str]) -> Divided:
    """Put images into the sets that a split says, in its order.

    Args:
        rows: The split.
        images: All images, in whatever order. Several may have one identity: then each takes a row, one of its class
            if there is one.
        class_names: In the order of the labels.
    """
    labels = images.labels.tolist()
    waiting: dict[str, list[int]] = {}
    for position, identity in enumerate(images.identify()):
        waiting.setdefault(identity, []).append(position)
    chosen: dict[Part, list[int]] = {}
    missing = []
    for row in rows:
        positions = waiting.get(row.identity)
        if not positions:
            missing.append(row)
            continue
        of_class = (number for number, position in enumerate(positions) if class_names[labels[position]] == row.label)
        chosen.setdefault(row.split, []).append(positions.pop(next(of_class, 0)))
    unlisted = sorted(position for positions in waiting.values() for position in positions)
    parts = {part: images.subset(positions) for part, positions in chosen.items()}
    return Divided(parts, [images.names[position] for position in unlisted], missing)


def fingerprint_of(images: Samples) -> dict[str, str]:
    """Return the identities and digests of a few images, by which the data are known again wherever they lie."""
    identities = images.identify()
    positions = hash_order(identities, "subset", 0).argsort(kind="stable")[:_FINGERPRINT]
    return _contents(images.subset(positions))


def has_fingerprint(images: Samples, fingerprint: Mapping[str, str]) -> bool:
    """Return whether most images of a fingerprint are among these, with the same content."""
    identities = images.identify()
    found = _contents(images.subset([i for i, identity in enumerate(identities) if identity in fingerprint]))
    return 2 * sum(found.get(name) == content for name, content in fingerprint.items()) > len(fingerprint)


def count_known(images: Samples, fingerprint: Mapping[str, str]) -> int:
    """Return how many images of a fingerprint are among these, with the same content and name, in whatever folder."""
    names = {PurePosixPath(identity).name for identity in fingerprint}
    identities = images.identify()
    alike = [i for i, identity in enumerate(identities) if PurePosixPath(identity).name in names]
    return len(set(_contents(images.subset(alike)).values()) & set(fingerprint.values()))


def _contents(images: Samples) -> dict[str, str]:
    identities = images.identify()
    if isinstance(images.images, Tensor):
        return dict(zip(identities, identities, strict=True))
    return dict(zip(identities, (digest.hex() for digest in digests_of(images.images)), strict=True))
