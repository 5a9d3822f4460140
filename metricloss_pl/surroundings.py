"""With what a result was found: versions, hardware, the commit of the sources."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import metricloss_pl

__all__ = ["commit", "versions"]


def versions(*others: str) -> dict[str, str]:
    """Versions of Python, of this package, of what it stands on, and of other installed packages."""
    packages = ("torch", "torchvision", "lightning", *others)
    own = {"python": platform.python_version(), "metricloss_pl": metricloss_pl.__version__}
    return own | {name: version(name) for name in packages}


def commit() -> str | None:
    """The commit of the package's own sources, with "-dirty" if they have changed since; None outside of git."""
    folder = Path(metricloss_pl.__file__).parent

    def git(*arguments: str) -> str:
        asked = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return asked.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
