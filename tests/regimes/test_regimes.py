"""Properties of every regime: it trains under every Trainer flag, logs, saves, loads, resumes and refuses."""

import copy
import functools
import inspect

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.callbacks import TrainingChecks
from metricloss_pl.class_embeddings import simplex
from metricloss_pl.data import DigitsDataModule
from metricloss_pl.errors import UserError
from metricloss_pl.mixing import CutMix, MixUp
from metricloss_pl.regimes import (
    CenterSoftmaxClassifier,
    Classifier,
    CosineClassifier,
    MetricLearningClassifier,
    SoftmaxClassifier,
    StandaloneCenterClassifier,
)
from metricloss_pl.schedules import CosineDecay, StepDecay, WarmRestarts
from tests.regimes.blobs import C, D, Flat, loader, trainer

REGIMES = {
    "softmax": lambda **o: SoftmaxClassifier(C, Flat(), **o),
    "smooth": lambda **o: SoftmaxClassifier(C, Flat(), label_smoothing=0.1, smoothing_target="non_target", **o),
    "mixed": lambda **o: SoftmaxClassifier(C, Flat(), batch_mixing=MixUp(probability=0.5), **o),
    "squared": lambda **o: SoftmaxClassifier(C, Flat(), loss="squared_error", **o),
    "cosine": lambda **o: CosineClassifier(C, Flat(), **o),
    "cosine_mixed": lambda **o: CosineClassifier(C, Flat(), ce_weight=1.0, batch_mixing=CutMix(probability=0.5), **o),
    "cosine_no_head": lambda **o: CosineClassifier(C, Flat(), head="none", class_embeddings="simplex", **o),
    "cosine_alone": lambda **o: CosineClassifier(C, Flat(), ce_weight=0, **o),
    "center": lambda **o: CenterSoftmaxClassifier(C, Flat(), **o),
    "center_gradient": lambda **o: CenterSoftmaxClassifier(C, Flat(), center_rule="gradient", center_weight=0.1, **o),
    "center_mixed": lambda **o: CenterSoftmaxClassifier(C, Flat(), batch_mixing=CutMix(same_class=True), **o),
    "standalone": lambda **o: StandaloneCenterClassifier(C, Flat(), **o),
    "standalone_centers": lambda **o: StandaloneCenterClassifier(
        C, Flat(), intra="exp", intra_scale=0.01, inter="centers", **o
    ),
    "standalone_softmax": lambda **o: StandaloneCenterClassifier(C, Flat(), inter="softmax", inter_weight=1.0, **o),
    "standalone_mean": lambda **o: StandaloneCenterClassifier(C, Flat(), pairs="mean", inter_weight=1.0, **o),
    "arcface": lambda **o: MetricLearningClassifier(C, Flat(), loss_args={"scale": 16}, **o),
}


@pytest.fixture(params=REGIMES)
def build(request):
    torch.manual_seed(0)
    return REGIMES[request.param]


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_every_regime_learns_and_logs(build, tmp_path):
    model = build(lr_scheduler=CosineDecay)
    run = trainer(tmp_path, max_epochs=40)
    run.fit(model, loader(), loader(24, seed=1))
    logged, steps = dict(run.callback_metrics), run.global_step
    metrics = run.validate(model, loader(24, seed=1), verbose=False)[0]
    assert metrics["val/accuracy"] > 0.6  # chance is 1 / 3
    assert metrics["val/balanced_accuracy"] == pytest.approx(metrics["val/accuracy"])  # 8 images each
    assert "val/top5_accuracy" not in metrics  # only three classes
    parts = {name.removeprefix("val/") for name in metrics} - {"accuracy", "balanced_accuracy"}
    assert {f"train/{part}" for part in parts} <= logged.keys()
    assert "train/loss" in logged
    assert steps == 40 * 4


def test_every_regime_takes_clipping_accumulation_and_max_steps(build, tmp_path):
    model = build(lr_scheduler=CosineDecay, lr_scheduler_interval="step")
    run = trainer(tmp_path, max_epochs=-1, max_steps=5, accumulate_grad_batches=2, gradient_clip_val=0.1)
    run.fit(model, loader())
    assert run.global_step == 5
    assert run.lr_scheduler_configs[0].scheduler.length == 5
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-6)  # the cosine has come down


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_every_regime_takes_every_precision(build, precision, tmp_path):
    model = build()
    trainer(tmp_path, precision=precision).fit(model, loader(), loader(24))
    for name, tensor in model.state_dict().items():
        assert torch.isfinite(tensor).all(), name
        if "criterion" in name and tensor.is_floating_point():
            assert tensor.dtype == (torch.float64 if precision == "64-true" else torch.float32), name


