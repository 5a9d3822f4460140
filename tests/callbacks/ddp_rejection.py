"""Fit of a threshold of rejection, in some processes."""

from pathlib import Path

import torch

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.callbacks import RejectionThreshold
from metricloss_pl.regimes import SoftmaxClassifier
from tests.callbacks.runs import digits, trainer


def validate_and_test(processes: int, file: Path, folder: Path) -> None:
    """The first process saves threshold, class means and the share of rejected test images."""
    torch.manual_seed(0)
    names = [f"digit {label}" for label in range(10)]
    model, data = SoftmaxClassifier(10, TinyConvNet(in_channels=1, width=4), names, embedding_dim=2), digits()
    strategy = "ddp" if processes > 1 else "auto"
    run = trainer(folder, RejectionThreshold(0.2), devices=processes, strategy=strategy)
    run.validate(model, data, verbose=False)
    [measured] = run.test(model, data, verbose=False)
    if run.is_global_zero:
        assert model.rejection is not None
        share = torch.tensor(measured["test/false_reject_rate"])
        torch.save([torch.tensor(model.rejection.threshold), model.rejection.class_means, share], file)
    run.strategy.barrier()
