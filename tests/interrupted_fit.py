"""Command lines that are killed at a step."""

import json
import os
import signal
from pathlib import Path

from lightning.pytorch import Callback

from metricloss_pl.cli import main


class Kill(Callback):
    """Kills the process within an epoch, as a crash would."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == int(os.environ["KILL_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)


class Terminate(Callback):
    """Asks the process to end, as a scheduler does."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)


def in_a_process_of_its_own(arguments: list[str], kill_at: int | None = None) -> int:
    """Run the command line in a fork, which has imported everything; return its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if kill_at is not None:
                os.environ["KILL_AT"] = str(kill_at)
                arguments = [*arguments, "--trainer.callbacks=tests.interrupted_fit.Kill"]
            main(arguments)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_in_turn(*sets: tuple[list[tuple[list[str], int | None]], Path]) -> None:
    """Run sets of command lines, each with the step in which it is killed; write the statuses to the set's file."""
    for runs, file in sets:
        file.write_text(json.dumps([in_a_process_of_its_own(*run) for run in runs]))
