"""Splits as CSV files, and fingerprints by which the images of a split are recognized."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from torch import Tensor

from metricloss_pl.data.file_checks import digest_files
from metricloss_pl.data.samples import SET_NAMES, SPLIT_NAMES, SPLITS, Samples, Split, path_identity
from metricloss_pl.data.splits import hash_order
from metricloss_pl.errors import UserError, plural, reason
from metricloss_pl.files import replacing

_FINGERPRINT = 16  # training images of which the contents are compared


class SplitRow(NamedTuple):
    """One image of a split."""

    identity: str
    file: str  # for people; the identity, except for arrays
    label: str
    split: Split


def rows_of(samples: Samples, split: Split, class_names: Sequence[str]) -> list[SplitRow]:
    """Return the rows of one set."""
    identities = samples.identify()
    files = samples.names if isinstance(samples.images, Tensor) else identities
    return [
        SplitRow(identity, file, class_names[label], split)
        for identity, file, label in zip(identities, files, samples.labels.tolist(), strict=True)
    ]


def digest_of_split(rows: Iterable[SplitRow]) -> str:
    """Return a digest of a split that does not depend on the order of its images."""
    lines = sorted(f"{row.split} {row.identity}\0" for row in rows)
    return hashlib.blake2b("".join(lines).encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()


def write_split(path: str | Path, rows: Sequence[SplitRow]) -> None:
    """Write the columns `file`, `label` and `split`, and for arrays `digest`; atomic."""
    columns = ["file", "label", "split"]
    if any(row.identity != row.file for row in rows):
        columns.append("digest")
    with replacing(path) as beside, _open(beside, "w") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows((row.file, row.label, row.split, row.identity)[: len(columns)] for row in rows)


def read_split(path: str | os.PathLike[str]) -> list[SplitRow]:
    """Read a file of `write_split`, or one like it.

    Raises:
        UserError: The file is missing or cannot be read, lacks a column or a name, has an unknown set, or lists no
            image.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"split_file {path}: there is no such file; give a run's split.csv, or one like it")
    rows = []
    try:
        with _open(path, "r") as file:
            reader = csv.DictReader(file)
            for column in ("file", "label", "split"):
                if column not in (reader.fieldnames or []):
                    raise UserError(f"split_file {path} has no column {column!r}: file, label and split are needed")
            for cells in reader:
                name, split = cells["file"] or "", (cells["split"] or "").strip().lower()
                if not name or split not in SPLIT_NAMES:
                    raise UserError(
                        f"split_file {path}, line {reader.line_num}: a file and one of train, val and test are needed, "
                        f"not {name!r} and {cells['split']!r}"
                    )
                identity = cells.get("digest") or path_identity(name)
                rows.append(SplitRow(identity, name, cells["label"] or "", SPLIT_NAMES[split]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"split_file {path} cannot be read as a CSV file in UTF-8: {reason(error)}") from error
    if not rows:
        raise UserError(f"split_file {path} lists no image")
    return rows


def _open(path: Path, mode: Literal["r", "w"]) -> Any:
    return path.open(mode, encoding="utf-8", newline="", errors="surrogateescape")  # names may be no UTF-8


def split_by_rows(
    rows: Sequence[SplitRow], images: Samples, class_names: Sequence[str], source: str
) -> tuple[dict[Split, Samples], list[str]]:
    """Put images into the sets that a split names, in its order.

    Args:
        rows: The split.
        images: All images, in any order. Images with one identity take a row each, one of their class if possible.
        class_names: Names of the classes in the order of the labels.
        source: The split's file, for messages.

    Returns:
        The sets, and warnings about images that the split lacks and about rows without an image.

    Raises:
        UserError: None of the images of a set is there, or an image has two rows.
    """
    labels = images.labels.tolist()
    waiting: dict[str, list[int]] = {}
    for position, identity in enumerate(images.identify()):
        waiting.setdefault(identity, []).append(position)
    chosen: dict[Split, list[int]] = {}
    taken: dict[tuple[str, str], Split] = {}
    missing = []
    for row in rows:
        positions = waiting.get(row.identity)
        if not positions:
            if (before := taken.get((row.identity, row.file))) is not None:
                raise UserError(
                    f"{source} lists {row.file!r} twice, in the {SET_NAMES[before]} set and in the "
                    f"{SET_NAMES[row.split]} set: each image needs one row"
                )
            missing.append(row)
            continue
        same_label = (number for number, position in enumerate(positions) if class_names[labels[position]] == row.label)
        taken[row.identity, row.file] = row.split
        chosen.setdefault(row.split, []).append(positions.pop(next(same_label, 0)))
    for split in SPLITS:
        wanted = sum(row.split == split for row in rows)
        if wanted and split not in chosen:
            raise UserError(f"the data have none of the {wanted} {SET_NAMES[split]} images of {source}")
    warnings = []
    if unlisted := sorted(position for positions in waiting.values() for position in positions):
        warnings.append(
            f"not used: {plural(len(unlisted), 'image')} not in {source}, such as {images.names[unlisted[0]]!r}; a new "
            "run uses all images"
        )
    if missing:
        counts = {split: sum(row.split == split for row in missing) for split in SPLITS}
        where = ", ".join(f"{count} {SET_NAMES[split]}" for split, count in counts.items() if count)
        warnings.append(
            f"missing: {plural(len(missing), 'image')} of {source} ({where}), such as {missing[0].file!r}; the others "
            "are used"
        )
    return {split: images.subset(positions) for split, positions in chosen.items()}, warnings


def fingerprint_of(images: Samples) -> dict[str, str]:
    """Return identities and digests of a few images, by which the data are recognized wherever they lie."""
    identities = images.identify()
    positions = hash_order(identities, "subset", 0).argsort(kind="stable")[:_FINGERPRINT]
    return _contents(images.subset(positions))


def has_fingerprint(images: Samples, fingerprint: Mapping[str, str]) -> bool:
    """Return whether most images of a fingerprint are among these, with the same content."""
    identities = images.identify()
    found = _contents(images.subset([i for i, identity in enumerate(identities) if identity in fingerprint]))
    return 2 * sum(found.get(name) == content for name, content in fingerprint.items()) > len(fingerprint)


def count_known(images: Samples, fingerprint: Mapping[str, str]) -> int:
    """Return how many images of a fingerprint are among these with the same content and name, in any folder."""
    names = {PurePosixPath(identity).name for identity in fingerprint}
    identities = images.identify()
    alike = [i for i, identity in enumerate(identities) if PurePosixPath(identity).name in names]
    return len(set(_contents(images.subset(alike)).values()) & set(fingerprint.values()))


def _contents(images: Samples) -> dict[str, str]:
    identities = images.identify()
    if isinstance(images.images, Tensor):
        return dict(zip(identities, identities, strict=True))
    return dict(zip(identities, (digest.hex() for digest in digest_files(images.images)), strict=True))
