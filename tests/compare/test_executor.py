"""Processes that execute runs, of which some are killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from metricloss_pl.compare import api
from metricloss_pl.compare.api import compare
from metricloss_pl.compare.executor import InProcess, LocalPool, RayCluster
from metricloss_pl.compare.plan import Run
from metricloss_pl.compare.runner import Outcome, Task, empty_result
from metricloss_pl.compare.store import Store
from metricloss_pl.errors import UserError
from tests.compare.small import small
from tests.compare.test_compare import assert_equal
from tests.systems import needs_signals

pytest.importorskip("optuna")


def task(number: int, folder: Path) -> Task:
    run = Run("final", str(number), None, 0, 0, None, None, f"key{number}", ())
    return Task(run, small(), features_dir=folder)


def note(task: Task) -> Outcome:
    """Stand for a run: note the process; the first attempts of run 1, and all of run 2, kill it."""
    assert task.features_dir is not None
    file = task.features_dir / f"{task.run.variant}.txt"
    attempts = file.read_text().split() if file.is_file() else []
    file.write_text(" ".join([*attempts, str(os.getpid())]))
    if (task.run.variant == "1" and not attempts) or task.run.variant == "2":
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(empty_result(task.run) | {"metrics": {"pid": os.getpid()}}, None)


def gather(executor, tasks) -> dict[str, dict]:
    waiting, found = list(tasks), {}
    while waiting or len(found) < len(tasks):
        while waiting and executor.free:
            executor.submit(waiting.pop(0))
        done, outcome = executor.wait()
        found[done.run.variant] = outcome.result
    return found


def test_this_process_does_one_run_at_a_time(tmp_path):
    executor = InProcess(note)
    assert executor.free == 1
    executor.submit(task(0, tmp_path))
    assert executor.free == 0
    assert executor.wait()[1].result["metrics"]["pid"] == os.getpid()
    assert executor.free == 1


@needs_signals
def test_a_run_whose_process_dies_is_repeated_once(tmp_path):
    pool = LocalPool(2, note)
    try:
        found = gather(pool, [task(number, tmp_path) for number in range(4)])
    finally:
        pool.close()
    assert {name: result["status"] for name, result in found.items()} == {
        "0": "ok", "1": "ok", "2": "failed", "3": "ok",
    }  # fmt: skip
    attempts = {int(file.stem): file.read_text().split() for file in tmp_path.glob("*.txt")}
    assert {number: len(pids) for number, pids in attempts.items()} == {0: 1, 1: 2, 2: 2, 3: 1}
    assert "n_parallel" in found["2"]["reason"]
    assert len({*attempts[0], *attempts[3]} | {os.getpid()}) > 1


def wait_in_task(task: Task) -> Outcome:
    assert task.features_dir is not None
    (task.features_dir / f"{os.getpid()}.pid").touch()
    time.sleep(120)
    return Outcome(empty_result(task.run), None)


def hold_pool(folder: Path) -> None:
    multiprocessing.set_start_method(None, force=True)
    pool = LocalPool(2, wait_in_task)
    for number in range(2):
        pool.submit(task(number, folder))
    pool.wait()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def until(condition, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(condition())


@needs_signals
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("closing", ["kill", "close"])
def test_processes_end_with_the_driver(closing, tmp_path):
    if closing == "kill":
        program = "import sys; from pathlib import Path; from tests.compare import test_executor as tests; "
        program += "tests.hold_pool(Path(sys.argv[1]))"
        driver = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[2])
        assert until(lambda: len(list(tmp_path.glob("*.pid"))) == 2, 60)
        driver.kill()
        driver.wait()
    else:
        pool = LocalPool(2, wait_in_task)
        for number in range(2):
            pool.submit(task(number, tmp_path))
        assert until(lambda: len(list(tmp_path.glob("*.pid"))) == 2, 60)
        pool.close()
    pids = [int(file.stem) for file in tmp_path.glob("*.pid")]
    assert until(lambda: not any(map(is_alive, pids)))


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(api.Comparison, "report", lambda self: self.folder / "report.html")


@pytest.mark.slow
@needs_signals
@pytest.mark.usefixtures("no_report")
def test_a_driver_killed_at_any_moment_loses_only_runs_in_progress(tmp_path):
    """Also with its processes; the same command then ends with the results of a comparison that was not killed."""
    expected = compare(small(sizes=[5, 8]), str(tmp_path / "expected"), keep_checkpoints="none").folder
    flags = ["--config", "small.yaml", "--output_dir", "killed", "--keep_checkpoints", "none", "--n_parallel", "2"]
    variants = {name: {"config": str(variant.config)} for name, variant in small().variants.items()}
    space = {"model.optimizer.lr": {"low": 0.005, "high": 0.5, "log": True}}
    plan = {
        "variants": variants, "name": "small", "sizes": [5, 8], "seeds": [0], "epochs": 1, "trivial": False,
        "overrides": {"data.batch_size": 25}, "tuning": {"trials": 2, "val_fraction": 0.4, "space": space},
    }  # fmt: skip
    (tmp_path / "small.yaml").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "metricloss_pl", "compare", *flags]
    folder = tmp_path / "killed"

    def count() -> int:
        return len(list(folder.glob("runs/*.json")))

    known: dict[str, int] = {}
    for target, number in ((1, signal.SIGKILL), (5, signal.SIGTERM), (9, signal.SIGKILL)):
        with open(tmp_path / "screen.txt", "w") as screen:
            process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=screen, stderr=screen)
        assert until(lambda target=target: count() >= target, 180), (tmp_path / "screen.txt").read_text()
        process.send_signal(number)
        assert process.wait() == (143 if number == signal.SIGTERM else -number)
        assert ("the same command continues" in (tmp_path / "screen.txt").read_text()) == (number == signal.SIGTERM)
        for name, when in known.items():
            assert (folder / "runs" / name).stat().st_mtime_ns == when  # nothing is done twice
        known = {file.name: file.stat().st_mtime_ns for file in folder.glob("runs/*.json")}
    subprocess.run(command, cwd=tmp_path, env=environment(), check=False, capture_output=True)
    assert count() == 12
    for name, when in known.items():
        assert (folder / "runs" / name).stat().st_mtime_ns == when
    assert_equal(folder, expected)
    assert not (folder / ".attempts").exists()


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def test_a_cluster_without_ray_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'pip install "metricloss_pl\[cluster\]"'):
        RayCluster("auto", None, 1)


@pytest.mark.slow
@needs_signals
@pytest.mark.usefixtures("no_report")
def test_a_cluster_of_two_machines_of_which_one_is_lost(tmp_path, monkeypatch):
    """Each run has a GPU (a logical one), and what is lost with a machine is repeated."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    config = replace(small(sizes=[5], seeds=[0, 1]))
    expected = compare(config, str(tmp_path / "expected")).folder
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
    try:
        node = cluster.add_node(num_cpus=1, num_gpus=1)
        killed = []
        write = Store.write_result

        def lose_a_machine(self, result, predictions=None):
            write(self, result, predictions)
            if not killed:
                killed.append(result["key"])
                cluster.remove_node(node, allow_graceful=False)

        monkeypatch.setattr(Store, "write_result", lose_a_machine)
        compare(config, str(tmp_path / "cluster"), cluster=cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed
    assert_equal(tmp_path / "cluster", expected)
    [kept] = (tmp_path / "cluster" / "trained").iterdir()
    assert (kept / "checkpoints" / "last.ckpt").is_file()
