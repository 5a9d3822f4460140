"""Which images go where: subsets and splits as index arrays, the same for a seed on every machine (NumPy's PCG64)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from metricloss_pl.errors import UserError

Indices = npt.NDArray[np.int64]


def choose_per_class(labels: Tensor, count: int, seed: int, class_names: list[str]) -> Indices:
    """Draws `count` images of each class.

    Args:
        labels: (N,) in [0, C).
        count: Images a class.
        seed: At least 0.
        class_names: The C names.

    Returns:
        Sorted positions (count * C,).

    Raises:
        UserError: A class has fewer images.
    """
    array = labels.numpy()
    chosen = []
    for label, (name, members) in enumerate(zip(class_names, _shuffled_members(array, class_names, seed), strict=True)):
        if len(members) < count:
            raise UserError(
                f"class {name!r} (label {label}) has {len(members)} images to choose from: {count} of each are wanted"
            )
        chosen.append(members[:count])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def split_off(
    labels: Tensor,
    fraction: float,
    seed: int,
    *,
    groups: Tensor | None = None,
    equal: bool = False,
) -> tuple[Indices, Indices]:
    """Cuts a stratified share off, so that every class keeps at least one image in what remains.

    round(fraction * N) images are cut off. Each class gives its share rounded down, and the classes with the largest
    remainders one more (ties are drawn). With groups, whole groups are moved over and back, in a drawn order,
    while that brings the classes' counts nearer to their shares; the counts are then approximate.

    Args:
        labels: (N,), at least 0.
        fraction: In (0, 1).
        seed: At least 0.
        groups: (N,) images of one group stay together.
        equal: Each class gives its own share rounded to the nearest (half up), so that equal classes stay equal.

    Returns:
        Sorted positions of what remains, and of what is cut off. The latter may be empty, where no class has an image
        (or a group) to spare.
    """
    array = labels.numpy()
    generator = np.random.Generator(np.random.PCG64(seed))
    counts = np.bincount(array)
    share = counts * fraction
    if groups is not None:
        cut = _cut_groups(array, groups.numpy(), share, counts, generator)
    else:
        wanted = np.floor(share + 0.5) if equal else _largest_remainders(share, counts, generator)
        wanted = np.minimum(wanted, np.maximum(counts - 1, 0)).astype(np.int64)
        members = _members(array, len(counts))
        cut = np.zeros(len(array), dtype=bool)
        for label, number in enumerate(wanted):
            cut[generator.permutation(members[label])[:number]] = True
    return np.flatnonzero(~cut), np.flatnonzero(cut)


def _members(labels: Indices, num_classes: int) -> list[Indices]:
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels, minlength=num_classes))[:-1])


def _shuffled_members(labels: Indices, class_names: list[str], seed: int) -> list[Indices]:
    generator = np.random.Generator(np.random.PCG64(seed))
    return [generator.permutation(members) for members in _members(labels, len(class_names))]


def _largest_remainders(share: npt.NDArray[np.floating], counts: Indices, generator: np.random.Generator) -> Indices:
    wanted = np.floor(share + 1e-9)  # 0.7 * 90 is a little less than 63
    missing = int(np.floor(share.sum() + 0.5) - wanted.sum())
    remainder = np.where(wanted < counts - 1, share - wanted, -1.0).round(9)
    by_remainder = np.lexsort((generator.permutation(len(share)), -remainder))
    candidates = by_remainder[remainder[by_remainder] > 0]
    wanted[candidates[: max(missing, 0)]] += 1
    chosen: Indices = wanted.astype(np.int64)
    return chosen


def _cut_groups(
    labels: Indices,
    groups: Indices,
    share: npt.NDArray[np.floating],
    counts: Indices,
    generator: np.random.Generator,
) -> npt.NDArray[np.bool_]:
    names, group_of_image = np.unique(groups, return_inverse=True)
    table = np.zeros((len(names), len(counts)), dtype=np.int64)
    np.add.at(table, (group_of_image, labels), 1)
    taken = np.zeros(len(names), dtype=bool)
    cut = np.zeros(len(counts), dtype=np.int64)
    order = generator.permutation(len(names))
    changed = True
    while changed:  # ends, because every change brings the counts nearer
        changed = False
        for group in order:
            other = cut - table[group] if taken[group] else cut + table[group]
            leaves_one = ((other < counts) | (counts == 0)).all()
            if leaves_one and ((other - share) ** 2).sum() < ((cut - share) ** 2).sum() - 1e-9:
                taken[group], cut, changed = not taken[group], other, True
    return taken[group_of_image]
