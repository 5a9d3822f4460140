"""A command line whose second process fails: `python ddp_trouble.py fit ...`."""

import os
import signal
import sys
import time

from lightning.pytorch import Callback

from metricloss_pl.cli import main
from metricloss_pl.errors import UserError


class Trouble(Callback):
    """Failure of process 1 at step 2."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank != 1 or trainer.global_step != 2:
            return
        kind = os.environ["TROUBLE"]
        if kind == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "hangs":
            time.sleep(3600)
        raise UserError("an image of process 1 is broken")


if __name__ == "__main__":
    main(sys.argv[1:])
