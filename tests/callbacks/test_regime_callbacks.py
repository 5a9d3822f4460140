"""The callbacks that a regime brings along: each does its work, and each can be replaced."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateFinder
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from metricloss_pl.callbacks import (
    DatasetFacts,
    FoundLearningRate,
    LightningFixes,
    PerStepSeeding,
    RejectionThreshold,
    ScheduleLength,
    TemperatureScaling,
    TrainingChecks,
)
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import (
    CenterSoftmaxClassifier,
    CosineClassifier,
    SoftmaxClassifier,
    StandaloneCenterClassifier,
)
from metricloss_pl.schedules import CosineDecay
from tests.regimes.blobs import C, D, Flat, loader, trainer

BROUGHT = (
    DatasetFacts,
    FoundLearningRate,
    LightningFixes,
    PerStepSeeding,
    RejectionThreshold,
    ScheduleLength,
    TemperatureScaling,
    TrainingChecks,
)


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


@pytest.mark.parametrize("output", [None, "loss"])
def test_a_validation_step_of_ones_own_needs_no_scores(output, tmp_path):
    class Own(SoftmaxClassifier):
        def validation_step(self, batch, batch_idx):
            return None if output is None else torch.tensor(1.0)

    model = Own(C, Flat())
    trainer(tmp_path).fit(model, loader(), loader(12))
    assert model.temperature == 1


def test_batches_and_metrics_of_ones_own_are_no_losses(tmp_path):
    class Own(SoftmaxClassifier):
        def training_step(self, batch, batch_idx):
            self.log("train/rare_class_accuracy", float("nan"))
            return super().training_step((batch["images"], batch["labels"]), batch_idx)

    images = loader()
    images.collate_fn = lambda items: dict(
        zip(("images", "labels"), torch.utils.data.default_collate(items), strict=True)
    )
    run = trainer(tmp_path, max_epochs=1)
    run.fit(Own(C, Flat()), images)
    assert run.global_step == 4


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        (lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=2), 0.001, 0.01),
        (lambda o: CosineDecay(o, warmup=0.5, length=4), 0.0001, 0.0),
        (lambda o: CosineDecay(o, warmup=0.5), 0.0001, 0.0),
    ],
    ids=["linear", "length", "whole"],
)
def test_a_found_learning_rate_is_the_peak_of_the_schedule(schedule, first, last, tmp_path):
    """The centers keep their own rate, under the same schedule."""
    seen = []

    class Found(LearningRateFinder):
        def on_fit_start(self, trainer, pl_module):
            pl_module.learning_rate = 0.01
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = 0.01

    class Rates(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    model = StandaloneCenterClassifier(C, Flat(), center_lr=0.5, lr_scheduler=schedule)
    run = trainer(tmp_path, max_epochs=4, callbacks=[Found(), Rates()])
    run.fit(model, loader())
    assert seen[0] == pytest.approx([first, first * 50])
    assert [group["lr"] for group in run.optimizers[0].param_groups] == pytest.approx([last, last * 50])


def test_a_learning_rate_of_ones_own_is_left_alone(tmp_path):
    class Own(SoftmaxClassifier):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.learning_rate = 0.3

        def configure_optimizers(self):
            return torch.optim.SGD(
                [{"params": self.backbone.parameters(), "lr": 0.1}, {"params": self.head.parameters()}]
            )

    run = trainer(tmp_path)
    run.fit(Own(C, Flat()), loader())
    assert [group["lr"] for group in run.optimizers[0].param_groups] == [0.1, 1e-3]


def test_class_means_do_not_depend_on_hooks_of_a_subclass(tmp_path):
    class Own(CenterSoftmaxClassifier):
        def on_fit_start(self):
            pass

    with pytest.raises(UserError, match="class_means"):
        trainer(tmp_path).fit(Own(C, Flat(), center_init="class_means"), loader())


def test_a_schedule_per_step_ends_with_a_training_whose_accumulation_changes(tmp_path):
    accumulation = GradientAccumulationScheduler({0: 1, 1: 2})
    run = trainer(tmp_path, max_epochs=3, callbacks=[accumulation])
    run.fit(SoftmaxClassifier(C, Flat(), lr_scheduler=CosineDecay, lr_scheduler_interval="step"), loader())
    [config] = run.lr_scheduler_configs
    assert config.scheduler.length == run.global_step
    assert run.optimizers[0].param_groups[0]["lr"] == 0
