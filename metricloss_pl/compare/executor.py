"""Places where runs are executed: this process, processes of this machine, or a Ray cluster."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import signal
import tarfile
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from metricloss_pl.compare.runner import Outcome, Task, empty_result, execute
from metricloss_pl.errors import UserError, reason

__all__ = ["Executor", "InProcess", "LocalPool", "RayCluster"]

Run = Callable[[Task], Outcome]


class Executor(Protocol):
    """Place where runs are executed: `free` of them can be submitted now, `wait` returns the next that has ended."""

    @property
    def free(self) -> int: ...

    def submit(self, task: Task) -> None: ...

    def wait(self) -> tuple[Task, Outcome]: ...

    def close(self) -> None:
        """Cancel what is running."""


class InProcess:
    """This process, one run at a time."""

    def __init__(self, execute: Run = execute) -> None:
        self._execute, self._tasks = execute, list[Task]()

    @property
    def free(self) -> int:
        return 1 - len(self._tasks)

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def wait(self) -> tuple[Task, Outcome]:
        task = self._tasks.pop()
        return task, self._execute(task)

    def close(self) -> None:
        pass


class LocalPool:
    """Processes of this machine, each with one run at a time; they take turns with the GPUs.

    A run whose process has died is repeated once, in a new process.

    Args:
        processes: Number of processes.
    """

    def __init__(self, processes: int, execute: Run = execute) -> None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(gpu) for gpu in range(torch.cuda.device_count())]
        self._execute = execute
        self._gpus = [gpus[number % len(gpus)] if gpus else None for number in range(processes)]
        self._pools: list[ProcessPoolExecutor | None] = [None] * processes
        self._pids = [0] * processes
        self._running: dict[Future[Outcome], tuple[int, Task, int]] = {}

    @property
    def free(self) -> int:
        return len(self._pools) - len(self._running)

    def submit(self, task: Task) -> None:
        busy = {slot for slot, _, _ in self._running.values()}
        self._start(next(slot for slot in range(len(self._pools)) if slot not in busy), task, attempt=1)

    def _start(self, slot: int, task: Task, attempt: int) -> None:
        pool = self._pools[slot]
        try:
            if pool is None:
                context = _context()
                pool = ProcessPoolExecutor(1, context, _initialize, (self._gpus[slot],))
                self._pools[slot], self._pids[slot] = pool, pool.submit(os.getpid).result()
            future = pool.submit(self._execute, task)
        except BrokenProcessPool as error:
            raise UserError(f"a process that runs should be executed in ends at once: {reason(error)}") from error
        self._running[future] = (slot, task, attempt)

    def wait(self) -> tuple[Task, Outcome]:
        while True:
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            future = next(iter(done))
            slot, task, attempt = self._running.pop(future)
            try:
                return task, future.result()
            except BrokenProcessPool:
                self._pools[slot] = None
                if attempt > 1:
                    return task, _lost(task)
                self._start(slot, task, attempt + 1)

    def close(self) -> None:
        for pool, pid in zip(self._pools, self._pids, strict=True):
            if pool is not None:
                with contextlib.suppress(OSError):
                    os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
                pool.shutdown(wait=True, cancel_futures=True)


def _context() -> Any:
    """Return a context that starts processes quickly, and without what this one has done to an accelerator."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _initialize(gpu: str | None) -> None:
    """Prepare a process for runs: it ends with its parent, and sees one GPU."""
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    # Otherwise processes that load images would be started by a server that outlives this process.
    multiprocessing.set_start_method(None, force=True)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu


def _lost(task: Task) -> Outcome:
    why = "its process ended twice, killed perhaps for memory: fewer runs at a time (n_parallel) need less"
    return Outcome(empty_result(task.run) | {"status": "failed", "reason": why}, None)


class RayCluster:
    """Ray cluster, each run with the threads that it needs and a GPU if there are any.

    A run whose process or machine has died is repeated once.

    Args:
        address: Address of the cluster, or `auto` for the one that this machine belongs to.
        runs: Most runs at a time. None: as many as the cluster has room for.
        threads: Threads of each run.
    """

    def __init__(self, address: str, runs: int | None, threads: int, execute: Run = execute) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ModuleNotFoundError as error:
            raise UserError(
                'cluster needs Ray, which is not installed: pip install "metricloss_pl[cluster]"'
            ) from error
        self._ray = ray
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"cluster is {address}: no Ray cluster answers there ({reason(error)}); `ray start --head` starts one"
            ) from error
        resources = ray.cluster_resources()
        self.gpus = int(resources.get("GPU", 0))
        room = self.gpus if self.gpus else int(resources.get("CPU", 1)) // threads
        self._slots = max(1, room if runs is None else min(runs, room))
        options = {"num_cpus": threads, "num_gpus": 1 if self.gpus else 0, "max_retries": 1}
        remote: Any = ray.remote  # untyped where Ray is not installed
        self._remote = remote(**options)(_execute_remotely)
        self._execute = execute
        self._running: dict[Any, Task] = {}

    @property
    def free(self) -> int:
        return self._slots - len(self._running)

    def submit(self, task: Task) -> None:
        self._running[self._remote.remote(self._execute, task, os.getcwd())] = task

    def wait(self) -> tuple[Task, Outcome]:
        (done, *_), _ = self._ray.wait(list(self._running), num_returns=1)
        task, lost = self._running.pop(done), self._ray.exceptions
        try:
            outcome, files = self._ray.get(done)
        except (lost.WorkerCrashedError, lost.NodeDiedError, lost.ObjectLostError, lost.OutOfMemoryError):
            return task, _lost(task)
        if files is not None and task.folder is not None:
            with tarfile.open(fileobj=io.BytesIO(files)) as packed:
                packed.extractall(task.folder, filter="data")
        return task, outcome

    def close(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()


def _execute_remotely(execute: Run, task: Task, folder: str) -> tuple[Outcome, bytes | None]:
    """Do a run on a machine that may not share the driver's files; return what it has written, packed."""
    if os.path.isdir(folder):  # relative paths in settings start there
        os.chdir(folder)
    if task.folder is None:
        return execute(task), None
    with tempfile.TemporaryDirectory() as here:
        outcome = execute(replace(task, folder=Path(here, "run")))
        buffer = io.BytesIO()
        if outcome.result["checkpoint"]:
            with tarfile.open(fileobj=buffer, mode="w") as packed:
                packed.add(Path(here, "run"), ".")
    return outcome, buffer.getvalue() or None
