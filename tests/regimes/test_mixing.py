"""The loss of mixed images, beside a slow second version."""

import copy
import itertools

import pytest
import torch

from metricloss_pl.class_embeddings import simplex
from metricloss_pl.errors import UserError
from metricloss_pl.mixing import CutMix, Mixing, MixUp
from metricloss_pl.regimes import (
    CenterSoftmaxClassifier,
    CosineClassifier,
    MetricLearningClassifier,
    SoftmaxClassifier,
    StandaloneCenterClassifier,
)
from tests.regimes.blobs import C, Flat, loader, trainer

WEIGHTS = torch.tensor([0.5, 1.0, 2.0])
TARGETS = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.6, 0.8, 0.0, 0.0], [0.0, 0.6, 0.8, 0.0]])  # as a hierarchy gives

REGIMES = {
    "softmax": lambda **o: SoftmaxClassifier(C, Flat(), **o),
    "squared": lambda **o: SoftmaxClassifier(C, Flat(), loss="squared_error", **o),
    "cosine": lambda **o: CosineClassifier(C, Flat(), ce_weight=0.3, **o),
    "cosine_alone": lambda **o: CosineClassifier(C, Flat(), ce_weight=0, class_embeddings="simplex", **o),
    "cosine_semantic": lambda **o: CosineClassifier(C, Flat(), ce_weight=0.3, class_embeddings=TARGETS, **o),
    "cosface": lambda **o: MetricLearningClassifier(
        C, Flat(), loss="CosFaceLoss", loss_args={"margin": 0.2, "scale": 8}, **o
    ),
}


CENTERS = {
    "center": lambda **o: CenterSoftmaxClassifier(C, Flat(), center_weight=0.1, **o),
    "standalone": lambda **o: StandaloneCenterClassifier(C, Flat(), **o),
}


def slow(name, model, x, y):
    """The parts of the loss of each image, as lists: embeddings x, labels y."""
    images = range(len(y))
    if name in ("softmax", "squared"):
        logits = x @ model.head.weight.T + model.head.bias
        if name == "softmax":
            return {"loss": entropies(logits, y)}
        return {"loss": [sum((logits[i, k] - int(k == y[i])) ** 2 for k in range(C)) for i in images]}
    if name == "cosface":
        weights = model.criterion.weight.t()
        cosines = torch.stack([torch.cosine_similarity(x, weight[None]) for weight in weights], 1)
        return {"loss": entropies(8 * (cosines - 0.2 * torch.eye(C)[y]), y)}
    targets = {"cosine": torch.eye(C), "cosine_alone": simplex(C), "cosine_semantic": TARGETS}[name]
    unit = x / x.square().sum(1, keepdim=True).sqrt()
    cosine = [1 - (unit[i] * targets[y[i]]).sum() for i in images]
    if name == "cosine_alone":
        return {"loss": cosine}
    positive = unit.clamp(min=0)
    scaled = (positive - positive.mean(0)) / (positive.var(0, correction=0) + 1e-5).sqrt()
    scaled = scaled * model.criterion.head.norm.weight + model.criterion.head.norm.bias
    entropy = entropies(scaled @ model.criterion.head.linear.weight.T + model.criterion.head.linear.bias, y)
    return {
        "loss": [cosine[i] + 0.3 * entropy[i] for i in images], "cosine_loss": cosine, "cross_entropy": entropy
    }  # fmt: skip


def entropies(logits, y):
    return [-torch.log(logits[i].exp()[y[i]] / logits[i].exp().sum()) for i in range(len(y))]


def step(model, folder, batch):
    """One training step without the optimizer's: what it logs and what the mixing gave it."""
    logged, seen = {}, []
    model.trainer = trainer(folder, log_every_n_steps=1)
    model.trainer.optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)]
    model.log = lambda name, value, **_: logged.__setitem__(name.removeprefix("train/"), value)
    hook = (
        model.batch_mixing.register_forward_hook(lambda module, args, mixed: seen.append(mixed))
        if model.batch_mixing
        else None
    )
    assert torch.equal(model.training_step(batch, 0), logged["loss"])
    if hook is not None:
        hook.remove()
    return logged, seen


