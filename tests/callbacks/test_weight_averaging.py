"""Lightning's averaging of weights, with every regime."""

import copy
import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.cli import main
from metricloss_pl.metrics import Temperature
from metricloss_pl.regimes import (
    CenterSoftmaxClassifier,
    CosineClassifier,
    SoftmaxClassifier,
    StandaloneCenterClassifier,
)
from tests.callbacks.runs import digits, trainer

REGIMES = {
    "softmax": SoftmaxClassifier,
    "cosine": CosineClassifier,
    "center": CenterSoftmaxClassifier,
    "standalone": StandaloneCenterClassifier,
}
DECAY = 0.8


@pytest.fixture(params=REGIMES)
def model(request):
    """Return a regime with batch norm and dropout for color images."""
    torch.manual_seed(0)
    options = {"standalone": {"inter_weight": 0.01}}.get(request.param, {})
    backbone = TinyConvNet(in_channels=3, width=4, dropout=0.3)
    return REGIMES[request.param](10, backbone, embedding_dim=10, class_weights="balanced", **options)


class ByHand(Callback):
    """The average as a loop makes it, from what the weights are after each step."""

    def __init__(self) -> None:
        self.average: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer, pl_module, *_):
        for name, tensor in pl_module.state_dict().items():
            old = self.average.get(name, tensor).double()
            self.average[name] = DECAY * old + (1 - DECAY) * tensor.double()


def fit(model, folder, *callbacks, epochs=3, ckpt_path=None):
    seed_everything(0, verbose=False)
    averaging = EMAWeightAveraging(decay=DECAY)
    run = trainer(folder, averaging, *callbacks, max_epochs=epochs, enable_checkpointing=bool(callbacks))
    run.fit(model, digits(in_channels=3), ckpt_path=ckpt_path, weights_only=True)
    return run


def scores(model, part):
    data = digits(in_channels=3)
    data.setup()
    model.eval()
    with torch.no_grad():
        return model.class_scores(model.embed(data.samples(part).images)), data.samples(part).labels


def test_the_average_is_what_is_validated_saved_and_tested(model, tmp_path):
    hand = ByHand()
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor="val/accuracy", mode="max", save_top_k=-1)
    run = fit(model, tmp_path, hand, best)
    checkpoint = torch.load(tmp_path / "epoch=2.ckpt", weights_only=True)
    for name, tensor in checkpoint["state_dict"].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor.double(), hand.average[name], rtol=1e-4, atol=1e-5, msg=name)
    for name, _ in model.named_parameters():
        assert not torch.equal(checkpoint["current_model_state"][name], checkpoint["state_dict"][name]), name

    # What is left after the fit, and what a test of the checkpoint in the same run loads, is the average.
    for key in ("fitted", "tested"):
        if key == "tested":
            run.test(
                model, digits(in_channels=3), ckpt_path=tmp_path / "epoch=2.ckpt", weights_only=True, verbose=False
            )
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, checkpoint["state_dict"][name]), (key, name)
    found, labels = scores(model, "test")
    accuracy = (found.argmax(1) == labels).double().mean().item()
    assert run.callback_metrics["test/accuracy"].item() == pytest.approx(accuracy, abs=1e-6)

    # Validation was over the average, and the temperature is fitted on it.
    found, labels = scores(model, "val")
    calibration = Temperature()
    calibration.update(found, labels)
    assert model.temperature == pytest.approx(calibration.compute().item(), rel=1e-3)
    accuracy = (found.argmax(1) == labels).double().mean().item()
    assert checkpoint["callbacks"][best.state_key]["current_score"].item() == pytest.approx(accuracy, abs=1e-6)


def test_resumed_run_equals_the_uninterrupted_one(model, tmp_path):
    """From within the first epoch, from its end, from within the second; bit for bit."""
    start = copy.deepcopy(model)

    def last(model, folder, ckpt_path=None):
        steps = {"save_top_k": -1, "every_n_train_steps": 1, "save_on_train_epoch_end": False}
        fit(model, folder, ModelCheckpoint(folder, "{step}", **steps), ckpt_path=ckpt_path)
        return torch.load(folder / "step=9.ckpt", weights_only=True)

    expected = last(model, tmp_path)
    for step in (2, 3, 5):
        found = last(copy.deepcopy(start), tmp_path / str(step), tmp_path / f"step={step}.ckpt")
        for part in ("state_dict", "current_model_state", "averaging_state"):
            assert expected[part].keys() == found[part].keys()
            for name, tensor in expected[part].items():
                assert torch.equal(tensor, found[part][name]), (step, part, name)


def test_from_the_command_line(tmp_path, capsys, recwarn):
    """Trained, tested at once, tested again, resumed; the screen says nothing of how Lightning keeps two models."""
    config = Path(__file__).parents[2] / "configs" / "digits_center.yaml"
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.limit_train_batches=5"]
    flags = [
        "--trainer.callbacks=null",
        "--trainer.callbacks+=ExponentialMovingAverage",
        "--trainer.callbacks.decay=0.9",
    ]
    main(["fit", f"--config={config}", f"--runs_dir={tmp_path}", "--trainer.max_epochs=2", *flags, *quiet])
    run = tmp_path / "digits_center" / "version_0"
    tested = json.loads((run / "result.json").read_text())["metrics"]
    main(["test", f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}", *quiet])
    again = json.loads((run / "test.json").read_text())["metrics"]
    assert {name: tested[name] for name in again} == pytest.approx(again)
    main(["fit", f"--resume={run}", "--trainer.max_epochs=3", *quiet])
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 15
    assert checkpoint["averaging_state"]["n_averaged"] == 15
    assert not [warning for warning in recwarn if "WeightAveraging" in str(warning.message)]
