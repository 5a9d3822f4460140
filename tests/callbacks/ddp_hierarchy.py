"""Test by a hierarchy, in some processes."""

from pathlib import Path

import torch

from metricloss_pl.callbacks import HierarchyMetrics
from tests.callbacks.runs import digits, regime, trainer


def measure(processes: int, file: Path, tree: Path, folder: Path) -> None:
    """The first process saves what was measured."""
    strategy = "ddp" if processes > 1 else "auto"
    run = trainer(folder, HierarchyMetrics(tree), devices=processes, strategy=strategy)
    run.test(regime(), digits(batch_size=8, samples_per_class=None, test_fraction=0.065), verbose=False)  # 117 images
    ours = ("test/hierarchical", "test/mistake", "test/hp", "test/mahp")
    if run.is_global_zero:
        torch.save({name: float(v) for name, v in run.callback_metrics.items() if name.startswith(ours)}, file)
    run.strategy.barrier()
