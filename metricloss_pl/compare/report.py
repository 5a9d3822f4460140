"""The report on a comparison: a verdict in words, tables, figures, and the conditions, from stored results alone."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metricloss_pl.compare import remarks
from metricloss_pl.compare.conditions import conditions
from metricloss_pl.compare.document import (
    Block,
    Cell,
    Facts,
    Heading,
    Picture,
    Table,
    TableRow,
    Text,
    Verdict,
    to_html,
    to_markdown,
)
from metricloss_pl.compare.pictures import Pictures
from metricloss_pl.compare.statistics import LEVEL
from metricloss_pl.compare.summary import Findings, Row, read
from metricloss_pl.compare.words import (
    at_size,
    count,
    duration,
    estimate_cell,
    listed,
    named,
    p_equals,
    p_value,
    percent,
    settings_text,
    shortened,
    signed,
    size_name,
)
from metricloss_pl.files import replacing

__all__ = ["write_report"]

_FIGURES = "figures"
_MAX_FAILURES = 100
_MAX_VARIANTS_NAMED = 3


def write_report(folder: Path) -> Path:
    """Writes ``report.html``, ``report.md``, ``report.csv`` and ``figures/`` beside the results of a comparison.

    The same results give the same files, byte for byte.

    Args:
        folder: Of the comparison, with ``plan.json`` and ``results.jsonl``, which may be incomplete.

    Returns:
        ``report.html``.

    Raises:
        UserError: There is no sound plan in the folder.
    """
    folder = Path(folder)
    comparison = read(folder)
    title = f"Comparison: {comparison.plan.get('name') or folder.resolve().name}"
    blocks = _Report(comparison).blocks()
    for old in _figures_of(folder / "report.md"):
        old.unlink(missing_ok=True)
    for image in (image for block in blocks if isinstance(block, Picture) for image in block.images):
        _write(folder / _FIGURES / image.file, image.content)
    _write(folder / "report.md", to_markdown(title, blocks, _FIGURES).encode("utf-8", "replace"))
    _write(folder / "report.csv", _csv(comparison).encode("utf-8", "replace"))
    _write(folder / "report.html", to_html(title, blocks).encode("utf-8", "replace"))
    return folder / "report.html"


def _figures_of(report: Path) -> list[Path]:
    """The figures that an earlier report shows; others in their folder are a user's own."""
    text = report.read_text(encoding="utf-8", errors="replace") if report.is_file() else ""
    return [report.parent / _FIGURES / name for name in re.findall(rf"\]\({_FIGURES}/(\w+\.(?:svg|jpg))\)", text)]


def _write(file: Path, content: bytes) -> None:
    with replacing(file) as beside:
        beside.write_bytes(content)


