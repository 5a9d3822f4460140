"""Stratified and grouped subsets and splits that stay as they are when images are added, removed or listed otherwise.

Images are not drawn by their positions: they (or their groups) are ordered by a keyed hash of their identity, and the
first ones are taken. An image more moves at most the few that stand where a set ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

from metricloss_pl.data.samples import Samples
from metricloss_pl.errors import UserError

Indices = npt.NDArray[np.int64]
Purpose = Literal["subset", "validation", "test", "folds"]


def choose_per_class(samples: Samples, count: int, seed: int, class_names: list[str]) -> Indices:
    """Choose `count` images per class.

    Args:
        samples: The images to choose from.
        count: Images per class.
        seed: At least 0.
        class_names: The C names.

    Returns:
        Sorted positions (count * C,).

    Raises:
        UserError: A class has fewer images.
    """
    chosen = []
    for label, members in enumerate(_ordered_members(samples, len(class_names), "subset", seed)):
        if len(members) < count:
            raise UserError(
                f"class {class_names[label]!r} (label {label}) has {len(members)} images to choose from: {count} of "
                "each are wanted"
            )
        chosen.append(members[:count])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def split_off(
    samples: Samples,
    fraction: float,
    seed: int,
    class_names: list[str],
    *,
    purpose: Purpose = "validation",
    equal: bool = False,
) -> tuple[Indices, Indices]:
    """Cut a stratified share off, so that every class keeps at least one image in what remains.

    round(fraction * N) images are cut off. Each class gives its share rounded down, and the classes with the largest
    remainders one more. With groups, whole groups are taken, each if it brings the classes' counts nearer to their
    shares; the counts are then approximate.

    Args:
        samples: The images to split.
        fraction: In (0, 1).
        seed: At least 0.
        class_names: The C names.
        purpose: Splits for different purposes are independent of each other.
        equal: Each class gives its own share rounded to the nearest (half up), so that equal classes stay equal.

    Returns:
        Sorted positions of what remains, and of what is cut off. The latter may be empty, where no class has an image
        (or a group) to spare.
    """
    counts = np.bincount(samples.labels.numpy(), minlength=len(class_names))
    share = counts * fraction
    if samples.groups is not None:
        cut = _cut_groups(samples, share, counts, purpose, seed)
    else:
        ties = hash_order(class_names, purpose, seed)
        wanted = np.floor(share + 0.5) if equal else _largest_remainders(share, counts, ties)
        wanted = np.minimum(wanted, np.maximum(counts - 1, 0)).astype(np.int64)
        cut = np.zeros(len(samples), dtype=bool)
        for number, members in zip(wanted, _ordered_members(samples, len(class_names), purpose, seed), strict=True):
            cut[members[:number]] = True
    return np.flatnonzero(~cut), np.flatnonzero(cut)


def hash_order(names: Iterable[str], purpose: Purpose, seed: int) -> npt.NDArray[np.uint64]:
    """Return a number (N,) per name that depends on the name, the purpose and the seed alone; sort by it."""
    key = f"{purpose} {seed}".encode()
    hashes = (hashlib.blake2b(_encoded(name), digest_size=8, key=key).digest() for name in names)
    return np.frombuffer(b"".join(hashes), dtype=">u8").astype(np.uint64)


def group_numbers(names: Iterable[str]) -> Indices:
    """Return a number (N,) per name, the same whatever other names there are, for `Samples.groups`."""
    hashes = (hashlib.blake2b(_encoded(name), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(hashes), dtype=">i8").astype(np.int64)


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _ordered_members(samples: Samples, num_classes: int, purpose: Purpose, seed: int) -> list[Indices]:
    """The positions of each class's images, by their hashes; images that are the same stay in their order."""
    labels = samples.labels.numpy()
    order = np.lexsort((hash_order(samples.identify(), purpose, seed), labels))
    return np.split(order, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1])


def _largest_remainders(share: npt.NDArray[np.floating], counts: Indices, ties: npt.NDArray[np.uint64]) -> Indices:
    wanted = np.floor(share + 1e-9)  # 0.7 * 90 is a little less than 63
    missing = int(np.floor(share.sum() + 0.5) - wanted.sum())
    remainder = np.where(wanted < counts - 1, share - wanted, -1.0).round(9)
    by_remainder = np.lexsort((ties, -remainder))
    candidates = by_remainder[remainder[by_remainder] > 0]
    wanted[candidates[: max(missing, 0)]] += 1
    chosen: Indices = wanted.astype(np.int64)
    return chosen


def _cut_groups(
    samples: Samples, share: npt.NDArray[np.floating], counts: Indices, purpose: Purpose, seed: int
) -> npt.NDArray[np.bool_]:
    """Take groups in one pass: to go over them again, or back, would let one image more change them all."""
    assert samples.groups is not None
    groups, group_of_image = np.unique(samples.groups.numpy(), return_inverse=True)
    rank = np.empty(len(groups), dtype=np.int64)
    rank[np.argsort(hash_order(map(str, groups.tolist()), purpose, seed), kind="stable")] = np.arange(len(groups))
    rank_of_image = rank[group_of_image]
    # A row for each class in each group, by the groups' ranks: most groups are of one class.
    rows, images = np.unique(rank_of_image * len(counts) + samples.labels.numpy(), return_counts=True)
    starts = np.searchsorted(rows, np.arange(len(groups) + 1) * len(counts)).tolist()
    of_class, images_of_row = (rows % len(counts)).tolist(), images.tolist()
    cut, wanted, most = [0] * len(counts), share.tolist(), counts.tolist()
    taken = np.zeros(len(groups), dtype=bool)
    for group in range(len(groups)):
        members = [(of_class[row], images_of_row[row]) for row in range(starts[group], starts[group + 1])]
        # How much nearer, in squares, the classes' counts come to their shares.
        gain = sum(number * (2 * (wanted[label] - cut[label]) - number) for label, number in members)
        if gain > 1e-9 and all(cut[label] + number < most[label] for label, number in members):
            taken[group] = True
            for label, number in members:
                cut[label] += number
    return taken[rank_of_image]
