"""Fit, test and predict with all callbacks, in some processes."""

import warnings
from pathlib import Path

import torch

from metricloss_pl.callbacks import ConfusionMatrixPlot, EmbeddingPlot, GeometryMonitor, PredictionWriter
from tests.callbacks.runs import digits, regime, trainer


def run_all(processes: int, file: Path, folder: Path) -> None:
    """The first process saves the geometry and the sizes of the parts; the rest is in the run's folder."""
    warnings.filterwarnings("error", message=".*sync_dist.*")
    model = regime()
    # Nothing moves: the processes' different batch statistics must not show in what is measured.
    model.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    model.center_optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    run = trainer(
        folder,
        *(GeometryMonitor(), EmbeddingPlot(), ConfusionMatrixPlot(), PredictionWriter(embeddings=True)),
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_epochs=1,
    )
    data = digits(batch_size=8, samples_per_class=None, test_fraction=0.95, val_fraction=0.19, tta="flip")
    run.fit(model, data)
    geometry = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("geometry/")}
    run.test(model, data, verbose=False)
    run.predict(model, data, return_predictions=False)
    if run.is_global_zero:
        torch.save(
            {"geometry": geometry, "sizes": [len(data.samples(p).labels) for p in ("train", "val", "test")]}, file
        )
    run.strategy.barrier()
