"""Test by a hierarchy: ``python ddp_hierarchy.py PROCESSES FILE TREE RUN_FOLDER``."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from metricloss_pl.callbacks import HierarchyMetrics
from tests.callbacks.runs import digits, regime, trainer


def main(processes: int, file: str, tree: str, folder: str) -> None:
    torch.set_num_threads(1)
    strategy = "ddp" if processes > 1 else "auto"
    run = trainer(Path(folder), HierarchyMetrics(tree), devices=processes, strategy=strategy)
    run.test(regime(), digits(batch_size=8, samples_per_class=None, test_fraction=0.065), verbose=False)  # 117 images
    ours = ("test/hierarchical", "test/mistake", "test/hp", "test/mahp")
    if run.is_global_zero:
        torch.save({name: float(v) for name, v in run.callback_metrics.items() if name.startswith(ours)}, file)
    run.strategy.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
