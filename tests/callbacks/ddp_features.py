"""Train heads on cached features in some processes, and save how they end."""

import os
from pathlib import Path

import torch
from lightning.pytorch import seed_everything

from metricloss_pl.callbacks import CachedFeatures
from metricloss_pl.regimes import LinearProbeClassifier
from tests.callbacks.runs import digits, trainer
from tests.ddp_fit import REGIMES


def fit_all(processes: int, file: Path) -> None:
    """Save the end of each regime in the first process."""
    ends = {}
    for name in ("cosine", "linear_probe"):
        seed_everything(0, verbose=False)
        model = REGIMES["softmax" if name == "linear_probe" else name]()
        if name == "linear_probe":
            model = LinearProbeClassifier(10, model.backbone, C=1.0)  # a well-conditioned problem
        strategy = "ddp" if processes > 1 else "auto"
        callback = CachedFeatures(cache_dir=str(file.with_suffix("")))  # of one regime, read by the next
        run = trainer(file.parent, callback, max_epochs=2, devices=processes, strategy=strategy)
        run.fit(model, digits(batch_size=12 // processes))
        run.strategy.barrier()
        ends[name] = model.state_dict()
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(ends, file)