def test_every_parameter_gets_a_gradient(build, tmp_path):
    """Else DistributedDataParallel would stop: a head that the loss weight silences must not exist."""
    model = build()
    model.trainer = trainer(tmp_path)
    images, labels = next(iter(loader()))
    model.losses(model.embed(images), labels)["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_resumed_fit_equals_one_uninterrupted_fit(build, tmp_path):
    start = build(optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9))
    whole, first, second = (copy.deepcopy(start) for _ in range(3))
    trainer(tmp_path, max_epochs=4).fit(whole, loader())
    run = trainer(tmp_path, max_epochs=2)
    run.fit(first, loader())
    run.save_checkpoint(tmp_path / "two.ckpt")
    trainer(tmp_path, max_epochs=4).fit(second, loader(), ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert any(not torch.equal(tensor, first.state_dict()[name]) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize(("name", "value"), [("std", 0.0), ("std", -0.3), ("temperature", 0.0), ("temperature", -1.0)])
def test_a_checkpoint_that_would_predict_nan_is_refused(name, value, tmp_path):
    model = SoftmaxClassifier(C, Flat())
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, loader())
    setattr(model, name, torch.tensor([value]) if name == "std" else value)
    run.save_checkpoint(tmp_path / "forged.ckpt")
    with pytest.raises(UserError, match=f"{name} is .*{value}") as caught:
        SoftmaxClassifier.load_from_checkpoint(tmp_path / "forged.ckpt", backbone=Flat())
    assert "\n" not in str(caught.value)


def test_checkpoint_reads_weights_only_and_loads_back(build, tmp_path):
    model = build(class_names=["a", "b", "c"])
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, loader(), loader(24))
    run.save_checkpoint(tmp_path / "model.ckpt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert checkpoint["class_names"] == ["a", "b", "c"]
    assert "optimizer" not in checkpoint["hyper_parameters"]
    loaded = type(model).load_from_checkpoint(tmp_path / "model.ckpt", backbone=Flat()).eval()
    images, _ = next(iter(loader()))
    torch.testing.assert_close(loaded(images), model.eval()(images))
    assert loaded.temperature == model.temperature
    other = build(class_names=["a", "x", "c"])
    with pytest.raises(UserError, match="calls class 1 'b' and the data call it 'x'"):
        trainer(tmp_path).test(other, loader(), ckpt_path=tmp_path / "model.ckpt", weights_only=True)
    other = SoftmaxClassifier(2, Flat())
    with pytest.raises(UserError, match="trained on 3 classes and the data have 2"):
        other.on_load_checkpoint(checkpoint)


def test_predictions(build, tmp_path):
    model = build()
    run = trainer(tmp_path, max_epochs=10)
    run.fit(model, loader(), loader(24))
    batches = run.predict(model, loader(24, seed=2))
    probabilities = torch.cat([batch["probabilities"] for batch in batches])
    torch.testing.assert_close(probabilities.sum(1), torch.ones(24))
    assert (probabilities.argmax(1) == torch.arange(24) % C).float().mean() > 0.6  # chance is 1 / 3
    assert torch.cat([batch["embeddings"] for batch in batches]).shape == (24, model.embedding_dim)
    assert model.temperature != 1.0  # fitted on the validation images


def test_a_loss_that_stops_being_finite_ends_the_run(build, tmp_path):
    model = build()
    bad = loader()
    bad.dataset.tensors[0][5] = float("nan")
    with pytest.raises(UserError, match=r"nan at step 0 of epoch 0 \(learning rate 0\.05") as caught:
        trainer(tmp_path).fit(model, bad)
    parts = set(model.losses(torch.randn(4, model.embedding_dim), torch.tensor([0, 1, 2, 0]))) - {"loss"} or {"loss"}
    assert str(caught.value).partition(" ")[0] in {f"train/{part}" for part in parts}  # the part, not the total
    assert "\n" not in str(caught.value)


def test_a_copy_shares_what_builds_its_optimizers_alone(build, tmp_path):
    """On the command line that leads to the trainer and the data, which an average of the weights would then copy."""

    class Program:
        def __deepcopy__(self, memo):
            raise AssertionError("the whole program is copied")

    model = build()
    model.optimizer = functools.partial(lambda program, p: torch.optim.SGD(p, lr=0.05), Program())
    model.trainer = trainer(tmp_path)
    twin = copy.deepcopy(model)
    assert twin.optimizer is model.optimizer
    assert twin._trainer is None
    pairs = list(zip(model.state_dict().items(), twin.state_dict().items(), strict=True))
    assert all(a == b and torch.equal(x, y) and x is not y for (a, x), (b, y) in pairs)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in twin.parameters()}


