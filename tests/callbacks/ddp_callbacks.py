"""Fit, test and predict with all callbacks: ``python ddp_callbacks.py PROCESSES FILE RUN_FOLDER``."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from metricloss_pl.callbacks import ConfusionMatrixPlot, EmbeddingPlot, GeometryMonitor, PredictionWriter
from tests.callbacks.runs import digits, regime, trainer


def main(processes: int, file: str, folder: str) -> None:
    torch.set_num_threads(1)
    model = regime()
    # Nothing moves: the processes' different batch statistics must not show in what is measured.
    model.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    model.center_optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    run = trainer(
        Path(folder),
        *(GeometryMonitor(), EmbeddingPlot(), ConfusionMatrixPlot(), PredictionWriter(embeddings=True)),
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_epochs=1,
    )
    data = digits(batch_size=8, samples_per_class=None, test_fraction=0.95, val_fraction=0.19, test_views="flip")
    run.fit(model, data)
    geometry = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("geometry/")}
    run.test(model, data, verbose=False)
    run.predict(model, data, return_predictions=False)
    if run.is_global_zero:
        torch.save(
            {"geometry": geometry, "sizes": [len(data.samples(p).labels) for p in ("train", "val", "test")]}, file
        )
    run.strategy.barrier()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
