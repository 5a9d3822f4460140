"""A command line that is killed at a step: ``KILL_AT=30 python interrupted_fit.py fit ...``."""

import os
import signal

from lightning.pytorch import Callback

from metricloss_pl.cli import main


class Kill(Callback):
    """End the process as a crash would, within an epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == int(os.environ["KILL_AT"]):
            os.kill(os.getpid(), signal.SIGKILL)


def in_a_process_of_its_own(arguments: list[str], kill_at: int | None = None) -> int:
    """Run the command line in a fork, which has all imports behind it; its exit status."""
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
