"""The callbacks that a regime brings along: each does its work, and each can be replaced."""

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from metricloss_pl.callbacks import (
    DatasetFacts,
    LightningFixes,
    PerStepSeeding,
    ScheduleLength,
    TemperatureScaling,
    TrainingChecks,
)
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import CosineClassifier, SoftmaxClassifier
from metricloss_pl.schedules import CosineDecay
from tests.regimes.blobs import C, D, Flat, loader, trainer

BROUGHT = (DatasetFacts, LightningFixes, PerStepSeeding, ScheduleLength, TemperatureScaling, TrainingChecks)


class Noisy(nn.Module):
    """Images (B, 1, 4, 4) to features (B, D) with dropout."""

    num_features = D

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, D))

    def forward(self, images):
        return self.net(images)


class Draws(Callback):
    """Draws from torch's generator outside of the steps, as a user's callback may."""

    def __init__(self) -> None:
        self.seen = []

    def on_train_epoch_start(self, *args):
        self.seen.append(torch.rand(()).item())

    def on_validation_start(self, *args):
        self.seen.append(torch.rand(()).item())

    def on_train_end(self, *args):
        self.seen.append(torch.rand(()).item())


class NoSeeding(PerStepSeeding):
    """Takes the place of the regime's seeding and does nothing."""

    def on_train_batch_start(self, *args):
        pass


def test_each_is_there_once_and_a_subclass_takes_its_place(tmp_path):
    model = SoftmaxClassifier(C, Flat())
    run = trainer(tmp_path, max_epochs=1, callbacks=[NoSeeding()])
    for _ in range(2):  # a second fit brings no second ones
        run.fit(model, loader(), loader(12))
        for kind in BROUGHT:
            [callback] = [callback for callback in run.callbacks if isinstance(callback, kind)]
            assert (type(callback) is kind) == (kind is not PerStepSeeding)


def test_draws_outside_the_steps_are_the_users(tmp_path):
    """Compared with a run without the callback, and without dropout, whose steps draw nothing themselves."""
    seen = []
    for callbacks in ([], [NoSeeding()]):
        torch.manual_seed(0)
        model, draws = SoftmaxClassifier(C, Flat()), Draws()
        trainer(tmp_path, callbacks=[draws, *callbacks]).fit(model, loader(), loader(12))
        seen.append([*draws.seen, torch.rand(()).item()])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 2 + 3 + 1 + 1
    assert len(set(seen[0])) > 3


def test_an_exception_within_a_step_gives_the_generator_back(tmp_path):
    class Broken(SoftmaxClassifier):
        def losses(self, embeddings, labels):
            torch.rand(7)
            raise RuntimeError("broken")

    states = []

    class State(Callback):
        def on_train_epoch_start(self, *args):
            states.append(torch.get_rng_state())

    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, callbacks=[State()]).fit(Broken(C, Flat()), loader())
    assert torch.equal(torch.get_rng_state(), states[0])


def test_a_step_draws_by_its_number_alone(tmp_path):
    """Dropout is the same whatever was drawn between the steps, and differs from step to step."""

    class Masks(Callback):
        def __init__(self, draws: int) -> None:
            self.draws, self.seen = draws, []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            torch.rand(self.draws)  # before the seeding of the step: the user's callbacks come first

        def on_train_batch_end(self, trainer, pl_module, *args):
            self.seen.append(pl_module.backbone.mask)

    class Masked(Noisy):
        def forward(self, images):
            self.mask = (self.net[:2](torch.ones_like(images)) > 0).tolist()
            return super().forward(images)

    runs = []
    for draws in (1, 5):
        torch.manual_seed(3)
        masks = Masks(draws)
        trainer(tmp_path, callbacks=[masks]).fit(SoftmaxClassifier(C, Masked()), loader())
        runs.append(masks.seen)
    assert runs[0] == runs[1]
    assert all(first != second for first, second in zip(runs[0], runs[0][1:], strict=False))


def test_a_regime_whose_setup_forgets_super_trains_resumes_and_predicts(tmp_path):
    class Own(CosineClassifier):
        def setup(self, stage):
            self.stage = stage

    def build():
        torch.manual_seed(0)
        return Own(C, Noisy())

    whole, first, second = build(), build(), build()
    trainer(tmp_path, max_epochs=4).fit(whole, loader(), loader(12))
    run = trainer(tmp_path, max_epochs=2)
    run.fit(first, loader(), loader(12))
    run.save_checkpoint(tmp_path / "two.ckpt")
    trainer(tmp_path, max_epochs=4).fit(
        second, loader(), loader(12), ckpt_path=tmp_path / "two.ckpt", weights_only=True
    )
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert whole.temperature == second.temperature != 1
    [batch] = trainer(tmp_path).predict(second, loader(12))
    assert batch["probabilities"].shape == (12, C)
    assert second.stage == "predict"
    run = trainer(tmp_path)
    run.fit(Own(C, Noisy(), lr_scheduler=CosineDecay), loader())
    assert run.lr_scheduler_configs[0].scheduler.length == 2


def test_one_image_and_batch_norm_is_one_line(tmp_path):
    one = DataLoader(TensorDataset(torch.rand(1, 1, 4, 4), torch.zeros(1, dtype=torch.int64)))
    with pytest.raises(UserError, match=r"data\.batch_size"):
        trainer(tmp_path).fit(CosineClassifier(C, Flat()), one)
    trainer(tmp_path).fit(SoftmaxClassifier(C, Flat()), one)  # which has no batch norm


def test_losses_are_logged_at_log_steps_and_at_the_ends_of_an_epoch(tmp_path):
    logged = []

    class Logged(SoftmaxClassifier):
        def log(self, name, *args, **kwargs):
            super().log(name, *args, **kwargs)
            if name == "train/loss":
                logged.append((self.current_epoch, self.trainer.fit_loop.batch_idx))

    run = trainer(tmp_path, max_epochs=2, log_every_n_steps=5)
    run.fit(Logged(C, Flat()), loader(96))  # 8 steps per epoch
    assert logged == [(0, 0), (0, 4), (0, 7), (1, 0), (1, 1), (1, 6), (1, 7)]
    assert "train/loss" in run.callback_metrics
