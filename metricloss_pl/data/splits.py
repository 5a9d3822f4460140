"""Stratified and grouped subsets, hold-out splits and folds that do not depend on the order or number of images.

Images are not drawn by their positions: they (or their groups) are ordered by a keyed hash of their identity, and the
first ones are taken. An additional image moves at most the few images at the border of a set. Scikit-learn's splitters
draw by position, so that every image could move.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt

from metricloss_pl.data.samples import Samples, concatenate
from metricloss_pl.errors import UserError, plural

Indices = npt.NDArray[np.int64]
Purpose = Literal["subset", "validation", "test", "folds"]


def divide_training(
    train: Samples,
    val: Samples | None,
    class_names: list[str],
    *,
    val_fraction: float,
    samples_per_class: int | None,
    seed: int,
) -> tuple[Samples, Samples | None]:
    """Return the training and validation images that are used.

    Args:
        train: Images for training.
        val: Images for validation. None: they are cut from those for training.
        class_names: The C names.
        val_fraction: Share for validation, in [0, 1). 0: everything is for training.
        samples_per_class: Images per class, training and validation together. None: all.
        seed: At least 0.

    Raises:
        UserError: A class has fewer images than wanted, or none for training; or no image is left for validation.
    """
    if val is not None and val_fraction == 0:
        train, val = concatenate(train, val), None
    if val is not None and samples_per_class is not None:
        in_val = math.floor(samples_per_class * val_fraction + 0.5)
        if not 0 < in_val < samples_per_class:
            raise _no_validation(val_fraction, samples_per_class)
        val = _subset_per_class(val, in_val, seed, class_names)
        train = _subset_per_class(train, samples_per_class - in_val, seed, class_names)
    elif samples_per_class is not None:
        train = _subset_per_class(train, samples_per_class, seed, class_names)
    if val is None and val_fraction > 0:
        train = train.identified()
        equal = samples_per_class is not None
        kept, cut = split_off(train, val_fraction, seed, class_names, equal=equal)
        if len(cut) == 0:
            raise _no_validation(val_fraction, samples_per_class)
        train, val = train.subset(kept), train.subset(cut)
    counts = train.counts(len(class_names)).tolist()
    empty = [name for name, count in zip(class_names, counts, strict=True) if count == 0]
    if empty:
        more = f" and {plural(len(empty) - 1, 'other class')}" if len(empty) > 1 else ""
        raise UserError(f"class {empty[0]!r}{more}: no training image; add images or remove the class")
    return train, val


def _no_validation(val_fraction: float, samples_per_class: int | None) -> UserError:
    of = "" if samples_per_class is None else f" of samples_per_class {samples_per_class}"
    return UserError(
        f"val_fraction {val_fraction}{of} leaves no image for training or none for validation: change val_fraction, or "
        "set it to 0 to train on everything"
    )


def _subset_per_class(samples: Samples, count: int, seed: int, class_names: list[str]) -> Samples:
    samples = samples.identified()
    return samples.subset(choose_per_class(samples, count, seed, class_names))


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
                f"class {class_names[label]!r} (label {label}) has {plural(len(members), 'image')} to choose from: "
                f"{count} per class are wanted"
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
    """Cut a stratified share off, so that every class keeps at least one image in the rest.

    round(fraction * N) images are cut off. Each class gives its share rounded down, and the classes with the largest
    remainders one more. With groups, whole groups are taken, each if it brings the class counts nearer to their
    shares; the counts are then approximate.

    Args:
        samples: The images to split.
        fraction: In (0, 1).
        seed: At least 0.
        class_names: The C names.
        purpose: Splits for different purposes are independent of each other.
        equal: Each class gives its own share rounded to the nearest (half up), so that equal classes stay equal.

    Returns:
        Sorted positions of the rest, and of the images that are cut off. The latter may be empty, if no class has an
        image (or a group) to spare.
    """
    counts = samples.counts(len(class_names)).numpy()
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


def assign_folds(samples: Samples, folds: int, seed: int, class_names: list[str]) -> Indices:
    """Return the fold of each image (N,): classes as evenly distributed as possible, groups undivided.

    Raises:
        UserError: A class has fewer images than there are folds, or all its images are of one group.
    """
    for name, count in zip(class_names, samples.counts(len(class_names)).tolist(), strict=True):
        if count < folds:
            raise UserError(f"class {name!r} has {plural(count, 'image')}: folds is {folds}, and each fold needs one")
    samples = samples.identified()
    numbers = np.zeros(len(samples), dtype=np.int64)
    rest = np.arange(len(samples))
    for fold in range(folds - 1):
        kept, cut = split_off(samples.subset(rest), 1 / (folds - fold), seed, class_names, purpose="folds")
        numbers[rest[cut]] = fold
        rest = rest[kept]
    numbers[rest] = folds - 1
    for fold in range(folds):
        outside = samples.subset(np.flatnonzero(numbers != fold)).counts(len(class_names))
        if not (numbers == fold).any() or (outside == 0).any():
            missing = class_names[int(outside.argmin())]
            raise UserError(f"folds is {folds}: class {missing!r} has too few groups for so many folds")
    return numbers


def hash_order(names: Iterable[str], purpose: Purpose, seed: int) -> npt.NDArray[np.uint64]:
    """Return a number (N,) per name that depends on the name, the purpose and the seed alone; sort by it."""
    key = f"{purpose} {seed}".encode()
    hashes = (hashlib.blake2b(_encoded(name), digest_size=8, key=key).digest() for name in names)
    return np.frombuffer(b"".join(hashes), dtype=">u8").astype(np.uint64)


def group_numbers(names: Iterable[str]) -> Indices:
    """Return a number (N,) per name for `Samples.groups`, which does not depend on the other names."""
    hashes = (hashlib.blake2b(_encoded(name), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(hashes), dtype=">i8").astype(np.int64)


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _ordered_members(samples: Samples, num_classes: int, purpose: Purpose, seed: int) -> list[Indices]:
    """Return the positions of each class's images, ordered by their hashes; equal images stay in their order."""
    order = np.lexsort((hash_order(samples.identify(), purpose, seed), samples.labels.numpy()))
    return np.split(order, np.cumsum(samples.counts(num_classes).numpy())[:-1])


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
    """Take groups in one pass: with several passes, one additional image could change all choices."""
    assert samples.groups is not None
    groups, group_of_image = np.unique(samples.groups.numpy(), return_inverse=True)
    rank = np.empty(len(groups), dtype=np.int64)
    rank[np.argsort(hash_order(map(str, groups.tolist()), purpose, seed), kind="stable")] = np.arange(len(groups))
    rank_of_image = rank[group_of_image]
    # A row for each class in each group, by the groups' ranks: most groups are of one class.
    rows, images = np.unique(rank_of_image * len(counts) + samples.labels.numpy(), return_counts=True)
    starts = np.searchsorted(rows, np.arange(len(groups) + 1) * len(counts)).tolist()
    class_of_row, images_of_row = (rows % len(counts)).tolist(), images.tolist()
    cut, wanted, most = [0] * len(counts), share.tolist(), counts.tolist()
    taken = np.zeros(len(groups), dtype=bool)
    for group in range(len(groups)):
        members = [(class_of_row[row], images_of_row[row]) for row in range(starts[group], starts[group + 1])]
        # Decrease of the squared distance between the class counts and their shares.
        gain = sum(number * (2 * (wanted[label] - cut[label]) - number) for label, number in members)
        if gain > 1e-9 and all(cut[label] + number < most[label] for label, number in members):
            taken[group] = True
            for label, number in members:
                cut[label] += number
    return taken[rank_of_image]
