import copy
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.callbacks import FreezeBackbone
from metricloss_pl.cli import main
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import (
    CenterSoftmaxClassifier,
    CosineClassifier,
    SoftmaxClassifier,
    StandaloneCenterClassifier,
)
from metricloss_pl.schedules import CosineDecay
from tests.callbacks.ddp_freeze import fit_all
from tests.callbacks.runs import digits, trainer
from tests.processes import run_groups
from tests.regimes import blobs

REGIMES = {
    "softmax": SoftmaxClassifier,
    "cosine": CosineClassifier,
    "center": CenterSoftmaxClassifier,
    "standalone": StandaloneCenterClassifier,
}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=0.01)


@pytest.fixture(params=REGIMES)
def model(request):
    """Return a regime with batch norm, dropout, parameter groups, weight decay and a schedule."""
    torch.manual_seed(0)
    options = {"cosine": {"head_weight_decay": 0.001}, "standalone": {"inter_weight": 0.01, "center_lr": 0.1}}
    return REGIMES[request.param](
        10,
        TinyConvNet(width=4, dropout=0.3),
        embedding_dim=10,
        optimizer=sgd,
        lr_scheduler=CosineDecay,
        **options.get(request.param, {}),
    )


class Modes(Callback):
    """Notes at each step what is in training mode and what gets gradients, in the backbone and outside."""

    def __init__(self) -> None:
        self.seen: list[tuple[bool, bool]] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: object) -> None:
        assert all(part.training for path, part in module.named_modules() if path in ("head", "embedding", "criterion"))
        training = {part.training for part in module.backbone.modules()}
        graded = {parameter.grad is not None for parameter in module.backbone.parameters()}
        assert len(training) == len(graded) == 1
        self.seen.append((training.pop(), graded.pop()))


def moved(before, model):
    return {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}


def state(model):
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def test_new_layers_alone_then_all(model, tmp_path):
    """Not a bit of the backbone moves for two epochs of 3 steps, its batch norm included; validation in between."""
    before, modes = state(model), Modes()
    trainer(tmp_path, FreezeBackbone(epochs=2), modes, max_epochs=2).fit(model, digits())
    changed = moved(before, model)
    assert modes.seen == [(False, False)] * 6
    assert not [key for key in changed if key.startswith("backbone.")]
    new = {key for key, _ in model.named_parameters() if not key.startswith("backbone.")}
    assert new <= changed
    assert len(new) >= 3
    assert all(part.training for part in model.backbone.modules())  # as before, for whatever comes next
    assert all(parameter.requires_grad for parameter in model.backbone.parameters())

    model.load_state_dict(before)
    modes = Modes()
    run = trainer(tmp_path, FreezeBackbone(epochs=2), modes, max_epochs=3)
    run.fit(model, digits())
    assert modes.seen == [(False, False)] * 6 + [(True, True)] * 3
    assert {key for key in before if key.startswith("backbone.")} <= moved(before, model)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-6)  # the schedule ran over all epochs


def test_resumed_run_equals_the_uninterrupted_one(model, tmp_path):
    """Out of a frozen epoch, from its end, out of the first free epoch; bit for bit, optimizer included."""
    start = copy.deepcopy(model)

    def fit(model, *callbacks, ckpt_path=None):
        seed_everything(0, verbose=False)
        run = trainer(
            tmp_path, FreezeBackbone(epochs=2), *callbacks, max_epochs=4, enable_checkpointing=bool(callbacks)
        )
        run.fit(model, digits(), ckpt_path=ckpt_path, weights_only=True)
        return run.optimizers[0].state_dict()

    every_step = ModelCheckpoint(
        tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1, save_on_train_epoch_end=False
    )
    expected = fit(model, every_step)
    for step in (2, 6, 7, 11):
        resumed = copy.deepcopy(start)
        found = fit(resumed, ckpt_path=tmp_path / f"step={step}.ckpt")
        assert not moved(state(model), resumed), step
        assert expected["param_groups"] == found["param_groups"]
        for index, buffers in expected["state"].items():
            assert torch.equal(buffers["momentum_buffer"], found["state"][index]["momentum_buffer"])


