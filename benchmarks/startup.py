"""Start-up time: from the command to the end of the first training step, and of the help.

The first step is compared with a plain Lightning script that has the same data, network, loss and Trainer settings in
one file, the help with the imports of the libraries alone. Each run is a new process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from _measure import quick_asked, report_ratio
from lightning.pytorch import Callback

ROOT = Path(__file__).parent.parent
SUBJECT = "startup"
GOAL = 0.67  # the help takes at most half as long again as the imports
FIRST_STEP_DONE = 3  # exit status
IMPORTS = "import lightning.pytorch, torch, torchmetrics, torchvision"

BARE_SCRIPT = """
import os, sys
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def convolution(before, width):
    return [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]

class Digits(LightningModule):
    def __init__(self):
        super().__init__()
        self.maps = nn.Sequential(
            *convolution(1, 32), *convolution(32, 32), nn.MaxPool2d(2),
            *convolution(32, 64), nn.MaxPool2d(2), *convolution(64, 64),
        )
        self.head = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(10), nn.Linear(10, 10))
        self.embedding = nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        embeddings = nn.functional.normalize(self.embedding(self.maps(images).mean((2, 3))))
        own = embeddings.gather(1, labels[:, None])
        loss = (1 - own).mean() + 0.1 * nn.functional.cross_entropy(self.head(embeddings), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        os._exit(3)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)]

seed_everything(0)
digits = load_digits()
images = torch.from_numpy(digits.images).float()[:, None] / 16
data = TensorDataset((images - images.mean()) / images.std(), torch.from_numpy(digits.target))
trainer = Trainer(max_epochs=40, log_every_n_steps=10, default_root_dir=sys.argv[1])
trainer.fit(Digits(), DataLoader(data, batch_size=64, shuffle=True))
"""


Side = tuple[str, Sequence[str]]  # its name and command


class FirstStep(Callback):
    """Callback that ends the process after the first training step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        os._exit(FIRST_STEP_DONE)


def seconds_of(command: Sequence[str], status: int) -> float:
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    seconds = time.perf_counter() - start
    if done.returncode != status:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return seconds


def versus(ours: Side, against: Side, status: int, quick: bool, **facts: Any) -> None:
    """Run both commands in turn; the first run of each warms the disk cache."""
    turns = [[seconds_of(command, status) for _, command in (ours, against)] for _ in range(1 if quick else 8)]
    measured = turns[1:] or turns
    medians = [median(seconds) for seconds in zip(*measured, strict=True)]
    report_ratio(SUBJECT, (ours[0], medians[0]), (against[0], medians[1]), repetitions=len(measured), **facts)


if __name__ == "__main__":
    quick = quick_asked(__doc__)
    imports = (f"python -c '{IMPORTS}'", ["-c", IMPORTS])
    versus(("python cli.py --help", ["cli.py", "--help"]), imports, 0, quick, goal=GOAL)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "bare.py"
        script.write_text(BARE_SCRIPT, encoding="utf-8")
        config = "configs/digits_cosine.yaml"
        fit = ["cli.py", "fit", "--config", config, "--runs_dir", folder, "--trainer.callbacks+=startup.FirstStep"]
        ours = (f"python cli.py fit --config {config}, to the end of the first step", fit)
        bare = ("bare Lightning script, to the end of the first step", [str(script), folder])
        versus(ours, bare, FIRST_STEP_DONE, quick)
