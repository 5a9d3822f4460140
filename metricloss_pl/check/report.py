"""Page with thumbnails of the suspects, and the list of the images that remain."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from metricloss_pl.check.findings import Findings
from metricloss_pl.check.listing import Entry
from metricloss_pl.data.file_checks import RUN_MARKER, find_files, is_image
from metricloss_pl.data.samples import SET_NAMES
from metricloss_pl.data.thumbnails import thumbnail
from metricloss_pl.errors import UserError
from metricloss_pl.files import replacing, writing_csv

__all__ = ["check_folder", "write_report"]

_PAGE, _REMAINING = "check.html", "remaining.csv"
_ANY_NAME: Any = {"encoding": "utf-8", "errors": "surrogateescape"}
_MAX_GROUPS, _MAX_MEMBERS, _MAX_LABELS, _MAX_FILES = 60, 8, 120, 200  # on the page


def check_folder(folder: str | Path, source: Path | None = None) -> Path:
    """Return the folder if a report may be written into it.

    Args:
        folder: The folder.
        source: What the report is about, if it may not replace that of another folder or list.

    Raises:
        UserError: It holds the report of another source, or images, which would no longer be taken for data beside a
            report.
    """
    folder = Path(folder).expanduser()
    marker = folder / RUN_MARKER
    if marker.is_file():
        if source is not None and (other := marker.read_text(**_ANY_NAME)) not in ("", _absolute(source)):
            raise UserError(f"{folder} holds the check of {other}: give another folder with --out")
    elif any((folder / name).exists() for name in (_PAGE, _REMAINING)):
        raise UserError(f"{folder} holds {_PAGE} or {_REMAINING} of something else: give another folder with --out")
    elif folder.is_dir() and any(map(is_image, find_files(folder).files)):
        raise UserError(f"{folder} holds images: give a folder of its own with --out")
    return folder


def write_report(findings: Findings, folder: str | Path) -> tuple[Path, Path]:
    """Write `check.html` and `remaining.csv`, the images without the suspects, for `ImageListDataModule`.

    Args:
        findings: What `check_images` has found.
        folder: Folder to write into, which is created if needed.

    Returns:
        Paths of the page and of the list.

    Raises:
        UserError: The folder holds images.
    """
    folder = check_folder(folder)
    page, remaining = folder / _PAGE, folder / _REMAINING
    with writing_csv(remaining) as writer:
        writer.writerows(_rows(findings, folder))
    with replacing(page) as beside:
        beside.write_text(_page(findings), encoding="utf-8", errors="replace")
    # Of any content, so that the folder is not taken for data.
    (folder / RUN_MARKER).write_text(_absolute(findings.source), **_ANY_NAME)
    return page, remaining


def _rows(findings: Findings, folder: Path) -> list[list[str]]:
    """Return the lines of the list, whose files start from its folder."""
    listing = findings.listing
    columns = ["file", "label", *["split"] * listing.is_divided, *["group"] * listing.is_grouped]
    rows = [columns]
    for entry in findings.remaining:
        cells = {"file": _path_from(folder, entry.path), **entry._asdict()}
        rows.append([cells[column] for column in columns])
    return rows


def _absolute(source: Path) -> str:
    return str(source.expanduser().resolve())


def _path_from(folder: Path, file: Path) -> str:
    try:  # links to folders are resolved, since `..` leads from where they lead to
        return Path(os.path.relpath(file.parent.resolve() / file.name, folder.resolve())).as_posix()
    except ValueError:  # on another drive
        return file.absolute().as_posix()


def _page(findings: Findings) -> str:
    entries = findings.listing.entries

    def image(position: int) -> dict[str, Any]:
        entry: Entry = entries[position]
        picture = thumbnail(entry.path)
        return {
            "name": entry.name,
            "label": entry.label,
            "split": SET_NAMES[entry.split] if findings.listing.is_divided else "",
            "is_left_out": position in findings.suspects,
            "url": None if picture is None else f"data:image/jpeg;base64,{base64.b64encode(picture).decode('ascii')}",
        }

    crossing = [group for group in findings.groups if group.crosses_splits]
    within = [group for group in findings.groups if not group.crosses_splits]
    sections = [
        {
            "id": id,
            "title": title,
            "number": len(groups),
            "groups": [
                {
                    "images": [image(position) for position in group.members[:_MAX_MEMBERS]],
                    "hidden": max(0, len(group.members) - _MAX_MEMBERS),
                    "is_exact": group.is_exact,
                    "labels": group.labels,
                }
                for group in groups[:_MAX_GROUPS]
            ],
        }
        for id, title, groups in (
            ("across", "Duplicates across sets", crossing),
            ("within", "Duplicates within a set" if findings.listing.is_divided else "Duplicates", within),
        )
        if groups
    ]
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("metricloss_pl.check"), PackageLoader("metricloss_pl.compare")]),
        autoescape=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("check.html.j2").render(
        findings=findings,
        sections=sections,
        wrong_labels=[(image(one.position), one) for one in findings.wrong_labels[:_MAX_LABELS]],
        broken=[(entries[position].name, why) for position, why in list(findings.broken.items())[:_MAX_FILES]],
        classes=findings.noted_classes,
        small=sum(one.is_too_small for one in findings.classes),
        tests=any(entry.split == "test" for entry in entries),
    )
