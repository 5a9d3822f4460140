"""What finished runs found: one line of JSON a run, appended whole, read as far as it is sound."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from filelock import FileLock, Timeout

from metricloss_pl.compare.plan import Metric
from metricloss_pl.compare.words import count, named, shortened
from metricloss_pl.data.file_checks import RUN_MARKER
from metricloss_pl.errors import UserError, reason
from metricloss_pl.files import no_room, replacing

__all__ = ["Line", "Results", "is_number"]

Line = dict[str, Any]

# What a line says, and what plan.json says of each of its runs, by key.
_RUN: dict[str, Any] = {
    "kind": str,
    "variant": str,
    "samples_per_class": int | None,
    "split": int,
    "fold": int | None,
    "seed": int,
}
_LINE = {"key": str, **_RUN, "status": str, "reason": str | None, "settings": dict, "metrics": dict, "history": dict}
_PLAN = {"variants": dict, "baseline": str, "samples_per_class": list, "class_names": list, "keys": dict}
_LATER = {"tuning": dict, "warnings": list, "parts": list}  # which the plans of older versions may lack
_PART = {"kind": str, "samples_per_class": int | None, "split": int, "fold": int | None, "train": int, "val": int}
_KINDS = ("trial", "final")
_STATUSES = ("ok", "pruned", "failed")


@dataclass
class Results:
    """The folder of a comparison, which any number of processes may write to, also of machines that share it.

    ``results.jsonl`` has a line for each finished run, ``predictions/<key>.npz`` its arrays, ``plan.json`` what is to
    be run. Who is at a run holds a lock on ``.claims/<key>.lock``, which ends with the process, however that ends.

    Args:
        folder: Where they are, or will be once :meth:`make` has made it.
        notes: What :meth:`read` has passed over, in words.
        others: Keys of the results that it has passed over since they are of other plans.
    """

    folder: Path
    notes: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.file = self.folder / "results.jsonl"

    def make(self) -> None:
        """Make the folder, where it is missing.

        Raises:
            UserError: There can't be one.
        """
        try:
            for name in ("predictions", ".claims"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder} can't hold a comparison ({error.strerror}): give another folder") from error

    def read(self, planned: Mapping[str, Mapping[str, Any]]) -> dict[str, Line]:
        """The lines of these runs by key, of several of one run the last; :attr:`notes` name what does not count.

        That is what is torn, or lacks its predictions. What says anything else of a run than the plan is in
        :attr:`others`.

        Args:
            planned: What the plan says of each run, by key.

        Raises:
            UserError: The file can't be read.
        """
        lines: dict[str, Line] = {}
        torn, replaced = [], 0
        self.notes, self.others = [], []
        for number, row in enumerate(self._content().split(b"\n"), start=1):
            if not row.strip():
                continue
            line = _sound(row)
            if line is None:
                torn.append(str(number))
            elif line["key"] not in planned or not planned[line["key"]].items() <= line.items():
                self.others.append(line["key"])
            else:
                replaced += line["key"] in lines
                lines[line["key"]] = line
        if torn:
            which = ", ".join(shortened(torn, 5))
            self.notes.append(f"{count(len(torn), 'line')} of results.jsonl left out, torn or no result: {which}")
        if replaced:
            self.notes.append(f"{count(replaced, 'result')} replaced by a later one of the same run")
        for line in [line for line in lines.values() if not self._has_predictions(line)]:
            self.notes.append(f"{named(line)}: left out, its predictions are missing")
            del lines[line["key"]]
        return lines

    def _content(self) -> bytes:
        try:
            return self.file.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise UserError(
                f"{self.file} can't be read ({reason(error)}): it must be the file that compare has written"
            ) from error

    def _has_predictions(self, line: Line) -> bool:
        try:
            return line.get("predictions") is None or (self.folder / line["predictions"]).is_file()
        except (OSError, ValueError):  # no name that a file can have
            return False

    def append(self, line: Line, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Add a line for good, its arrays first; no other process writes meanwhile.

        Raises:
            UserError: There is no room for it; nothing of it stays.
        """
        if arrays is not None:
            line = {**line, "predictions": f"predictions/{line['key']}.npz"}
            packed = io.BytesIO()  # a zip file that can't be written whole would complain once more on its own
            np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
            with replacing(self.folder / line["predictions"]) as beside, beside.open("wb", buffering=0) as file:
                _write(file, packed.getvalue())
        row = json.dumps(line).encode() + b"\n"
        with FileLock(self.folder / ".claims" / "results.lock"), self.file.open("a+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # torn by a crash
                    row = b"\n" + row
            try:
                _write(file, row)
            except OSError as error:
                file.truncate(size)
                raise no_room(self.file, error) from error

    def remove(self, seen: Mapping[str, Line]) -> None:
        """Take out all lines of runs that are to be done again; no other process writes meanwhile.

        Args:
            seen: What :meth:`read` has found of these runs, by key. A run stays whose last line is another one by now.
        """
        with FileLock(self.folder / ".claims" / "results.lock"):
            lines = [(row, _sound(row)) for row in self._content().splitlines(keepends=True)]
            last = {line["key"]: line for _, line in lines if line is not None}
            again = {key for key, line in seen.items() if last.get(key) == line}
            kept = b"".join(row for row, line in lines if line is None or line["key"] not in again)
            with replacing(self.file) as beside, beside.open("wb", buffering=0) as file:
                _write(file, kept)

    def held(self, keys: Iterable[str]) -> dict[str, Path]:
        """The claims of those runs that a process is at just now, by key."""
        claims = {key: self.folder / ".claims" / f"{key}.lock" for key in keys}
        held = {}
        for key in [key for key, claim in claims.items() if claim.exists()]:
            with self.claimed(key) as mine:
                if not mine:
                    held[key] = claims[key]
        return held

    @contextmanager
    def claimed(self, key: str) -> Iterator[bool]:
        """Whether this process, and no other, may do a run, for as long as it is within."""
        lock = FileLock(self.folder / ".claims" / f"{key}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write plan.json."""
        (self.folder / RUN_MARKER).touch()
        with replacing(self.folder / "plan.json") as beside:
            beside.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")

    def read_plan(self) -> dict[str, Any]:
        """What plan.json holds.

        Raises:
            UserError: There is none, or it is not as :meth:`write_plan` has written it.
        """
        file = self.folder / "plan.json"
        must = "it must be the plan that compare has written"
        try:
            plan: dict[str, Any] = _loaded(file.read_bytes())
        except OSError as error:
            raise UserError(
                f"{file} can't be read ({reason(error)}): a report is made from a comparison's folder"
            ) from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} is no JSON ({reason(error)}): {must}") from error
        for name, kind in _PLAN.items():
            if not isinstance(plan, dict) or not isinstance(plan.get(name), kind):
                raise UserError(f"{file} holds no {name!r}: {must}")
        for name, kind in _LATER.items():
            if not isinstance(plan.get(name, kind()), kind):
                raise UserError(f"{file}: {name} is {plan[name]!r}: {must}")
        for part in plan.get("parts", []):
            if not isinstance(part, dict) or not _has(part, _PART) or (part["kind"] == "trial" and part["val"] < 1):
                raise UserError(f"{file}: of the parts it says {part!r}: {must}")
        variants, sizes = plan["variants"], plan["samples_per_class"]
        if not sizes or not all(isinstance(size, int | None) for size in sizes):
            raise UserError(f"{file}: samples_per_class is {sizes}: {must}")
        if plan.get("metric") not in (None, *get_args(Metric)):
            raise UserError(f"{file}: metric is {plan['metric']!r}: {must}")
        if plan["baseline"] not in variants:
            raise UserError(f"{file}: the baseline {plan['baseline']!r} is none of the variants {list(variants)}")
        for name, variant in variants.items():
            if not isinstance(variant, dict):
                raise UserError(f"{file}: the variant {name!r} is {variant!r}: {must}")
        for key, run in plan["keys"].items():
            known = isinstance(run, dict) and _has(run, _RUN) and run["kind"] in _KINDS
            if not known or run["variant"] not in variants or run["samples_per_class"] not in sizes:
                raise UserError(f"{file}: of the run {key!r} it says {run!r}: {must}")
        return plan


def _write(file: io.FileIO, content: bytes) -> None:
    """Write all of it to the disk."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())


def _sound(row: bytes) -> Line | None:
    """The result that a row holds, or None if it is torn or something else."""
    try:
        line = _loaded(row)
    except (ValueError, RecursionError):  # also text that is no UTF-8
        return None
    if not isinstance(line, dict) or not _has(line, _LINE) or line["status"] not in _STATUSES:
        return None
    curves = line["history"].values()
    if not all(isinstance(curve, list) for curve in curves) or len({len(curve) for curve in curves}) > 1:
        return None
    numbers = [line.get("seconds"), *line["metrics"].values(), *(value for curve in curves for value in curve)]
    sound = all(number is None or is_number(number) for number in numbers)
    return line if sound and isinstance(line.get("predictions"), str | None) else None


def is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold; JSON knows larger ones."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def _has(entry: Mapping[str, Any], kinds: Mapping[str, Any]) -> bool:
    return all(name in entry and isinstance(entry[name], kind) for name, kind in kinds.items())


def _loaded(text: bytes) -> Any:
    """What a JSON text holds; a NaN is what is not known."""
    return json.loads(text, parse_constant=lambda name: None if name == "NaN" else float(name))
