"""Findings of a check, and the images that remain without the suspects."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from metricloss_pl.check.listing import Entry, Listing, list_entries
from metricloss_pl.check.near_duplicates import Thumbnails, find_near_duplicates, read_thumbnails
from metricloss_pl.check.wrong_labels import OutOfFold, find_wrong_labels, read_out_of_fold
from metricloss_pl.data.file_checks import digest_files
from metricloss_pl.errors import UserError

__all__ = ["DuplicateGroup", "Findings", "WrongLabel", "check_images"]

_LEAST_TEST_IMAGES = 5  # per class; with fewer, its results are mostly chance
_TEST_FRACTION = 0.2  # of the images, that become the test set of images without one
_KEPT_FIRST = ("test", "val", "train")  # the test set stays as it is as far as possible


@dataclass(frozen=True)
class DuplicateGroup:
    """Images that are linked by duplicates.

    Args:
        members: Positions of the images, sorted.
        is_exact: Whether all files have the same bytes.
        crosses_splits: Whether the images are in more than one set.
        labels: Different labels of the images, sorted.
    """

    members: list[int]
    is_exact: bool
    crosses_splits: bool
    labels: list[str]


@dataclass(frozen=True)
class WrongLabel:
    """An image whose label is likely to be wrong.

    Args:
        position: Position of the image.
        probability: Probability of its label.
        suggestion: The most probable class.
        suggested_probability: Probability of that class.
    """

    position: int
    probability: float
    suggestion: str
    suggested_probability: float


@dataclass(frozen=True)
class ClassCount:
    """Images of one class.

    Args:
        name: Name of the class.
        images: Readable images.
        tested: Test images; without a test set, a fifth of the images, rounded down.
        left_out: Readable images that are left out.
    """

    name: str
    images: int
    tested: int
    left_out: int

    @property
    def is_too_small(self) -> bool:
        """Return whether the class has too few test images for results of its own."""
        return self.tested < _LEAST_TEST_IMAGES


@dataclass(frozen=True)
class Findings:
    """Findings of a check.

    Args:
        source: Folder or list that was checked.
        listing: All images.
        broken: Reason why an image cannot be used, by its position.
        groups: Groups of duplicates, those across sets first, then those with different labels, then large ones.
        wrong_labels: The least probable label first.
        variant: Variant of the comparison whose probabilities were used, and None without a comparison.
        predicted: Number of images with such probabilities.
        suspects: Positions of the images that are left out.
    """

    source: Path
    listing: Listing
    broken: dict[int, str]
    groups: list[DuplicateGroup]
    wrong_labels: list[WrongLabel]
    variant: str | None
    predicted: int
    suspects: set[int]

    @property
    def remaining(self) -> list[Entry]:
        """Return the images without the suspects."""
        return [entry for position, entry in enumerate(self.listing.entries) if position not in self.suspects]

    @property
    def noted_classes(self) -> list[ClassCount]:
        """Return the classes that are too small or lose images, the small ones first."""
        noted = [one for one in self.classes if one.is_too_small or one.left_out]
        return sorted(noted, key=lambda one: (not one.is_too_small, -one.left_out))

    @property
    def classes(self) -> list[ClassCount]:
        """Return the numbers of images of each class."""
        entries, tests = self.listing.entries, any(entry.split == "test" for entry in self.listing.entries)
        sound = [position for position in range(len(entries)) if position not in self.broken]
        images = Counter(entries[position].label for position in sound)
        tested = Counter(entries[position].label for position in sound if entries[position].split == "test")
        left_out = Counter(entries[position].label for position in self.suspects - self.broken.keys())
        return [
            ClassCount(
                name, images[name], tested[name] if tests else int(_TEST_FRACTION * images[name]), left_out[name]
            )
            for name in self.listing.class_names
        ]


def check_images(
    source: str | Path,
    comparison: str | Path | None = None,
    images_dir: str | Path | None = None,
    in_channels: int = 3,
) -> Findings:
    """Check the images of a folder or list, which are decoded once.

    An image is suspect if it cannot be decoded, if its label is likely to be wrong, or if it is a duplicate. One image
    of several duplicates remains, of the test set rather than of another one; none if their labels differ, since no
    label is known to be right.

    Args:
        source: Folder of images, as for `ImageFolderDataModule`, or CSV file, as for `ImageListDataModule`.
        comparison: Folder of a comparison of the same images with folds.
        images_dir: Folder that the files of a list start from. None: the folder of the list.
        in_channels: Channels of the images; gray (1) and color (3) are converted into each other.

    Raises:
        UserError: The images or the comparison cannot be found, or do not belong together.
    """
    if in_channels < 1:
        raise UserError(f"in_channels is {in_channels}: at least 1 is needed")
    predictions = None if comparison is None else read_out_of_fold(comparison)
    listing = list_entries(source, images_dir)
    thumbnails, broken = read_thumbnails([entry.path for entry in listing.entries], in_channels)
    sound = [position for position in range(len(listing.entries)) if position not in broken]
    contents = _find_contents(listing.entries, sound)
    different = torch.tensor(sorted(set(contents.values())), dtype=torch.int64)
    near = find_near_duplicates(Thumbnails(*(values[different] for values in thumbnails)))
    links = [(int(different[first]), int(different[second])) for first, second, _ in near]
    wrong_labels, predicted = ([], 0) if predictions is None else _wrong_labels(listing, sound, predictions, comparison)
    wrong = {label.position for label in wrong_labels}
    return Findings(
        source=Path(source),
        listing=listing,
        broken=broken,
        groups=_groups(listing.entries, contents, links),
        wrong_labels=wrong_labels,
        variant=None if predictions is None else predictions.variant,
        predicted=predicted,
        suspects={*broken, *wrong, *_superfluous(listing.entries, contents, links, wrong)},
    )


def _find_contents(entries: list[Entry], sound: list[int]) -> dict[int, int]:
    """Return for each position the first one whose file has the same bytes."""
    sizes = {position: entries[position].path.stat().st_size for position in sound}
    files_of_size = Counter(sizes.values())
    alike = [position for position in sound if files_of_size[sizes[position]] > 1]
    digests = dict(zip(alike, digest_files([entries[position].path for position in alike]), strict=True))
    first: dict[bytes, int] = {}
    return {
        position: first.setdefault(digests[position], position) if position in digests else position
        for position in sound
    }


def _groups(entries: list[Entry], contents: dict[int, int], links: list[tuple[int, int]]) -> list[DuplicateGroup]:
    """Return the groups of images that duplicates link, also by way of others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.array([*contents.items(), *links], dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(entries), len(entries)))
    members: dict[int, list[int]] = {}
    for position, number in enumerate(connected_components(graph, directed=False)[1].tolist()):
        members.setdefault(number, []).append(position)
    groups = [
        DuplicateGroup(
            members=positions,
            is_exact=len({contents[position] for position in positions}) == 1,
            crosses_splits=len({entries[position].split for position in positions}) > 1,
            labels=sorted({entries[position].label for position in positions}),
        )
        for positions in members.values()
        if len(positions) > 1
    ]
    return sorted(groups, key=lambda group: (not group.crosses_splits, len(group.labels) == 1, -len(group.members)))