def test_no_checkpoint_of_weights_that_are_not_finite(build, tmp_path):
    model = build()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, loader())
    with torch.no_grad():
        model.backbone.net[1].bias[0] = float("inf")
    with pytest.raises(UserError, match=r"backbone\.net\.1\.bias is not finite"):
        run.save_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "bad.ckpt").exists()


def test_images_of_any_type_are_normalized_alike():
    model = SoftmaxClassifier(C, Flat())
    model.mean, model.std = torch.tensor([0.2]), torch.tensor([0.5])
    images = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    expected = model.backbone((images.float() / 255 - 0.2) / 0.5)
    torch.testing.assert_close(model.embed(images), expected)
    torch.testing.assert_close(model.embed(images.float() / 255), expected)
    torch.testing.assert_close(model(images), model.class_scores(expected))


def test_probabilities_are_softmax_of_scores_over_temperature():
    model = SoftmaxClassifier(C, Flat())
    model.temperature = 2.0
    scores = torch.randn(4, C)
    torch.testing.assert_close(model.probabilities(scores), torch.softmax(scores / 2, 1))


# ------------------------------------------------------------------------------------------------- what a regime owns


def test_squared_error_and_smoothing_reach_the_loss():
    embeddings, labels = torch.randn(6, D), torch.arange(6) % C
    model = REGIMES["squared"]()
    logits = model.head(embeddings)
    expected = (logits - torch.eye(C)[labels]).square().sum(1).mean()
    torch.testing.assert_close(model.losses(embeddings, labels)["loss"], expected)
    model = REGIMES["smooth"]()
    target = torch.full((6, C), 0.05)
    target[range(6), labels] = 0.9
    expected = -(target * model.head(embeddings).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(model.losses(embeddings, labels)["loss"], expected)


def test_cosine_head_reads_the_normalized_embedding():
    model = CosineClassifier(C, Flat(), ce_weight=0.3).eval()
    embeddings, labels = torch.randn(6, C), torch.arange(6) % C
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    head = model.criterion.head
    logits = head.linear(head.norm(unit.relu()))
    torch.testing.assert_close(model.class_scores(embeddings), logits)
    losses = model.losses(embeddings, labels)
    cosine = 1 - unit[range(6), labels].mean()
    cross_entropy = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(losses["loss"], cosine + 0.3 * cross_entropy)
    torch.testing.assert_close(model.class_scores(10 * embeddings), logits)


def test_cosine_without_cross_entropy_has_no_head_and_predicts_the_nearest_class_embedding():
    assert CosineClassifier(C, Flat(), ce_weight=0).criterion.head is None
    targets = simplex(C)
    model = CosineClassifier(C, Flat(), class_embeddings=targets, head="none")
    assert model.criterion.head is None
    assert model.embedding_dim == C - 1
    assert model.class_scores(7 * targets).argmax(1).tolist() == list(range(C))
    torch.testing.assert_close(model.class_anchors, targets)


def test_cosine_head_has_a_weight_decay_of_its_own():
    model = CosineClassifier(C, Flat(), head_weight_decay=1e-3, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    network, head = model.configure_optimizers().param_groups
    assert network["weight_decay"] == 0
    assert head["weight_decay"] == 1e-3
    assert head["params"][0] is model.criterion.head.linear.weight
    assert sum(len(g["params"]) for g in (network, head)) == len(list(model.parameters()))


def test_centers_have_a_group_of_their_own():
    optimizer = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3)  # noqa: E731
    model = StandaloneCenterClassifier(C, Flat(), center_lr=0.3, optimizer=optimizer)
    network, centers = model.configure_optimizers().param_groups
    assert (centers["lr"], centers["momentum"], centers["weight_decay"]) == (0.3, 0, 0)
    assert (network["lr"], network["momentum"], network["weight_decay"]) == (0.05, 0.9, 1e-3)
    assert centers["params"][0] is model.criterion.centers


class Layers(nn.Module):
    """Everything that may have a weight decay, or should not: (B, 1, 4, 4) to (B, D)."""

    num_features = D

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, D, 3)
        self.norm = nn.BatchNorm2d(D)
        self.activation = nn.PReLU()
        self.dense = nn.Linear(D, D)
        self.token = nn.Parameter(torch.ones(1, D))
        self.frozen = nn.Linear(D, D).requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.activation(self.norm(self.conv(images)))
        return self.frozen(self.dense(maps.mean((2, 3))) + self.token)


class DecayedToken(SoftmaxClassifier):
    """A regime of a user's, which gives a parameter that is no weight a weight decay of its own."""

    def parameter_groups(self):
        token = self.backbone.token
        others = [parameter for parameter in self.parameters() if parameter.requires_grad and parameter is not token]
        return [{"params": others}, {"params": [token], "weight_decay": 0.125}]


