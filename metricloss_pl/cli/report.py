"""`metricloss report FOLDER`: report of a comparison, written again from its results."""

from __future__ import annotations

from pathlib import Path

from metricloss_pl.cli.console import print_table, relative_path

__all__ = ["show_report"]


def show_report(folder: str) -> None:
    """Write the report and the figures of a comparison from its stored results, without any training.

    Args:
        folder: Folder of the comparison, which may be incomplete.

    Raises:
        UserError: The folder holds no plan of a comparison.
    """
    from metricloss_pl.compare.report import write_report

    page = write_report(Path(folder))
    rows = [("report", page), ("Markdown", page.with_suffix(".md")), ("table", page.with_name("results.csv"))]
    print_table([(name, relative_path(path)) for name, path in rows])