def _superfluous(
    entries: list[Entry], contents: dict[int, int], links: list[tuple[int, int]], wrong: set[int]
) -> set[int]:
    """Return the duplicates to leave out: each is one of an image that remains, or of one with another label."""

    def rank(position: int) -> tuple[int, int]:
        return _KEPT_FIRST.index(entries[position].split), position

    members: dict[int, list[int]] = {}
    for position in sorted(contents, key=rank):
        members.setdefault(contents[position], []).append(position)
    neighbors: dict[int, set[int]] = {content: {content} for content in members}
    for first, second in links:
        neighbors[first].add(second)
        neighbors[second].add(first)
    labels = {content: {entries[position].label for position in positions} for content, positions in members.items()}
    kept: set[int] = set()
    left_out: set[int] = set()
    for content, positions in members.items():  # in the order of their first images
        remaining = [position for position in positions if position not in wrong][:1]
        if neighbors[content] & kept or len(set.union(*(labels[other] for other in neighbors[content]))) > 1:
            remaining = []
        elif remaining:
            kept.add(content)
        left_out.update(set(positions) - set(remaining))
    return left_out


def _wrong_labels(
    listing: Listing, sound: list[int], predictions: OutOfFold, comparison: str | Path | None
) -> tuple[list[WrongLabel], int]:
    """Return likely wrong labels, and the number of images that the comparison has predicted with their labels."""
    names, known = predictions.class_names, predictions.predictions
    position_of = {listing.entries[position].name: position for position in sound}
    labels = np.array([label for label, _ in known.values()], dtype=np.int64)
    probabilities = np.array([row for _, row in known.values()])
    # A label that was changed since is left alone.
    is_same = [name in position_of and listing.entries[position_of[name]].label == names[label]
               for name, label in zip(known, labels.tolist(), strict=True)]  # fmt: skip
    if not any(is_same):
        raise UserError(
            f"--comparison {comparison} has predicted other images, such as {next(iter(known))!r}: give the comparison "
            "of this folder or list"
        )
    every = list(known)
    found = []
    for row in find_wrong_labels(labels, probabilities).tolist():
        if is_same[row]:
            best = int(probabilities[row].argmax())
            values = float(probabilities[row, labels[row]]), names[best], float(probabilities[row, best])
            found.append(WrongLabel(position_of[every[row]], *values))
    return found, sum(is_same)
