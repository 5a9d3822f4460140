"""The package's own moving average of the weights: its warm-up, its start, and its warnings."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from metricloss_pl.callbacks import ExponentialMovingAverage
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import Classifier
from tests.callbacks.runs import digits, fit, regime, trainer


class ByHand(Callback):
    """The average as a loop makes it, from what the weights are after each step."""

    def __init__(self, decay, start_step=0):
        self.decay, self.start = decay, start_step
        self.average: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        steps = trainer.global_step - 1 - self.start
        decay = min(self.decay, (1 + steps) / (10 + steps)) if steps >= 0 and self.average else 0.0
        for name, tensor in pl_module.state_dict().items():
            old = self.average.get(name, tensor).double()
            self.average[name] = decay * old + (1 - decay) * tensor.double()


class Saved(ModelCheckpoint):
    def __init__(self, folder):
        super().__init__(folder, "{step}", save_top_k=-1, every_n_train_steps=1, save_on_train_epoch_end=False)


def state(folder, step):
    return torch.load(folder / f"step={step}.ckpt", weights_only=True)


# 9 steps in 3 epochs of 3.
@pytest.mark.parametrize(
    ("settings", "start"),
    [({}, 0), ({"start_step": 4}, 4), ({"start_epoch": 1}, 3), ({"start_step": 4, "start_epoch": 2}, 6)],
)
@pytest.mark.parametrize("decay", [0.2, 0.999])  # below the warm-up's 9 / 18 at the end, and above
def test_average(decay, settings, start, tmp_path):
    """The centers' too. Before the start the network's own weights are validated and saved."""
    hand, model = ByHand(decay, start), regime()
    callback = ExponentialMovingAverage(decay, **settings)
    fit(tmp_path, callback, hand, Saved(tmp_path), model=model, enable_checkpointing=True)
    assert "criterion.centers" in hand.average
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), hand.average[name], rtol=1e-5, atol=1e-6, msg=name)
    for step in range(1, 9):
        checkpoint = state(tmp_path, step)
        own, averaged = checkpoint["current_model_state"], checkpoint["state_dict"]
        for name, parameter in model.named_parameters():
            assert torch.equal(own[name], averaged[name]) == (step <= max(start, 1)), (step, name)
            assert parameter.dtype == own[name].dtype


def test_count_of_batches_is_the_network_s(tmp_path):
    model = regime()
    fit(tmp_path, ExponentialMovingAverage(), model=model)
    counts = [count.item() for name, count in model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert set(counts) == {9}


@pytest.mark.parametrize("step", [2, 4, 7])
def test_resumed_run_equals_the_uninterrupted_one(step, tmp_path):
    """From before the start, from within an epoch, and after it; bit for bit."""

    def last(model, folder, ckpt_path=None):
        seed_everything(0, verbose=False)
        callbacks = ExponentialMovingAverage(0.6, start_step=3), Saved(folder)
        run = trainer(folder, *callbacks, enable_checkpointing=True, accumulate_grad_batches=1)
        run.fit(model, digits(), ckpt_path=ckpt_path, weights_only=True)
        return state(folder, 9)

    start = regime()
    expected = last(copy.deepcopy(start), tmp_path)
    found = last(start, tmp_path / "resumed", tmp_path / f"step={step}.ckpt")
    for part in ("state_dict", "current_model_state", "averaging_state"):
        for name, tensor in expected[part].items():
            assert torch.equal(tensor, found[part][name]), (part, name)


def test_a_run_resumed_without_its_average_begins_one(tmp_path):
    """The warm-up is counted from where the average begins."""
    fit(tmp_path, Saved(tmp_path), max_epochs=2, enable_checkpointing=True)
    hand, model = ByHand(0.999, 6), regime()
    run = trainer(tmp_path, ExponentialMovingAverage(), hand)
    run.fit(model, digits(), ckpt_path=tmp_path / "step=6.ckpt", weights_only=True)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.double(), hand.average[name], rtol=1e-5, atol=1e-6, msg=name)


class Zeros(ExponentialMovingAverage):
    """An average that is worse than any network."""

    def _average(self, average, current, updates):
        return torch.zeros_like(average)


def warned(recwarn, *words):
    return [str(w.message) for w in recwarn if all(word in str(w.message) for word in words)]


def test_an_average_worse_than_the_network(tmp_path, recwarn):
    """The warning has the accuracies of both, over all batches that were validated."""
    models: list[Classifier] = [regime(None)]

    class Own(Callback):
        def on_train_end(self, trainer, pl_module):
            models.append(copy.deepcopy(pl_module))

    fit(tmp_path, Own(), Zeros(), model=models[0], data=digits(samples_per_class=40, val_fraction=0.5), max_epochs=8)
    (message,) = warned(recwarn, "averaged weights are worse")
    data = digits(samples_per_class=40, val_fraction=0.5)
    data.setup()
    for model in models:
        model.eval()
        with torch.no_grad():
            predictions = model.class_scores(model.embed(data.samples("val").images)).argmax(1)
        accuracy = (predictions == data.samples("val").labels).double().mean().item()
        assert f"{accuracy:.4f}" in message


@pytest.mark.parametrize("options", [{"limit_val_batches": 0}, {"callback": "equal"}])
def test_no_warning_without_a_reason(options, tmp_path, recwarn):
    """Nothing to validate on; or a decay of 0, which leaves the network."""
    callback = ExponentialMovingAverage(0.0) if options.pop("callback", None) else Zeros()
    fit(tmp_path, callback, max_epochs=2, **options)
    assert not warned(recwarn, "averaged")


def test_the_comparison_leaves_no_trace(tmp_path, monkeypatch):
    """Neither in torch's random state, nor in the metrics, nor in the weights."""

    def ends():
        model = regime()
        run = fit(tmp_path, ExponentialMovingAverage(), model=model)
        return torch.get_rng_state(), run.callback_metrics, model.state_dict(), [m.training for m in model.modules()]

    compared = ends()
    monkeypatch.setattr("metricloss_pl.callbacks.averaging._correct_on_validation", lambda *_: None)
    plain = ends()
    assert torch.equal(compared[0], plain[0])
    assert compared[3] == plain[3]
    for found, expected in ((compared[1], plain[1]), (compared[2], plain[2])):
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_an_average_that_never_begins(tmp_path, recwarn):
    """It is the network, and a warning says so."""
    model, plain = regime(), regime()
    fit(tmp_path, ExponentialMovingAverage(start_epoch=5), model=model)
    assert warned(recwarn, "start", "9 steps")
    fit(tmp_path, model=plain)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize(("start", "expected"), [({"update_starting_at_step": 5}, 1), ({}, 0)])
def test_lightning_s_average_with_a_late_start(start, expected, tmp_path, recwarn):
    fit(tmp_path, EMAWeightAveraging(**start), max_epochs=1)
    assert len(warned(recwarn, "EMAWeightAveraging", "initial weights")) == expected


@pytest.mark.parametrize("settings", [{"decay": 1.0}, {"decay": -0.1}, {"start_step": -1}, {"start_epoch": -1}])
def test_settings_out_of_range(settings):
    (name,) = settings
    with pytest.raises(UserError, match=f"{name} of ExponentialMovingAverage is {settings[name]}"):
        ExponentialMovingAverage(**settings)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_precisions(precision, tmp_path):
    fit(tmp_path, ExponentialMovingAverage(), max_epochs=1, precision=precision)


def test_one_callback_serves_two_fits(tmp_path):
    callback = ExponentialMovingAverage()
    for _ in range(2):
        model = regime()
        before = copy.deepcopy(model.state_dict())
        trainer(tmp_path, callback, max_epochs=1).fit(model, digits())
        assert not torch.equal(before["head.weight"], model.head.weight)