@pytest.mark.parametrize(
    ("regime", "options", "own"),
    [
        (SoftmaxClassifier, {}, {"head.weight": 0.25}),
        (DecayedToken, {}, {"head.weight": 0.25, "backbone.token": 0.125}),
        (CosineClassifier, {}, {"criterion.head.linear.weight": 0.25}),
        (CosineClassifier, {"head_weight_decay": 0.5}, {"criterion.head.linear.weight": 0.5}),
        (CenterSoftmaxClassifier, {}, {"head.weight": 0.25}),
        (StandaloneCenterClassifier, {"center_lr": 0.1}, {}),
        (MetricLearningClassifier, {}, {}),
    ],
)
@pytest.mark.parametrize("decay_all", [True, False])
def test_weight_decay_acts_on_what_it_should(regime, options, own, decay_all):
    """A step without a gradient shrinks a parameter by lr * weight decay, and leaves those that have none."""
    optimizer = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.25)  # noqa: E731
    model = regime(C, Layers(), embedding_dim=3, optimizer=optimizer, decay_norm_and_bias=decay_all, **options)
    decays = {"backbone.conv.weight": 0.25, "backbone.dense.weight": 0.25, "embedding.weight": 0.25, **own}
    for name, parameter in model.named_parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        if decay_all and parameter.requires_grad and name != "criterion.centers":
            decays.setdefault(name, 0.25)
    stepper = model.configure_optimizers()
    given = [parameter for group in stepper.param_groups for parameter in group["params"]]
    assert len(given) == sum(parameter.requires_grad for parameter in model.parameters())
    model.losses(torch.ones(6, 3), torch.arange(6) % C)  # where all centers lie already
    stepper.step()
    for name, parameter in model.named_parameters():
        expected = torch.full_like(parameter, 1 - 0.1 * decays.pop(name, 0.0))
        torch.testing.assert_close(parameter.data, expected, msg=name)
    assert decays == {}


def test_checkpoints_older_than_a_setting_load(tmp_path):
    run = trainer(tmp_path, max_epochs=1)
    run.fit(SoftmaxClassifier(C, Flat(), decay_norm_and_bias=False), loader())
    run.save_checkpoint(tmp_path / "new.ckpt")
    checkpoint = torch.load(tmp_path / "new.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"].pop("decay_norm_and_bias") is False
    torch.save(checkpoint, tmp_path / "old.ckpt")
    assert SoftmaxClassifier.load_from_checkpoint(tmp_path / "old.ckpt", backbone=Flat()).decay_norm_and_bias


@pytest.mark.parametrize("regime", [REGIMES[name] for name in ("softmax", "cosine", "center", "standalone", "arcface")])
def test_every_regime_takes_the_arguments_of_the_base(regime):
    """They are declared by the base alone; the command line finds them there."""
    assert set(ArgumentParser().add_class_arguments(type(regime()))) >= inspect.signature(Classifier).parameters.keys()


@pytest.mark.parametrize("name", ["center", "standalone"])
def test_centers_move_and_are_in_the_checkpoint(name, tmp_path):
    torch.manual_seed(0)
    model = REGIMES[name]()
    before = model.criterion.centers.detach().clone()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "model.ckpt")
    saved = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]["criterion.centers"]
    assert (saved - before).norm(dim=1).min() > 0.05
    assert torch.equal(saved, model.class_anchors)


@pytest.mark.parametrize("weight", [0.0, 0.01, 10.0])
def test_centers_follow_equation_4_whatever_the_weight(weight, tmp_path):
    """One step by hand: c <- c - alpha * sum (c - x) / (1 + n), x from before the network's step."""
    torch.manual_seed(0)
    model = CenterSoftmaxClassifier(C, Flat(), center_weight=weight)
    batch = loader(batch_size=12)
    images, labels = next(iter(batch))
    with torch.no_grad():
        embeddings, centers = model.embed(images), model.criterion.centers.clone()
    for j in range(C):
        own = embeddings[labels == j]
        centers[j] -= 0.5 * (centers[j] - own).sum(0) / (1 + len(own))
    trainer(tmp_path, max_epochs=-1, max_steps=1).fit(model, batch)
    torch.testing.assert_close(model.criterion.centers.detach(), centers)


def test_accumulated_micro_batches_move_centers_as_one_batch(tmp_path):
    ends = []
    for batch_size, accumulate in ((12, 1), (3, 4)):
        torch.manual_seed(0)
        model = CenterSoftmaxClassifier(C, Flat())
        run = trainer(tmp_path, max_epochs=3, accumulate_grad_batches=accumulate, gradient_clip_val=0.5)
        run.fit(model, loader(batch_size=batch_size))
        assert run.global_step == 12
        ends.append(state(model))
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-4, atol=1e-5)