class _Report:
    """The blocks of a report.

    Args:
        comparison: The results.
    """

    def __init__(self, comparison: Findings) -> None:
        self.comparison = comparison
        planned = count(len(comparison.planned), "final run")
        failed = f"{len(comparison.failed_finals)} of {planned} failed. " if comparison.failed_finals else ""
        missing = f"Incomplete: {len(comparison.missing)} of {planned} missing. " if comparison.missing else ""
        self.mark = f"{missing}{failed}"
        self.pictures = Pictures(comparison, self.mark)
        self.metric = "Balanced accuracy" if comparison.balanced else "Accuracy"

    def blocks(self) -> list[Block]:
        """All of them, in their order."""
        return [
            *self.verdict(),
            *self.tables(),
            *self.pictures.blocks(),
            *self.settings(),
            *self.left_out(),
            Heading("Conditions", "conditions"),
            Facts(conditions(self.comparison)),
        ]

    # --------------------------------------------------------------------------------------------------------- verdict

    def verdict(self) -> list[Block]:
        """What was found, in words."""
        comparison = self.comparison
        sizes = len(comparison.sizes)
        others = [row for row in comparison.overall if row.variant != comparison.baseline]
        tested = [row for row in others if row.p is not None]
        found = [row for row in tested if _is_shown(row)]
        if not others:
            headline = f"Nothing to compare: {comparison.baseline} is the only variant."
        elif not tested:
            headline = f"No test: {self._why_no_test()}"
        else:
            headline = self._finding(found) if found else "No difference shown."
        averaged = f", averaged over {sizes} sizes" if sizes > 1 else ""
        corrected = f"; p corrected for {len(tested)} tests" if len(tested) > 1 else ""
        before = f"{self.metric} minus that of {comparison.baseline}{averaged}, with 95 % intervals{corrected}:"
        items = [
            f"{row.variant}: {signed(row.difference.mean)} points, {signed(row.difference.low)} to "
            f"{signed(row.difference.high)}; {p_equals(row.p)}, {'a' if row in found else 'no'} difference"
            f"{'' if row in found else ' shown'}{self._of_sound_runs(row)}"
            for row in tested
            if row.difference is not None and row.p is not None
        ]
        after = []
        if len(found) < len(tested) and not remarks.is_small(comparison):
            after.append(f"Where no difference is shown there may be one: {remarks.least_difference(comparison)}.")
        if tested and len(tested) < len(others):
            untested = [row.variant for row in others if row not in tested]
            after.append(f"Not tested for want of complete results: {listed(untested)}.")
        if tested and sizes > 1:
            after.append(self._by_size())
        means = {row.variant: row.accuracy.mean for row in comparison.overall if row.accuracy is not None}
        if len(means) > 1 and not found:
            highest = percent(max(means.values()))
            best = [variant for variant, mean in means.items() if percent(mean) == highest]
            if len(best) == len(means):
                after.append(f"The means of all variants are {highest} %.")
            elif len(best) <= _MAX_VARIANTS_NAMED:
                after.append(f"The highest mean is that of {listed(best)}, {highest} %; that alone shows nothing.")
            else:
                after.append(
                    f"The highest mean is that of {len(best)} variants, {highest} %; that alone shows nothing."
                )
        blocks: list[Block] = [Verdict(headline, [before] if items else [], items, after)]
        if warnings := remarks.warnings(comparison):
            blocks.append(Text(warnings, as_list=len(warnings) > 1, warning=True))
        if comparison.missing:
            missing = f"{len(comparison.missing)} of {count(len(comparison.planned), 'final run')} missing"
            text = f"Incomplete: {missing}. What is said here may change with them. They are listed below."
            blocks.append(Text([text], warning=True))
        return blocks

    def _finding(self, found: Sequence[Row]) -> str:
        """Which variants differ from the baseline, and by how much."""
        groups: dict[str, list[str]] = {}
        for sign, word in ((1, "better"), (-1, "worse")):
            for row in found:
                if row.difference is not None and sign * row.difference.mean > 0:
                    text = f"{row.variant} ({signed(row.difference.mean)} points)"
                    groups.setdefault(f"{word}{self._of_sound_runs(row)}", []).append(text)
        parts = []
        for words, names in groups.items():
            subject = listed(names) if len(names) <= _MAX_VARIANTS_NAMED else count(len(names), "variant")
            parts.append(f"{subject} {'is' if len(names) == 1 else 'are'} {words}")
        return f"Compared with {self.comparison.baseline}, {listed(parts)}."

    def _of_sound_runs(self, row: Row) -> str:
        """What is to be said of a difference where runs of the variant or of the baseline failed."""
        compared = (row.variant, self.comparison.baseline)
        failed = any(
            run["variant"] in compared and run["samples_per_class"] in row.sizes
            for run in self.comparison.failed_finals
        )
        return " in the runs that did not fail" if failed else ""

    def _by_size(self) -> str:
        tests = count(sum(row.p is not None for row in self.comparison.rows), "test")
        found = [row for row in self.comparison.rows if _is_shown(row)]
        if not found:
            return f"At no single size is a difference shown ({tests}, corrected together)."
        parts = [
            f"{row.variant} {at_size(row.size)} ({signed(row.difference.mean)} points{self._of_sound_runs(row)})"
            for row in found
            if row.difference is not None
        ]
        return f"At single sizes differences are shown for {listed(parts)} ({tests}, corrected together)."

    def _why_no_test(self) -> str:
        if not self.comparison.finals and not self.comparison.missing:
            return "every final run failed."
        if not self.comparison.finals:
            return "there is no final run yet."
        if not self.comparison.predictions:
            return "no predictions are stored."
        if all(row.accuracy is None or row.accuracy.repetitions < 2 for row in self.comparison.rows):
            return (
                "one training of each variant can't tell what training again would change; several seeds or folds can."
            )
        return "too few runs of the same size, split and seed are complete."

    # ---------------------------------------------------------------------------------------------------------- tables

    def tables(self) -> list[Block]:
        """Over all sizes, then for each."""
        comparison = self.comparison
        several = len(comparison.sizes) > 1
        tests = sum(row.p is not None for row in comparison.rows)
        blocks: list[Block] = [Heading("Results", "results"), Text([remarks.in_plain_words(comparison)])]
        if several:
            blocks.append(self._table(comparison.overall, f"Mean over {len(comparison.sizes)} sizes."))
        for size in comparison.sizes:
            rows = [row for row in comparison.rows if row.size == size]
            together = f" p is corrected for {count(tests, 'test')} at all sizes." if several and tests else ""
            blocks.append(self._table(rows, f"{size_name(size).capitalize()}.{together}"))
        return [
            *blocks,
            Heading("How to read this", "how-to-read", level=3),
            Facts(remarks.how_to_read(comparison)),
            Text(remarks.technical_terms(comparison)),
        ]

    def _table(self, rows: Sequence[Row], caption: str) -> Table:
        baseline = self.comparison.baseline
        lines = []
        for row in rows:
            difference = "baseline" if row.variant == baseline else estimate_cell(row.difference, signed, spread=False)
            cells: list[Cell] = [
                estimate_cell(row.accuracy, percent),
                difference,
                p_value(row.p),
                percent(row.other),
                signed(row.gap),
                duration(row.seconds),
                _runs(row),
            ]
            lines.append(TableRow(row.variant, cells, self.pictures.colour(row.variant)))
        names = ("balanced, %", "accuracy, %") if self.comparison.balanced else ("accuracy, %", "balanced, %")
        columns = ["variant", names[0], f"minus {baseline}", "p", names[1], "gap", "time a run", "runs"]
        return Table(f"{self.mark}{caption}", columns, lines)

    def settings(self) -> list[Block]:
        """What tuning has chosen."""
        rows = []
        for variant in self.comparison.variants:
            cells = []
            for size in self.comparison.sizes:
                runs = self.comparison.finals_of(variant, size).values()
                chosen = dict.fromkeys(settings_text(self._tuned(run)) for run in runs)
                cells.append("; ".join(filter(None, chosen)) or ("as configured" if chosen else ""))
            rows.append(TableRow(variant, cells, self.pictures.colour(variant)))
        columns = ["variant", *map(size_name, self.comparison.sizes)]
        caption = f"{self.mark}Settings of the final runs, as tuning has chosen them."
        return [Heading("Chosen settings", "settings"), Table(caption, columns, rows)]

    def _tuned(self, run: dict[str, Any]) -> dict[str, Any]:
        """Those settings of a run that are tuned, where the plan names them."""
        space = self.comparison.plan["variants"][run["variant"]].get("space")
        settings: dict[str, Any] = run.get("settings") or {}
        return settings if space is None else {name: value for name, value in settings.items() if name in space}

    # -------------------------------------------------------------------------------------------------------- left out

    def left_out(self) -> list[Block]:
        """What is missing, what failed, and what could not be read."""
        comparison = self.comparison
        blocks: list[Block] = []
        if comparison.missing:
            lines = [named(run) for run in comparison.missing.values()]
            blocks += [Heading("Missing", "missing"), Text(shortened(lines), as_list=True)]
        if comparison.failed:
            rows = [
                TableRow(
                    named(run), ["trial" if run["kind"] == "trial" else "final", str(run.get("reason") or "unknown")]
                )
                for run in comparison.failed[:_MAX_FAILURES]
            ]
            some = f" These are the first {len(rows)}." if len(rows) < len(comparison.failed) else ""
            caption = f"{self.mark}{count(len(comparison.failed), 'run')} failed.{some}"
            blocks += [Heading("Failures", "failures"), Table(caption, ["run", "kind", "reason"], rows)]
        if comparison.notes:
            blocks += [Heading("Left out", "left-out"), Text(shortened(comparison.notes), as_list=True)]
        return blocks