@pytest.mark.parametrize("mixing", [CutMix(), MixUp(alpha=1.0)], ids=["cutmix", "mixup"])
@pytest.mark.parametrize("name", REGIMES)
def test_each_part_is_the_weighted_mean_over_both_labels(name, mixing, tmp_path):
    torch.manual_seed(3)
    model = REGIMES[name](batch_mixing=mixing)
    model.class_weights = WEIGHTS
    images, labels = next(iter(loader()))
    logged, [(mixed, partners, share)] = step(model, tmp_path, (images, labels))
    assert 0.05 < share < 0.95
    assert not torch.equal(labels, labels[partners])
    assert not torch.equal(mixed, images)
    own, other = (slow(name, model, model.embed(mixed), y) for y in (labels, labels[partners]))
    assert own.keys() == logged.keys()
    for part in own:
        each = [
            share * WEIGHTS[labels[i]] * own[part][i] + (1 - share) * WEIGHTS[labels[partners[i]]] * other[part][i]
            for i in range(len(labels))
        ]
        expected = sum(each) / len(labels)
        torch.testing.assert_close(logged[part], expected.detach(), rtol=1e-5, atol=1e-6)


class Nothing(Mixing):
    """Draws pairs and leaves the images alone: lambda is 1."""

    def mix(self, images, partners, share):
        return images, 1.0


@pytest.mark.parametrize(
    ("name", "mixing"),
    [
        *itertools.product(["softmax", "cosine", "cosine_alone"], [Nothing(), CutMix(probability=0.0)]),
        *itertools.product([*CENTERS, "cosine"], [Nothing(same_class=True)]),
    ],
)
def test_lambda_1_is_no_mixing(name, mixing, tmp_path):
    """The same losses, gradients and statistics of the head's batch norm, bit for bit, and the same end of a fit."""
    torch.manual_seed(0)
    ends, plain = [], (REGIMES | CENTERS)[name]()
    for chosen in (None, mixing):
        model, fitted = copy.deepcopy(plain), copy.deepcopy(plain)
        model.batch_mixing = fitted.batch_mixing = chosen
        logged, _ = step(model, tmp_path, next(iter(loader())))
        trainer(tmp_path).fit(fitted, loader())
        ends.append((logged, model.state_dict(), fitted.state_dict()))
    for expected, found in zip(*ends, strict=True):
        for key in expected:
            assert torch.equal(expected[key], found[key]), key


@pytest.mark.parametrize("name", [*CENTERS, "softmax"])
def test_mixing_within_classes_keeps_the_labels(name, tmp_path):
    """The losses are those of the mixed images and their class, and the centers follow the mixed images."""
    torch.manual_seed(1)
    model = (REGIMES | CENTERS)[name](batch_mixing=MixUp(alpha=1.0, same_class=True))
    images, labels = next(iter(loader()))
    logged, [(mixed, partners, share)] = step(model, tmp_path, (images, labels))
    assert 0.05 < share < 0.95
    assert not torch.equal(mixed, images)
    assert torch.equal(labels[partners], labels)
    model.eval()
    for part, value in model.losses(model.embed(mixed), labels).items():
        torch.testing.assert_close(logged[part], value.detach())


@pytest.mark.parametrize("build", CENTERS.values(), ids=CENTERS)
def test_centers_refuse_mixing_across_classes(build):
    with pytest.raises(UserError, match=r"batch_mixing is CutMix .* same_class"):
        build(batch_mixing=CutMix())


def test_the_heads_batch_norm_sees_each_batch_once(tmp_path):
    model = CosineClassifier(C, Flat(), batch_mixing=CutMix())
    trainer(tmp_path, max_epochs=1).fit(model, loader())
    assert model.criterion.head.norm.num_batches_tracked == 4