def test_center_optimizer_state_survives_a_resume(tmp_path):
    build = lambda: CenterSoftmaxClassifier(  # noqa: E731
        C, Flat(), center_optimizer=lambda p: torch.optim.Adagrad(p, lr=0.5)
    )
    torch.manual_seed(0)
    start = build()
    whole, first, second = copy.deepcopy(start), copy.deepcopy(start), build()
    trainer(tmp_path, max_epochs=4).fit(whole, loader())
    run = trainer(tmp_path, max_epochs=2)
    run.fit(first, loader())
    run.save_checkpoint(tmp_path / "two.ckpt")
    trainer(tmp_path, max_epochs=4).fit(second, loader(), ckpt_path=tmp_path / "two.ckpt", weights_only=True)
    assert torch.equal(whole.criterion.centers, second.criterion.centers)
    saved, resumed = whole._center_stepper.state_dict(), second._center_stepper.state_dict()
    assert torch.equal(saved["state"][0]["sum"], resumed["state"][0]["sum"])


class NoChecks(TrainingChecks):
    """Takes the place of the regime's checks."""

    def on_before_backward(self, *args):
        pass


def test_a_skipped_step_moves_no_center_and_drops_its_embeddings(tmp_path):
    class Overflow(CenterSoftmaxClassifier):
        def losses(self, embeddings, labels):
            losses = super().losses(embeddings, labels)
            if self.trainer.global_step == 0 and not self.seen:
                self.seen = True
                losses["loss"] = losses["loss"] + (embeddings * 1e30).sum() * 1e30  # finite loss would scale to inf
            return losses

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.history.append(self.criterion.centers.detach().clone())
            assert self.criterion._pending == []

    torch.manual_seed(0)
    model = Overflow(C, Flat())
    model.seen, model.history = False, []
    before = model.criterion.centers.detach().clone()
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    trainer(tmp_path, max_epochs=1, plugins=[plugin], callbacks=[NoChecks()]).fit(model, loader())
    assert torch.equal(model.history[0], before)
    assert (model.history[1] - before).norm(dim=1).min() > 0.05


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SoftmaxClassifier(1, Flat()), "1 class: at least 2"),
        (lambda: SoftmaxClassifier(3, Flat(), class_names=["a", "b"]), "3 classes and 2 class names"),
        (lambda: SoftmaxClassifier(3, Flat(), class_names=["a", "b", "a"]), "class_names .*'a'"),
        (lambda: CosineClassifier(Flat(), 3), "backbone is 3.* num_classes"),
        (lambda: SoftmaxClassifier(3, torch.nn.Flatten()), "backbone Flatten has no num_features"),
        (lambda: SoftmaxClassifier(3, Flat(), label_smoothing=1.5), "label_smoothing is 1.5"),
        (lambda: SoftmaxClassifier(3, Flat(), loss="squared_error", label_smoothing=0.1), "label_smoothing is 0.1"),
        (lambda: CosineClassifier(3, Flat(), ce_weight=-1), "ce_weight is -1"),
        (lambda: CosineClassifier(3, Flat(), embedding_dim=None, ce_weight=0), "features are 4 wide and .* 3"),
        (lambda: CosineClassifier(3, Flat(), embedding_dim=2, head="none"), "embedding_dim are 2 wide and .* 3"),
        (lambda: CosineClassifier(3, Flat(), class_embeddings=torch.ones(3, 3)), "whose norm is not 1"),
        (lambda: CosineClassifier(3, Flat(), class_embeddings=torch.eye(4)), r"\(4, 4\).* must be \(3, D\)"),
        (lambda: CenterSoftmaxClassifier(3, Flat(), center_weight=-1), "center_weight is -1"),
        (lambda: CenterSoftmaxClassifier(3, Flat(), center_optimizer=torch.optim.Adam), "takes no sparse gradients"),
        (
            lambda: CenterSoftmaxClassifier(3, Flat(), center_optimizer=lambda p: torch.optim.SGD(p, 0.5, 0.9)),
            "has momentum 0.9",
        ),
        (
            lambda: CenterSoftmaxClassifier(
                3, Flat(), center_optimizer=lambda p: torch.optim.SGD(p, 0.5, weight_decay=0.1)
            ),
            "has weight_decay 0.1",
        ),
        (
            lambda: CenterSoftmaxClassifier(3, Flat(), batch_mixing=CutMix()),
            "CutMix .*CenterSoftmaxClassifier.* same_class",
        ),
        (
            lambda: StandaloneCenterClassifier(3, Flat(), batch_mixing=MixUp()),
            "MixUp .*StandaloneCenterClassifier.* same_class",
        ),
        (lambda: StandaloneCenterClassifier(3, Flat(), center_lr=-1), "center_lr is -1"),
        (lambda: StandaloneCenterClassifier(3, Flat(), inter_weight=-0.1), "inter_weight is -0.1"),
    ],
)
def test_errors(build, message):
    with pytest.raises(UserError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_wrong_optimizer_settings_show_at_construction():
    with pytest.raises(ValueError):  # noqa: PT011 (torch's own, in its words)
        SoftmaxClassifier(3, Flat(), optimizer=lambda p: torch.optim.SGD(p, lr=-1))
    with pytest.raises(ValueError, match="warmup is 2"):
        SoftmaxClassifier(3, Flat(), lr_scheduler=lambda o: CosineDecay(o, warmup=2))


def test_options_that_need_the_data_say_so(tmp_path):
    for options in ({"class_weights": "balanced"}, {"center_init": "class_means"}):
        with pytest.raises(UserError, match="needs an ImageDataModule"):
            trainer(tmp_path).fit(CenterSoftmaxClassifier(C, Flat(), **options), loader())


def test_the_base_can_not_be_built():
    with pytest.raises(TypeError):
        Classifier(3, Flat())


# ---------------------------------------------------------------------------------------------- what the data tell


def digits(**options):
    return DigitsDataModule(samples_per_class=20, batch_size=40, **options)


def test_normalization_and_image_format_come_from_the_data(tmp_path):
    data = digits()
    model = SoftmaxClassifier(10, TinyConvNet(width=8))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, data)
    pixels = data.samples("train").images.double() / 255
    assert model.mean.item() == pytest.approx(pixels.mean().item(), abs=1e-5)
    assert model.std.item() == pytest.approx(pixels.std(correction=0).item(), abs=1e-5)
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = SoftmaxClassifier.load_from_checkpoint(tmp_path / "model.ckpt", backbone=TinyConvNet(width=8))
    assert torch.equal(loaded.mean, model.mean)
    assert loaded.image_format == data.image_format