def test_equals_a_head_trained_on_stored_features(tmp_path):
    """Softmax on frozen features, beside a plain loop over features that are computed once."""
    torch.manual_seed(0)
    model = SoftmaxClassifier(blobs.C, TinyConvNet(width=4, dropout=0.5), optimizer=sgd)
    batches = list(blobs.loader())
    with torch.no_grad():
        features = [model.backbone.eval()(images) for images, _ in batches]
    model.backbone.train()
    head = copy.deepcopy(model.head)
    optimizer = sgd(head.parameters())
    for _ in range(3):
        for batch, (_, labels) in zip(features, batches, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(head(batch), labels).backward()
            optimizer.step()
    blobs.trainer(tmp_path, max_epochs=3, callbacks=[FreezeBackbone(epochs=3)]).fit(model, blobs.loader())
    torch.testing.assert_close(model.head.weight, head.weight)
    torch.testing.assert_close(model.head.bias, head.bias)


def test_what_the_user_has_frozen_stays_frozen(tmp_path):
    model = SoftmaxClassifier(10, TinyConvNet(width=4))
    first, norm = model.backbone.maps[0], model.backbone.maps[1]
    first.weight.requires_grad = False
    norm.eval()
    before = state(model)
    trainer(tmp_path, FreezeBackbone(epochs=1), max_epochs=2).fit(model, digits())
    changed = moved(before, model)
    assert "backbone.maps.3.weight" in changed
    assert "backbone.maps.0.weight" not in changed
    assert "backbone.maps.1.running_mean" not in changed
    assert not first.weight.requires_grad
    assert not norm.training


class Fail(Callback):
    def on_train_batch_end(self, *_):
        raise RuntimeError("interrupted")


def test_a_run_that_fails_leaves_the_backbone_free(tmp_path):
    model = SoftmaxClassifier(10, TinyConvNet(width=4))
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer(tmp_path, FreezeBackbone(), Fail()).fit(model, digits())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(part.training for part in model.backbone.modules())


def test_mistakes_get_one_line(tmp_path):
    with pytest.raises(UserError, match="epochs of FreezeBackbone is 0; it must be at least 1"):
        FreezeBackbone(epochs=0)
    bare = CosineClassifier(8, TinyConvNet(width=4), embedding_dim=None, ce_weight=0)
    with pytest.raises(UserError, match="nothing to train but its backbone"):
        trainer(tmp_path, FreezeBackbone()).fit(bare, blobs.loader())


def test_processes_train_as_one(tmp_path):
    """Momentum, weight decay, clipping and accumulation, without find_unused_parameters."""
    files = {processes: tmp_path / f"{processes}.pt" for processes in (0, 1, 2)}
    run_groups(*((max(1, processes), fit_all, processes, file) for processes, file in files.items()))
    ends = [torch.load(file, weights_only=True) for file in files.values()]
    for name, (frozen, expected) in ends[0].items():
        for key, tensor in frozen.items():
            assert not torch.equal(tensor, expected[key]), key
        for end in ends:
            for key, tensor in frozen.items():
                assert torch.equal(tensor, end[name][0][key]), key
            for key, tensor in expected.items():
                torch.testing.assert_close(tensor, end[name][1][key], rtol=1e-5, atol=1e-5, msg=f"{name}: {key}")


def test_from_the_command_line_and_resumed(tmp_path):
    """Two epochs with a frozen backbone; the resumed run knows of it, and trains all from its third epoch on."""
    config = Path(__file__).parents[2] / "configs" / "digits_center.yaml"
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    callback = ["--trainer.callbacks=FreezeBackbone", "--trainer.callbacks.epochs=2"]
    main(["fit", f"--config={config}", f"--runs_dir={tmp_path}", "--trainer.max_epochs=2", *callback, *quiet])
    run = tmp_path / "digits_center" / "version_0"

    def backbone():
        weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        return {key: tensor for key, tensor in weights.items() if key.startswith("backbone")}

    frozen = backbone()
    assert not any(tensor.any() for key, tensor in frozen.items() if "running_mean" in key)
    main(["fit", f"--resume={run}", "--trainer.max_epochs=4", *quiet])  # the schedule had come down to 0 for epoch 3
    assert not any(torch.equal(tensor, frozen[key]) for key, tensor in backbone().items())
