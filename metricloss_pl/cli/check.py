"""`metricloss check IMAGES`: broken files, duplicates, small classes and likely wrong labels of an image set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metricloss_pl.cli.console import print_columns, print_table, relative_path
from metricloss_pl.data.samples import SET_NAMES
from metricloss_pl.errors import plural

if TYPE_CHECKING:
    from metricloss_pl.check import Findings

__all__ = ["check"]

_SHOWN = 10  # classes of many


def check(
    images: str,
    out: str | None = None,
    comparison: str | None = None,
    images_dir: str | None = None,
    in_channels: int = 3,
) -> None:
    """Find broken images, duplicates, small classes and likely wrong labels, and write a page and a CSV list.

    Args:
        images: Folder of images, one folder per class, also within `train`, `val` and `test`; or a CSV list of images.
        out: Folder to write `check.html` and `remaining.csv` into. Default: `runs/check/` and the name of the images,
            which must not hold the check of other images.
        comparison: Folder of a comparison of these images with folds (`compare --folds 5`), whose predictions tell
            which labels are likely to be wrong.
        images_dir: Folder that the files of a CSV list start from. Default: the folder of the list.
        in_channels: Channels of the images; gray (1) and color (3) are converted into each other.

    Raises:
        UserError: The images or the comparison cannot be found, or do not belong together, or the folder of the report
            holds something else.
    """
    from metricloss_pl.check import check_images, write_report
    from metricloss_pl.check.report import check_folder

    source = Path(images).expanduser().resolve()
    default = Path("runs", "check", source.name if source.is_dir() else source.stem)
    folder = check_folder(default, source) if out is None else check_folder(out)
    findings = check_images(images, comparison, images_dir, in_channels)
    page, csv = write_report(findings, folder)
    entries, groups, classes = findings.listing.entries, findings.groups, findings.classes
    crossing, small = sum(group.crosses_splits for group in groups), [one.name for one in classes if one.is_too_small]
    rows = [
        ("images", f"{len(entries):,} of {plural(len(classes), 'class')}{_set_sizes(findings)}"),
        ("broken", _named([entries[position].name for position in findings.broken])),
        ("duplicates", f"{plural(len(groups), 'group')}, {sum(len(group.members) for group in groups):,} images"),
        *([("across sets", plural(crossing, "group"))] if findings.listing.is_divided else []),
        ("labels differ", plural(sum(len(group.labels) > 1 for group in groups), "group")),
        ("small classes", _named(small)),
        ("wrong labels", _describe_wrong_labels(findings)),
        ("page", relative_path(page)),
        ("remaining", f"{relative_path(csv)}  ({plural(len(findings.remaining), 'image')})"),
    ]
    for warning in findings.listing.warnings:
        print(f"warning: {warning}")
    print_table(rows)
    if shown := findings.noted_classes:
        print()
        numbers = [(one.name, str(one.images), str(one.tested), str(one.left_out)) for one in shown[:_SHOWN]]
        print_columns(("class", "images", "test images", "left out"), numbers)
    if len(shown) > _SHOWN:
        print(f"and {plural(len(shown) - _SHOWN, 'other class')}, on the page")


def _set_sizes(findings: Findings) -> str:
    sizes: Counter[str] = Counter(entry.split for entry in findings.listing.entries)
    if not findings.listing.is_divided:
        return ""
    return f" ({', '.join(f'{sizes[split]:,} {name}' for split, name in SET_NAMES.items() if sizes[split])})"


def _named(names: Sequence[str]) -> str:
    return f"{len(names):,}{f', such as {names[0]}' if names else ''}"


def _describe_wrong_labels(findings: Findings) -> str:
    if findings.variant is None:
        return "not checked; they need --comparison with a comparison with folds (compare --folds 5)"
    found = [findings.listing.entries[one.position].name for one in findings.wrong_labels]
    return f"{_named(found)} (by {findings.variant}, of {plural(findings.predicted, 'image')})"
