"""Store of a comparison: its plan, and one JSON file per run; incomplete files are ignored."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from metricloss_pl.data.file_checks import RUN_MARKER
from metricloss_pl.errors import UserError, reason
from metricloss_pl.files import UNREADABLE_PICKLE, replacing

__all__ = ["FORMAT", "Predictions", "Result", "Store"]

FORMAT = 2  # of plan.json and of results, whose keys depend on it

Result = dict[str, Any]


class Predictions(NamedTuple):
    """Test images of one run."""

    names: np.ndarray  # (N,) str
    labels: np.ndarray  # (N,) int64
    probabilities: np.ndarray  # (N, C) float32
    embeddings: np.ndarray | None = None  # (N, D) float16


class Store:
    """Folder of a comparison, written by one process.

    Args:
        folder: Folder with `plan.json`, `runs/<key>.json` and `predictions/<key>.npz`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def plan(self) -> dict[str, Any]:
        """Return the content of plan.json.

        Raises:
            UserError: There is none, or it is not the plan of a comparison.
        """
        file = self.folder / "plan.json"
        try:
            plan = _read(file)
        except OSError as error:
            raise UserError(
                f"{file} can't be read ({reason(error)}): the folder of a comparison is needed, such as "
                "runs/compare/digits"
            ) from error
        except ValueError as error:
            raise UserError(f"{file} is no plan of a comparison ({reason(error)}): run compare again") from error
        if plan.get("format") != FORMAT:
            raise UserError(f"{file} is of format {plan.get('format')}, not {FORMAT}: run compare again")
        return plan

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Replace plan.json, and create the folder if needed."""
        self._write(self.folder / "plan.json", plan)
        (self.folder / RUN_MARKER).touch()  # so that its figures are not taken for data

    def results(self, planned: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Result]:
        """Return the sound results by key, in the order of the plan.

        Args:
            planned: Description of each run by key. None: those in plan.json.
        """
        found = {}
        for key, described in (self.plan()["runs"] if planned is None else planned).items():
            with contextlib.suppress(OSError, ValueError):
                result = _read(self.folder / "runs" / f"{key}.json")
                is_there = result.get("predictions") is None or (self.folder / result["predictions"]).is_file()
                if is_there and {**described, "key": key}.items() <= result.items():
                    found[key] = result
        return found

    def write_result(self, result: Result, predictions: Predictions | None = None) -> None:
        """Replace the result of a run, its predictions first; without new ones it keeps those that it names.

        Raises:
            UserError: There is no room for them.
        """
        name = result.get("predictions")
        if predictions is not None:
            name = f"predictions/{result['key']}.npz"
            arrays = {k: v for k, v in predictions._asdict().items() if v is not None}
            with replacing(self.folder / name) as beside, beside.open("wb") as file:
                np.savez_compressed(file, **arrays)
        self._write(self.folder / "runs" / f"{result['key']}.json", {**result, "predictions": name})

    def predictions(self, key: str) -> Predictions:
        """Return the predictions of a run.

        Raises:
            UserError: There are none, or the file is damaged.
        """
        file = self.folder / "predictions" / f"{key}.npz"
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return Predictions(*(arrays[name] for name in Predictions._fields if name in arrays))
        except UNREADABLE_PICKLE as error:
            raise UserError(
                f"{file} can't be read ({reason(error)}): remove {self.folder / 'runs' / f'{key}.json'} and run "
                "compare again, which repeats this run"
            ) from error

    def _write(self, file: Path, content: Mapping[str, Any]) -> None:
        with replacing(file) as beside:
            beside.write_text(json.dumps(_finite(content), indent=1) + "\n", encoding="utf-8")


def _read(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    return content


def _finite(value: Any) -> Any:
    """Return the value with null in place of numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else cast(Any, value)
