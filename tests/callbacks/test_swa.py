"""Lightning's `StochasticWeightAveraging`, with every regime and from the command line."""

import copy
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.cli import main
from metricloss_pl.regimes import CenterSoftmaxClassifier, CosineClassifier, StandaloneCenterClassifier
from tests.callbacks.runs import digits, fit, trainer

REGIMES = {
    "center": CenterSoftmaxClassifier,
    "cosine": CosineClassifier,
    "standalone": StandaloneCenterClassifier,
}


class ByHand(Callback):
    """The mean of the weights at the beginnings of the second, third and fourth epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_start(self, trainer, pl_module):
        if 1 <= trainer.current_epoch < 4:
            self.seen.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    @property
    def average(self) -> dict[str, torch.Tensor]:
        return {name: torch.stack([seen[name] for seen in self.seen]).mean(0) for name in self.seen[0]}


def build(name):
    torch.manual_seed(0)
    options = {"standalone": {"inter_weight": 0.01}}.get(name, {})
    return REGIMES[name](10, TinyConvNet(in_channels=3, width=4, dropout=0.3), embedding_dim=10, **options)


def averaging():
    return StochasticWeightAveraging(0.01, swa_epoch_start=2, annealing_epochs=3)


@pytest.mark.parametrize("options", ["plain", "unvalidated", "accumulated", "scaled"])
@pytest.mark.parametrize("name", REGIMES)
def test_the_average_is_what_is_left(name, options, tmp_path):
    """Lightning's last pass over the images, for the statistics of batch norms, moves neither network nor centers."""
    options = {
        "plain": {},
        "unvalidated": {"limit_val_batches": 0},  # validation clears the gradients of the last step
        "accumulated": {"accumulate_grad_batches": 3},
        "scaled": {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]},
    }[options]
    hand, model = ByHand(), build(name)
    fit(tmp_path, averaging(), hand, model=model, data=digits(in_channels=3), max_epochs=4, **options)
    for parameter, mean in hand.average.items():
        torch.testing.assert_close(dict(model.named_parameters())[parameter].detach(), mean, rtol=1e-5, atol=1e-6)


def test_a_pass_without_backward_remembers_no_embeddings(tmp_path):
    class Pending(Callback):
        most = 0

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.most = max(self.most, len(pl_module.criterion._pending))

    pending = Pending()
    fit(tmp_path, averaging(), pending, model=build("center"), data=digits(in_channels=3), max_epochs=4)
    assert pending.most <= 1


def test_a_skipped_training_step_moves_nothing(tmp_path):
    """A `training_step` that returns None is Lightning's way to leave out a batch."""

    class Skipping(CenterSoftmaxClassifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if self.trainer.global_step >= 2 else loss

    class Keep(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                self.centers = pl_module.criterion.centers.clone()

    torch.manual_seed(0)
    model, keep = Skipping(10, TinyConvNet(width=4)), Keep()
    fit(tmp_path, keep, model=model, max_epochs=1)
    assert torch.equal(model.criterion.centers, keep.centers)


@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_resumed_run_equals_the_uninterrupted_one(epoch, tmp_path):
    """From before the average begins, from within, and from the end of the last epoch that trains."""

    def last(model, folder, ckpt_path=None):
        seed_everything(0, verbose=False)
        saving = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
        run = trainer(folder, averaging(), saving, max_epochs=4, enable_checkpointing=True)
        run.fit(model, digits(in_channels=3), ckpt_path=ckpt_path, weights_only=True)
        return torch.load(folder / "epoch=4.ckpt", weights_only=True)["state_dict"]

    start = build("center")
    expected = last(copy.deepcopy(start), tmp_path)
    found = last(start, tmp_path / "resumed", tmp_path / f"epoch={epoch}.ckpt")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_from_the_command_line(tmp_path):
    """The saved config is read by test and by --resume; a run that lacks only its last pass goes on, too."""
    config = Path(__file__).parents[2] / "configs" / "digits_center.yaml"
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.limit_train_batches=4"]
    swa = [
        "--trainer.callbacks=null",
        "--trainer.callbacks+=StochasticWeightAveraging",
        "--trainer.callbacks.swa_lrs=0.01",
    ]
    keep_all = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.save_top_k=-1"]
    keep_all += ["--trainer.callbacks.filename={epoch}", f"--trainer.callbacks.dirpath={tmp_path}"]
    options = ["--test_after_fit=false", "--data.samples_per_class=8", "--data.batch_size=16", "--trainer.max_epochs=2"]
    main(["fit", f"--config={config}", f"--runs_dir={tmp_path}", *swa, *keep_all, *options, *quiet])
    run = tmp_path / "digits_center" / "version_0"
    last = run / "checkpoints" / "last.ckpt"
    finished = torch.load(last, weights_only=True)
    main(["test", f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}", *quiet])
    with pytest.raises(SystemExit):
        main(["fit", f"--resume={run}", *quiet])  # nothing is left
    last.write_bytes((tmp_path / "epoch=1.ckpt").read_bytes())
    main(["fit", f"--resume={run}", *quiet])
    again = torch.load(last, weights_only=True)
    for name, tensor in finished["state_dict"].items():
        assert torch.equal(tensor, again["state_dict"][name]), name


def test_a_learning_rate_trial_leaves_the_center_optimizer_as_it_was(tmp_path):
    class Keep(Callback):
        def on_train_start(self, trainer, pl_module):
            if not hasattr(self, "state"):  # the trial's callbacks are its own
                self.state = copy.deepcopy(pl_module._center_stepper.state_dict())

    class Model(CenterSoftmaxClassifier):
        lr = 0.05

    def adagrad(parameters):
        return torch.optim.Adagrad(parameters, lr=0.1)

    keep, model = Keep(), Model(10, TinyConvNet(width=4), center_optimizer=adagrad)
    finder = LearningRateFinder(num_training_steps=5, update_attr=True)
    fit(tmp_path, finder, keep, model=model, max_epochs=1, enable_checkpointing=True)
    (state,) = keep.state["state"].values()
    assert state["step"] == 0
