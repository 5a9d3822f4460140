"""What finished runs found: one line of JSON a run, appended whole, read as far as it is sound."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from metricloss_pl.errors import UserError
from metricloss_pl.files import replacing

__all__ = ["Results"]

Line = dict[str, Any]
_NEEDED = ("key", "kind", "variant", "seed", "status", "metrics", "history", "settings")


@dataclass
class Results:
    """The folder of a comparison, which any number of processes may write to, also of machines that share it.

    ``results.jsonl`` has a line for each finished run, ``predictions/<key>.npz`` its arrays, ``plan.json`` what is to
    be run. Who is at a run holds a lock on ``.claims/<key>.lock``, which ends with the process, however that ends.

    Args:
        folder: Where they are, or will be once :meth:`make` has made it.
        left_out: What :meth:`read` has passed over, in words.
    """

    folder: Path
    left_out: list[str] = field(default_factory=list)

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

    def read(self, keys: Collection[str]) -> dict[str, Line]:
        """The lines of these runs by key; what is torn or of other runs is left out, and named."""
        lines: dict[str, Line] = {}
        torn, foreign = [], 0
        for number, row in enumerate((self.file.read_bytes() if self.file.exists() else b"").split(b"\n"), start=1):
            line = _parsed(row)
            if line is None:
                torn += [str(number)] if row.strip() else []
            elif line["key"] not in keys:
                foreign += 1
            else:
                lines[line["key"]] = line
        lost = [key for key, line in lines.items() if not self._has_predictions(line)]
        self.left_out = []
        if torn:
            self.left_out.append(f"line {', '.join(torn)} of {self.file}, which is no result (torn by a crash?)")
        if foreign:
            self.left_out.append(f"{foreign} lines of {self.file}, whose runs are not in this plan")
        for key in lost:
            self.left_out.append(f"the run {key}, whose predictions are missing")
            del lines[key]
        return lines

    def _has_predictions(self, line: Line) -> bool:
        return line.get("predictions") is None or (self.folder / line["predictions"]).is_file()

    def append(self, line: Line, arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Add a line for good, its arrays first; no other process writes meanwhile."""
        if arrays is not None:
            line = {**line, "predictions": f"predictions/{line['key']}.npz"}
            with replacing(self.folder / line["predictions"]) as beside, beside.open("wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
                _to_disk(file)
        row = json.dumps(line).encode() + b"\n"
        with FileLock(self.folder / ".claims" / "results.lock"), self.file.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # torn by a crash
                    row = b"\n" + row
            file.write(row)
            _to_disk(file)

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
        with replacing(self.folder / "plan.json") as beside:
            beside.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _parsed(row: bytes) -> Line | None:
    try:
        line = json.loads(row)
    except ValueError:  # also text that is no UTF-8
        return None
    return line if isinstance(line, dict) and all(name in line for name in _NEEDED) else None
