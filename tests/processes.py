"""Functions in processes of their own, forked from a server that has imported everything, which takes seconds.

On macOS forking after torch is loaded is not safe, and on Windows it is impossible: there each process imports all.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.multiprocessing import start_processes

START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
if START_METHOD == "forkserver":
    multiprocessing.set_forkserver_preload(
        ["metricloss_pl.cli.dispatch", "metricloss_pl.compare.api", "sklearn.datasets"]
    )


def run_groups(*groups: tuple[Any, ...]) -> None:
    """Run groups at the same time; each is a number of processes, a top-level function of a module and its arguments.

    The environment of a group is that of torchrun. If a process fails, its error is raised.
    """
    if sys.platform == "win32" and any(processes > 1 for processes, *_ in groups):
        pytest.skip("training in several processes is tested on Linux and macOS")
    contexts = []
    try:
        for processes, *call in groups:
            arguments = (processes, _free_port(), *call)
            contexts.append(start_processes(_run, arguments, processes, join=False, start_method=START_METHOD))
        for context in contexts:
            while not context.join():
                pass
    finally:
        for context in contexts:
            for process in context.processes:
                process.kill()


def _run(rank: int, processes: int, port: int, function: Callable[..., None], *args: Any) -> None:
    multiprocessing.set_start_method(None, force=True)  # in a fork of the server it is the server's
    torch.set_num_threads(1)
    if processes > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **{k: str(v) for k, v in ranks.items()}}
    function(*args)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port