def test_balanced_class_weights(tmp_path):
    class Lopsided(DigitsDataModule):
        def read(self, part):
            samples = super().read(part)
            if samples is None:
                return None
            keep = [i for i, label in enumerate(samples.labels.tolist()) if label != 3 or i % 4 == 0]
            return samples.subset(keep)

    data = Lopsided(batch_size=100)
    model = SoftmaxClassifier(10, TinyConvNet(width=8), class_weights="balanced")
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, data)
    counts = data.class_counts
    torch.testing.assert_close(model.class_weights, counts.sum() / (10 * counts.float()))
    assert model.class_weights[3] > 2.5
    run.save_checkpoint(tmp_path / "model.ckpt")
    network = TinyConvNet(width=8)
    loaded = SoftmaxClassifier.load_from_checkpoint(tmp_path / "model.ckpt", backbone=network)
    assert torch.equal(loaded.class_weights, model.class_weights)
    assert model.class_weights[data.samples("train").labels].mean().item() == pytest.approx(1)
    embeddings, labels = torch.randn(4, model.embedding_dim), torch.tensor([3, 3, 0, 1])
    each = torch.nn.functional.cross_entropy(model.head(embeddings), labels, reduction="none")
    expected = (each * model.class_weights[labels]).mean()
    torch.testing.assert_close(model.losses(embeddings, labels)["loss"], expected)


@pytest.mark.parametrize("weights", [{"b": 2}, [1.0, 2.0, 1.0]])
def test_given_class_weights(weights, tmp_path):
    model = SoftmaxClassifier(C, Flat(), class_names=["a", "b", "c"], class_weights=weights)
    embeddings, labels = torch.randn(4, D), torch.tensor([1, 1, 0, 2])
    each = torch.nn.functional.cross_entropy(model.head(embeddings), labels, reduction="none")
    expected = (each * torch.tensor([2.0, 2.0, 1.0, 1.0])).mean()
    torch.testing.assert_close(model.losses(embeddings, labels)["loss"], expected)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "model.ckpt")
    load = functools.partial(SoftmaxClassifier.load_from_checkpoint, tmp_path / "model.ckpt", backbone=Flat())
    assert torch.equal(load().class_weights, torch.tensor([1.0, 2.0, 1.0]))
    assert load(class_weights=None).class_weights is None
    assert torch.equal(load(class_weights=[5.0, 5.0, 5.0]).class_weights, torch.full((3,), 5.0))


@pytest.mark.parametrize(
    "weights",
    [{"d": 2.0}, [1.0, 2.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0], "balance", torch.ones(3), {"a": "b"}],
)
def test_class_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(UserError, match="class_weights"):
        SoftmaxClassifier(C, Flat(), class_names=["a", "b", "c"], class_weights=weights)


