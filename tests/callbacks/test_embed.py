"""Callbacks that look must not touch."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from metricloss_pl.callbacks import EmbeddingPlot, GeometryMonitor
from metricloss_pl.callbacks.evaluation import evaluation_mode
from tests.callbacks.runs import fit, regime, trainer


class Draws(Callback):
    """Record draws of the random generators at the start of each epoch."""

    def __init__(self):
        self.values = []

    def on_train_epoch_start(self, trainer, pl_module):
        states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        self.values += [torch.rand(1).item(), np.random.rand(), random.random()]  # noqa: NPY002
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


@pytest.mark.parametrize("embedding_dim", [2, 5])
def test_training_is_the_same_with_and_without(tmp_path, embedding_dim):
    ends = []
    for callbacks in ([], [GeometryMonitor(), EmbeddingPlot(method="tsne")]):
        model, draws = regime(embedding_dim, dropout=0.5), Draws()
        fit(tmp_path, draws, *callbacks, model=model)
        ends.append((model.state_dict(), draws.values))
    (plain, plain_draws), (watched, watched_draws) = ends
    for name, tensor in plain.items():
        assert torch.equal(tensor, watched[name]), name
    assert plain_draws == watched_draws


def test_modes_come_back_also_after_an_error(tmp_path):
    model = regime()
    model.train()
    model.backbone.maps[1].eval()  # a frozen batch norm
    before = [part.training for part in model.modules()]
    run = trainer(tmp_path)
    with pytest.raises(RuntimeError, match="stop"), evaluation_mode(run, model):  # noqa: PT012
        assert not any(part.training for part in model.modules())
        assert not torch.is_grad_enabled()
        raise RuntimeError("stop")
    assert [part.training for part in model.modules()] == before
    assert torch.is_grad_enabled()
