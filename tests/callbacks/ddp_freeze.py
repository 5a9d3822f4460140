"""Freeze a backbone, then free it, in some processes, and save how each regime ends: ``PROCESSES FILE``.

0 processes are one without DistributedDataParallel.
"""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

sys.path.insert(0, str(Path(__file__).parents[2]))

from metricloss_pl.callbacks import FreezeBackbone
from tests.callbacks.runs import digits, trainer
from tests.ddp_fit import REGIMES

GLOBAL_BATCH = 12
FROZEN = 2  # epochs


class Note(Callback):
    """The backbone as it is when the frozen epochs are over."""

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.current_epoch == FROZEN - 1:
            state = module.state_dict()
            self.backbone = {key: state[key].clone() for key in state if key.startswith("backbone.")}


def fit(name: str, processes: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    seed_everything(0, verbose=False)
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    model = REGIMES[name](optimizer=lambda parameters: torch.optim.SGD(parameters, **options))
    note = Note()
    run = trainer(
        Path(sys.argv[2]).parent,
        *(FreezeBackbone(FROZEN), note),
        max_epochs=4,
        devices=max(1, processes),
        strategy="ddp" if processes else "auto",
        accumulate_grad_batches=2,
        gradient_clip_val=0.1,
    )
    run.fit(model, digits(batch_size=GLOBAL_BATCH // max(1, processes), augment=[]))
    run.strategy.barrier()
    return note.backbone, model.state_dict()


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes = int(sys.argv[1])
    ends = {name: fit(name, processes) for name in ("softmax", "cosine", "center", "standalone")}
    if not processes or torch.distributed.get_rank() == 0:
        torch.save(ends, sys.argv[2])
