"""A comparison of a second or two, and a process that dies in the midst of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import torch

from metricloss_pl.compare import Comparison, Range, Tuning, Variant, run_comparison
from metricloss_pl.compare import run as running
from metricloss_pl.compare.plan import Plan
from metricloss_pl.compare.results import Results
from metricloss_pl.compare.worker import Worker

THREADS = max(1, (os.cpu_count() or 1) // 2)  # those of each of two jobs; another number rounds otherwise
CONFIGS = Path(__file__).parents[2] / "configs"
RATES = {"model.optimizer.lr": Range(0.005, 0.5, log=True)}


def tiny(regimes: tuple[str, ...] = ("softmax", "cosine"), trials: int = 2, **settings: Any) -> Comparison:
    variants = {regime: Variant(str(CONFIGS / f"digits_{regime}.yaml")) for regime in regimes}
    tuning = Tuning(trials=trials, val_fraction=0.4, space=RATES)
    return Comparison(
        **{
            "variants": variants,
            "name": "tiny",
            "samples_per_class": [5],
            "seeds": [0],
            "epochs": 1,
            "overrides": {"data.batch_size": 25},
            "tuning": tuning,
            **settings,
        }
    )


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(folder: str, moment: str, after: int) -> None:
    """Run the tiny comparison, and die at a moment of the run after so many finished ones."""
    torch.set_num_threads(THREADS)
    run, append = Worker.run, Results.append

    def lines() -> int:
        file = Path(folder, "results.jsonl")
        return file.read_bytes().count(b'"hardware"') if file.exists() else 0

    def dying_run(self: Worker, *args: Any) -> Any:
        if moment == "before" and lines() == after:
            die()
        return run(self, *args)

    def dying_append(self: Results, line: Any, arrays: Any = None) -> None:
        if lines() == after and moment == "unwritten":
            die()
        if lines() == after and moment == "torn":
            with self.file.open("ab") as file:
                file.write(b'{"key": "' + line["key"].encode() + b'", "kind": "fi')
            die()
        if lines() == after and moment == "between" and arrays is not None:
            (self.folder / "predictions" / f"{line['key']}.npz").write_bytes(b"half a file")
            die()
        append(self, line, arrays)
        if lines() == after + 1 and moment == "after":
            die()

    Worker.run, Results.append = dying_run, dying_append  # type: ignore[method-assign]
    run_comparison(tiny(), folder=folder)


def note_start_method(file: Path) -> None:
    """How a job starts the processes that load its images."""
    running._work = lambda *_: file.write_text(multiprocessing.get_start_method())  # type: ignore[assignment]
    running._work_alone(Plan(tiny(), []), file.parent, 0, 2)
