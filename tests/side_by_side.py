"""Scripts in processes of their own, two at a time: most of their time is imports, which use one core."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def run_scripts(*scripts: Sequence[str | Path]) -> list[subprocess.CompletedProcess[str]]:
    """Run each script, given as a file and its arguments; return how they ended, in their order."""

    def run(script: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *script], capture_output=True, text=True, timeout=600, check=False, env=environment
        )

    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(run, scripts))