def test_class_weights_by_names_that_are_numbers():
    assert SoftmaxClassifier(C, Flat(), class_weights={2: 3.0}).class_weights.tolist() == [1, 1, 3]


def test_any_module_with_given_width_is_a_backbone():
    model = SoftmaxClassifier(C, nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), num_features=5, embedding_dim=2)
    assert model.embed(torch.rand(2, 1, 4, 4)).shape == (2, 2)
    assert model(torch.rand(2, 1, 4, 4)).shape == (2, C)


@pytest.mark.parametrize("setting", [{"balanced_sampling": True}, {"samples_per_class_in_batch": 8}])
def test_classes_are_evened_out_once(setting, tmp_path):
    model = SoftmaxClassifier(10, TinyConvNet(width=8), class_weights="balanced")
    with pytest.raises(UserError, match=f"class_weights and {next(iter(setting))} both balance"):
        trainer(tmp_path).fit(model, DigitsDataModule(**setting))


def test_centers_start_at_the_class_means(tmp_path):
    class FirstCenters(CenterSoftmaxClassifier):
        def on_train_start(self):
            self.first = self.criterion.centers.detach().clone()

    torch.manual_seed(0)
    data = digits()
    model = FirstCenters(10, TinyConvNet(width=8), center_init="class_means")
    untrained = copy.deepcopy(model).eval()
    trainer(tmp_path, max_epochs=1).fit(model, data)
    samples = data.samples("train")
    untrained.mean, untrained.std = model.mean, model.std
    with torch.no_grad():
        embeddings = untrained.embed(samples.images)
    for label in range(10):
        torch.testing.assert_close(
            model.first[label], embeddings[samples.labels == label].mean(0), rtol=1e-4, atol=1e-5
        )
    assert model.training


@pytest.mark.parametrize(
    "options",
    [
        {"lr_scheduler_interval": "batch"},
        {"loss": "mse"},
        {"smoothing_target": "some"},
    ],
)
def test_unknown_options_are_refused(options):
    [(name, value)] = options.items()
    with pytest.raises(UserError, match=f"{name} is {value!r}; it must be one of "):
        SoftmaxClassifier(C, Flat(), **options)


def test_validating_on_other_images_leaves_the_temperature(tmp_path):
    model = SoftmaxClassifier(C, Flat())
    fitting = trainer(tmp_path)
    fitting.fit(model, loader(), loader(24, seed=1))
    fitted = model.temperature
    noise = DataLoader(TensorDataset(torch.rand(24, 1, 4, 4), torch.arange(24) % C), batch_size=12)
    fitting.validate(model, noise, verbose=False)
    assert model.temperature == fitted != 1


def test_a_fit_from_old_weights_begins_with_a_new_center_optimizer(tmp_path):
    """Only a resumed fit takes the old one's state."""
    model = CenterSoftmaxClassifier(C, Flat(), center_optimizer=lambda p: torch.optim.Adagrad(p, lr=0.5))
    fitting = trainer(tmp_path, max_epochs=1)
    fitting.fit(model, loader())
    fitting.save_checkpoint(tmp_path / "old.ckpt")
    trainer(tmp_path).test(model, loader(), ckpt_path=tmp_path / "old.ckpt", weights_only=True, verbose=False)
    again = trainer(tmp_path, max_epochs=1)
    again.fit(model, loader())
    assert model._center_stepper.state[model.criterion.centers]["step"] == 4  # those of one epoch


def test_a_constructor_that_fixes_an_argument_of_the_base_loads(tmp_path):
    class Smooth(SoftmaxClassifier):
        def __init__(self, *args, own: int = 1, **kwargs):
            super().__init__(*args, label_smoothing=0.1, **kwargs)
            self.own = own

    run = trainer(tmp_path, max_epochs=1)
    run.fit(Smooth(C, Flat(), own=2, decay_norm_and_bias=False), loader())
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = Smooth.load_from_checkpoint(tmp_path / "model.ckpt", backbone=Flat())
    assert (loaded.own, loaded.label_smoothing, loaded.decay_norm_and_bias) == (2, 0.1, False)


class Positional(SoftmaxClassifier):
    def __init__(self, num_classes, backbone, *args, dim: int = 5, **kwargs):
        super().__init__(num_classes, backbone, *args, embedding_dim=dim, **kwargs)


class Named(SoftmaxClassifier):
    def __init__(self, num_classes, backbone, class_names=None, **kwargs):
        super().__init__(num_classes, backbone, class_names, **kwargs)


class Renamed(SoftmaxClassifier):
    def __init__(self, classes, network, names=None, **kwargs):
        super().__init__(classes, network, names, **kwargs)