def _is_shown(row: Row) -> bool:
    return row.p is not None and row.p <= LEVEL


def _runs(row: Row) -> str:
    """How many final runs a row stands on."""
    if row.done >= row.planned:
        return str(row.done)
    return f"{row.done} of {row.planned}{f', {row.failed} failed' if row.failed else ''}"


def _csv(comparison: Findings) -> str:
    """The table with a line a size and variant, in shares of 1; nothing stands where nothing is known."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    first, other = ("balanced_accuracy", "accuracy") if comparison.balanced else ("accuracy", "balanced_accuracy")
    writer.writerow(
        ["samples_per_class", "variant", "runs", "failed", "planned", first, "spread", "low", "high", "difference",
         "difference_low", "difference_high", "p_corrected", other, "train_accuracy", "gap", "seconds"]
    )  # fmt: skip
    rows = [("all" if row.size is None else str(row.size), row) for row in comparison.rows]
    if len(comparison.sizes) > 1:
        rows = [("mean over sizes", row) for row in comparison.overall] + rows
    for size, row in rows:
        own, paired = row.accuracy, row.difference
        numbers = [
            *((None,) * 4 if own is None else (own.mean, own.spread, own.low, own.high)),
            *((None,) * 3 if paired is None else (paired.mean, paired.low, paired.high)),
            row.p, row.other, row.train, row.gap, row.seconds,
        ]  # fmt: skip
        writer.writerow(
            [size, row.variant, row.done, row.failed, row.planned, *("" if n is None else f"{n:.6g}" for n in numbers)]
        )
    return stream.getvalue()
