"""Measurements shared by all benchmarks: interleaved times of two sides, peak memory, and lines that report them.

Run a benchmark as `python benchmarks/<name>.py [--quick]`. It prints JSON lines with `subject`, `kind` and `machine`. A
line of kind `ratio` also has the names `ours` and `against`, the medians `ours_median` and `against_median` in `unit`,
their `ratio` (against / ours, so above 1 ours is better), and optionally `goal`, the smallest acceptable ratio. Lines
of kind `skipped` and `arithmetic` report what did not fit into memory or cannot be measured on this machine.
`OMP_NUM_THREADS` sets the number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

import metricloss_pl

Step = Callable[[], object]

_MOST_BYTES = 8 * 2**30


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with `--quick`."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, in seconds: a smoke test, no measurement")
    return parser


def quick_asked(description: str | None) -> bool:
    """Return whether `--quick` is given: small sizes that only show that the benchmark runs."""
    return bool(argument_parser(description).parse_args().quick)


def report(subject: str, kind: str, **facts: Any) -> None:
    """Print one JSON line with the subject, the kind of line, its facts, and the machine."""
    print(json.dumps({"subject": subject, "kind": kind, **facts, "machine": machine()}), flush=True)


def report_ratio(
    subject: str, ours: tuple[str, float], against: tuple[str, float], *, unit: str = "s", **facts: Any
) -> None:
    """Print a line of kind `ratio`.

    Args:
        subject: Quantity that is measured.
        ours: Name and median of our side.
        against: Name and median of the alternative.
        unit: Unit of the medians, `s` or `bytes`; less is better.
        **facts: Sizes, repetitions, the goal of the ratio.
    """
    medians = {"ours_median": _rounded(ours[1]), "against_median": _rounded(against[1]), "unit": unit}
    ratio = _rounded(against[1] / ours[1]) if ours[1] else None
    report(subject, "ratio", ours=ours[0], against=against[0], ratio=ratio, **medians, **facts)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def compare(
    subject: str, ours: tuple[str, Step], against: tuple[str, Step], *, quick: bool = False, **facts: Any
) -> tuple[float, float]:
    """Time two named steps in turn, print the line of their ratio, and return both medians in seconds."""
    (ours_s, against_s), turns = interleaved(ours[1], against[1], quick=quick)
    report_ratio(subject, (ours[0], ours_s), (against[0], against_s), repetitions=turns, **facts)
    return ours_s, against_s


def interleaved(*steps: Step, quick: bool = False, turns: int = 5, budget_s: float = 10.0) -> tuple[list[float], int]:
    """Return the median seconds of each step, taken in turn (A B A B), so that a drift of the machine affects all.

    In each turn, a step below 0.1 s runs once without the clock, because the other step may have evicted its caches.

    Args:
        *steps: Functions to time; each runs twice before the clock starts.
        quick: Whether to take two turns only.
        turns: Minimum number of turns.
        budget_s: Seconds during which turns are repeated, up to 1,000 turns.

    Returns:
        The medians and the number of turns.
    """
    least, most, budget_s = (2, 2, 0.0) if quick else (turns, 1000, budget_s)
    for step in steps:
        step()
    unclocked = [_seconds(step) < 0.1 for step in steps]
    times: list[list[float]] = []
    end = time.perf_counter() + budget_s
    while len(times) < least or (time.perf_counter() < end and len(times) < most):
        times.append([_seconds(step, first) for step, first in zip(steps, unclocked, strict=True)])
    return [median(of_step) for of_step in zip(*times, strict=True)], len(times)


def _seconds(step: Step, once_unclocked: bool = False) -> float:
    if once_unclocked:
        step()
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def peak_growth(prepare: Callable[..., Step], *sizes: int, small: tuple[int, ...]) -> int | None:
    """Return the peak memory in bytes of a few steps beyond what is allocated before them, in a new process.

    Args:
        prepare: Top-level function of the script that returns a step for the given sizes.
        *sizes: Sizes to measure.
        small: Sizes of a first step, which loads the code of the libraries.

    Returns:
        Bytes, or None without /proc (`ru_maxrss` of a child process starts from that of its parent).
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_growth, prepare, sizes, small).result()


def _growth(prepare: Callable[..., Step], sizes: tuple[int, ...], small: tuple[int, ...]) -> int | None:
    prepare(*small)()
    step = prepare(*sizes)
    before = _kilobytes("/proc/self/status", "VmHWM")
    for _ in range(3):
        step()
    after = _kilobytes("/proc/self/status", "VmHWM")
    return None if before is None or after is None else 1024 * (after - before)


def too_large(bytes_needed: int) -> dict[str, int] | None:
    """Return None if the bytes fit into 8 GiB and into free memory, else bytes needed and allowed."""
    available = _kilobytes("/proc/meminfo", "MemAvailable")
    allowed = _MOST_BYTES if available is None else min(_MOST_BYTES, 1024 * available * 4 // 5)
    return {"bytes_needed": bytes_needed, "bytes_allowed": allowed} if bytes_needed > allowed else None


def _kilobytes(file: str, name: str) -> int | None:
    return int(value) if (value := _field(file, name).removesuffix(" kB")) else None


def _field(file: str, name: str) -> str:
    """Return the value of the first line `name: value` of a file in /proc, or an empty string."""
    if not Path(file).exists():
        return ""
    pairs = (line.partition(":") for line in Path(file).read_text().splitlines())
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")


def machine() -> dict[str, str | int | None]:
    """Return processor, GPU, threads and versions."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "metricloss_pl": metricloss_pl.__version__,
    }