class Everything(SoftmaxClassifier):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize("regime", [Positional, Named, Renamed, Everything], ids=lambda cls: cls.__name__)
def test_a_subclass_keeps_its_settings_in_the_checkpoint_however_it_passes_them_on(regime, tmp_path):
    model = regime(C, Flat(), ["a", "b", "c"], loss="squared_error", decay_norm_and_bias=False)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "model.ckpt")
    network = "network" if regime is Renamed else "backbone"
    loaded = regime.load_from_checkpoint(tmp_path / "model.ckpt", **{network: Flat()})
    assert (loaded.loss, loaded.decay_norm_and_bias, loaded.class_names) == ("squared_error", False, ["a", "b", "c"])
    images, _ = next(iter(loader()))
    assert torch.equal(loaded.eval()(images), model.eval()(images))


@pytest.mark.parametrize(
    ("key", "value"),
    [("mean", [float("nan")]), ("mean", 0.5), ("std", [0.5, 0.5]), ("std", None), ("temperature", "1"), ("split", 5),
     ("image_format", 5)],
)  # fmt: skip
def test_forged_facts_of_the_data_are_refused(key, value, tmp_path):
    model = SoftmaxClassifier(C, Flat())
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "model.ckpt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=True)
    with pytest.raises(UserError, match=key):
        model.on_load_checkpoint(checkpoint | {key: value})


def test_a_fit_without_validation_starts_from_temperature_1(tmp_path):
    model = SoftmaxClassifier(C, Flat())
    trainer(tmp_path).fit(model, loader(), loader(12))
    assert model.temperature != 1
    trainer(tmp_path).fit(model, loader())
    assert model.temperature == 1


def test_a_checkpoint_without_the_facts_of_the_data_is_refused(tmp_path):
    class Forgetful(SoftmaxClassifier):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["class_names"] = self.class_names

    run = trainer(tmp_path, max_epochs=1)
    run.fit(Forgetful(C, Flat()), loader())
    run.save_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="on_save_checkpoint"):
        Forgetful(C, Flat()).on_load_checkpoint(torch.load(tmp_path / "model.ckpt", weights_only=False))


def test_predicting_from_a_loader_of_images_alone(tmp_path):
    images = DataLoader(TensorDataset(torch.rand(5, 1, 4, 4)), batch_size=5)
    [batch] = trainer(tmp_path).predict(SoftmaxClassifier(C, Flat()), images)
    assert batch["probabilities"].shape == (5, C)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (lambda o: WarmRestarts(o, T_0=2), [1, 1e-6, 1, 0.5, 0.5 * (1 - 0.5**0.5), 1e-6]),
        (lambda o: StepDecay(o), [1, 1, 0.1, 0.1, 0.01, 0.01]),
    ],
    ids=["restarts", "steps"],
)
def test_a_schedule_by_epochs_goes_on_after_a_resume(schedule, rates, tmp_path):
    seen = []

    class Rates(Callback):
        def on_train_epoch_start(self, trainer, *args):
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    def build():
        return SoftmaxClassifier(C, Flat(), optimizer=lambda p: torch.optim.SGD(p, lr=1.0), lr_scheduler=schedule)

    checkpoints = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer(tmp_path, max_epochs=6, callbacks=[Rates(), checkpoints], enable_checkpointing=True).fit(build(), loader())
    assert seen == pytest.approx(rates, rel=1e-5)
    seen.clear()
    again = trainer(tmp_path, max_epochs=6, callbacks=[Rates()])
    again.fit(build(), loader(), ckpt_path=tmp_path / "epoch=2.ckpt", weights_only=True)
    assert seen == pytest.approx(rates[3:], rel=1e-5)


def test_a_run_that_goes_on_for_longer_leaves_the_rate_of_its_old_end(tmp_path):
    """Half a cosine over two epochs ends near 0; over four it is half way down after two."""

    def build():
        return SoftmaxClassifier(C, Flat(), optimizer=lambda p: torch.optim.SGD(p, lr=1.0), lr_scheduler=CosineDecay)

    short = trainer(tmp_path, max_epochs=2)
    short.fit(build(), loader())
    short.save_checkpoint(tmp_path / "end.ckpt")

    class Rates(Callback):
        seen: list[float] = []  # noqa: RUF012

        def on_train_batch_end(self, trainer, *args):
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    longer = trainer(tmp_path, max_epochs=4, callbacks=[Rates()])
    longer.fit(build(), loader(), ckpt_path=tmp_path / "end.ckpt", weights_only=True)
    assert Rates.seen[:3] == pytest.approx([0.5] * 3)  # at the end of the fourth step the schedule steps
