"""Conditions of a result: versions, hardware, commit of the sources, memory."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import metricloss_pl

__all__ = ["collect_environment", "multiplies_bfloat16", "peak_memory", "versions"]


def collect_environment() -> dict[str, Any]:
    """Return versions, hardware with the current number of threads, and the commit at this process's first call."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "versions": versions(*(["optuna"] if importlib.util.find_spec("optuna") else [])),
        "hardware": {"device": accelerator or "CPU", "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "git": _commit(),
    }


def versions(*others: str) -> dict[str, str]:
    """Return the versions of Python, of this package, of its main dependencies and of other installed packages."""
    packages = ("torch", "torchvision", "lightning", *others)
    main = {"python": platform.python_version(), "metricloss_pl": metricloss_pl.__version__}
    return main | {name: version(name) for name in packages}


@functools.cache
def _commit() -> str | None:
    """Return the commit of the package's sources, with "-dirty" if they have changed since; None outside of git."""
    folder = Path(metricloss_pl.__file__).parent

    def git(*arguments: str) -> str:
        asked = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return asked.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else the repository around a virtual environment
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def multiplies_bfloat16() -> bool:
    """Return whether this x86 CPU has instructions for products of bfloat16, if the version of torch tells."""
    tell = getattr(torch.cpu, "get_capabilities", None)
    return tell is not None and any(tell().get(name) for name in ("avx512_bf16", "amx_bf16"))


def peak_memory() -> float:
    """Return the peak memory of this process in bytes; 0 where the system does not report it."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if platform.system() == "Darwin" else 1024)
