"""Several processes train like one with the same global batch, count every image once, and end together."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.ddp_fit import REGIMES, fit_all
from tests.processes import run_groups
from tests.systems import needs_signals


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)], ids=lambda n: f"{n}_processes")
def ends(request, tmp_path_factory):
    """Weights and metrics of every regime after training in one process and in several."""
    folder = tmp_path_factory.mktemp("ddp")
    files = {processes: folder / f"{processes}.pt" for processes in (request.param, 1)}
    run_groups(*((processes, fit_all, processes, file) for processes, file in files.items()))
    return [torch.load(file, weights_only=True) for file in reversed(files.values())]


PAIRS = ("standalone", "standalone_log", "standalone_margin", "standalone_negative", "standalone_mean")


@pytest.mark.parametrize("name", REGIMES)
def test_processes_train_like_one(name, ends):
    """Weights, centers, temperature and metrics after 12 steps, with clipping, accumulation and momentum."""
    one, many = (by_name[name] for by_name in ends)
    assert one["steps"] == many["steps"] == 12
    for key, tensor in one["state"].items():
        torch.testing.assert_close(
            tensor, many["state"][key], rtol=1e-4, atol=1e-4, msg=lambda message, key=key: f"{key}: {message}"
        )
    assert one["metrics"].keys() == many["metrics"].keys()
    for key, value in one["metrics"].items():
        if name in PAIRS and key.endswith(("inter_loss", "/loss")):
            continue  # in evaluation the pairs are those of a process's own batches
        # Rounding may decide about an image between two classes, of which validation has 11 per class.
        tolerance = {"abs": 0.01} if "accuracy" in key else {"rel": 1e-4}
        assert value == pytest.approx(many["metrics"][key], **tolerance), key


@pytest.mark.parametrize("name", REGIMES)
def test_each_has_learned_something(name, ends):
    """Otherwise the test above could compare networks that do not change."""
    assert ends[0][name]["moved"] > 0.01


def test_each_process_draws_its_own_mixing(ends):
    """lambda, and whether a batch is mixed at all, differ between processes; the weights do not."""
    shares, weights = ends[1]["mixed"]["shares"], ends[1]["mixed"]["weights"]
    processes = len(shares)
    assert processes > 1
    assert shares.shape == (processes, 24)
    assert all((shares[0] != shares[rank]).sum() > 12 for rank in range(1, processes))
    assert ((shares == 1).any(0) & (shares < 1).any(0)).any()
    assert all(torch.equal(weights[0], weights[rank]) for rank in range(1, processes))


LOST = "error: process 0 lost contact with another one, which has died or hangs"
REFUSED = "error: an image of process 1 is broken"
# Troubles of process 1, and the errors that may follow on the screen.
TROUBLES = {"hangs": [], "dies": [LOST], "refuses": [REFUSED, LOST]}


class Job(NamedTuple):
    """End of a job: its status, its screen, and whether it left no process behind."""

    status: int
    lines: list[str]
    gone: bool


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Ends of the jobs in trouble; two are run at a time."""
    folders = [tmp_path_factory.mktemp(trouble) for trouble in TROUBLES]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(TROUBLES, pool.map(run_in_trouble, TROUBLES, folders), strict=True))


def run_in_trouble(trouble: str, folder: Path) -> Job:
    root = Path(__file__).parent.parent
    config = root / "configs" / "digits_center.yaml"
    timeout = 0.15 if trouble == "hangs" else 5  # a short one may end a slow start already
    flags = ["--trainer.accelerator=cpu", "--trainer.devices=2", f"--timeout_minutes={timeout}"]
    flags.append(f"--runs_dir={folder}")
    callback = ["--trainer.callbacks=tests.ddp_trouble.Trouble", "--trainer.enable_progress_bar=false"]
    command = [sys.executable, root / "tests" / "ddp_trouble.py", "fit", f"--config={config}", *flags, *callback]
    environment = {**os.environ, "TROUBLE": trouble, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with open(folder / "screen", "w") as screen:
        job = subprocess.Popen(command, env=environment, stdout=screen, stderr=screen, start_new_session=True)
        try:
            status = job.wait(timeout=240)
            return Job(status, (folder / "screen").read_text().splitlines(), _is_gone(job.pid))
        finally:
            if not _is_gone(job.pid, seconds=0):
                os.killpg(job.pid, signal.SIGKILL)


@pytest.mark.slow
@needs_signals
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_process_in_trouble_ends_the_job(trouble, jobs):
    """Within a bounded time, with a status, with at most one line per process, without a process left.

    Lightning may kill the first process because of its children before it has printed its line.
    """
    status, lines, gone = jobs[trouble]
    assert status != 0
    errors = [line for line in lines if line.startswith("error: ")]
    assert all(line.startswith(tuple(TROUBLES[trouble])) for line in errors), lines[-20:]
    assert len(errors) == len(set(errors))
    if trouble == "refuses":
        assert any(line.startswith(REFUSED) for line in errors)
    tracebacks = any("Traceback" in line for line in lines)
    assert tracebacks == any("hint: " in line for line in lines) == (trouble == "hangs")
    assert gone


def _is_gone(group: int, seconds: float = 10) -> bool:
    """Return whether no process of the group is running, or none will be within so many seconds."""
    end = time.monotonic() + seconds
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(0.2)
