"""Features that some operating systems lack, and marks that skip the tests which need them."""

import os
import sys
from pathlib import Path

import pytest

needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has loaded torch: Linux alone")
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to end a process by")


def make_pipe(path: Path) -> None:
    """Create a named pipe."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(path)


def make_link(link: Path, target: str | Path) -> None:
    """Create a symbolic link."""
    try:
        link.symlink_to(target)
    except OSError as error:  # Windows asks for a right of its own
        pytest.skip(f"symbolic links can't be made here: {error}")
