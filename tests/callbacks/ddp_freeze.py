"""Freeze a backbone, then free it, in some processes, and save how each regime ends."""

import os
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

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


def fit(name: str, processes: int, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    seed_everything(0, verbose=False)
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    model = REGIMES[name](optimizer=lambda parameters: torch.optim.SGD(parameters, **options))
    note = Note()
    run = trainer(
        folder,
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


def fit_all(processes: int, file: Path) -> None:
    """0 processes are one without DistributedDataParallel; the first one saves."""
    ends = {name: fit(name, processes, file.parent) for name in ("softmax", "cosine", "center", "standalone")}
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(ends, file)
