"""The losses of pytorch-metric-learning: against closed forms, in every precision, and what is refused."""

import inspect
import math
import sys

import pytest
import torch
from pytorch_metric_learning import losses
from torch import nn

from metricloss_pl.errors import UserError
from metricloss_pl.regimes import MetricLearningClassifier
from metricloss_pl.regimes._safe_cosine import SafeCosine
from metricloss_pl.regimes.metric_learning import _SETTINGS
from tests.regimes.blobs import C, D, Flat, loader, trainer

SETTINGS = {
    "ArcFaceLoss": {"margin": 40.0, "scale": 8.0},
    "CosFaceLoss": {"margin": 0.2, "scale": 8},
    "LargeMarginSoftmaxLoss": {"margin": 3, "scale": 0.5},
    "NormalizedSoftmaxLoss": {"temperature": 0.2},
    "SoftTripleLoss": {"centers_per_class": 2, "la": 5.0, "gamma": 0.3, "margin": 0.1},
    "SphereFaceLoss": {"margin": 2, "scale": 0.5},
    "SubCenterArcFaceLoss": {"margin": 40.0, "scale": 8.0, "sub_centers": 2},
}


def logits_by_hand(name: str, x: list[float], weights: list[list[float]], label: int | None) -> list[float]:
    """The logits of one embedding, one class after the other, with the margin for the label where one is given."""
    norm = lambda v: math.sqrt(sum(e * e for e in v))  # noqa: E731
    cosine = lambda w: sum(a * b for a, b in zip(x, w, strict=True)) / norm(x) / norm(w)  # noqa: E731
    settings, logits = SETTINGS[name], []
    each = len(weights) // C
    for j in range(C):
        cosines = [cosine(w) for w in weights[j * each : (j + 1) * each]]
        own = j == label
        if name == "SoftTripleLoss":
            shares = [math.exp(c / settings["gamma"]) for c in cosines]
            similarity = sum(s * c for s, c in zip(shares, cosines, strict=True)) / sum(shares)
            if label is not None:
                similarity = settings["la"] * (similarity - own * settings["margin"])
            logits.append(similarity)
            continue
        theta, margin = math.acos(max(cosines)), settings.get("margin", 0)
        if own and name in ("ArcFaceLoss", "SubCenterArcFaceLoss"):
            margin = math.radians(margin)
            inside = theta + margin <= math.pi
            value = math.cos(theta + margin) if inside else math.cos(theta) - margin * math.sin(margin)
        elif own and name == "CosFaceLoss":
            value = math.cos(theta) - margin
        elif own and name in ("LargeMarginSoftmaxLoss", "SphereFaceLoss"):
            k = math.floor(theta * margin / math.pi)
            value = (-1) ** k * math.cos(margin * theta) - 2 * k
        else:
            value = math.cos(theta)
        scale = 1 / settings["temperature"] if name == "NormalizedSoftmaxLoss" else settings["scale"]
        if name in ("LargeMarginSoftmaxLoss", "SphereFaceLoss"):
            scale *= norm(x)
        if name == "LargeMarginSoftmaxLoss":
            scale *= norm(weights[j])
        logits.append(scale * value)
    return logits


def build(name: str, **options) -> MetricLearningClassifier:
    torch.manual_seed(0)
    return MetricLearningClassifier(C, Flat(), loss=name, loss_args=SETTINGS[name], **options)


@pytest.mark.parametrize("name", SETTINGS)
def test_closed_forms(name):
    """The loss with margins, and scores without; some of the embeddings lie behind the end of ArcFace's cosine."""
    model = build(name)
    embeddings, labels = 2 * torch.randn(40, D), torch.arange(40) % C
    weights = model.criterion.weight.t().tolist()
    values, scores = [], []
    for x, label in zip(embeddings.tolist(), labels.tolist(), strict=True):
        logits = logits_by_hand(name, x, weights, label)
        values.append(math.log(sum(math.exp(v) for v in logits)) - logits[label])
        scores.append(logits_by_hand(name, x, weights, None))
    torch.testing.assert_close(model.class_scores(embeddings), torch.tensor(scores), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.criterion(embeddings, labels), torch.tensor(values), rtol=1e-4, atol=1e-4)
    loss = model.losses(embeddings, labels)["loss"]
    torch.testing.assert_close(loss, torch.tensor(values).mean(), rtol=1e-4, atol=1e-4)


def test_the_settings_are_those_that_the_losses_have():
    """All classification losses but the two that are no mean over images."""
    scoring = {name for name in dir(losses) if hasattr(getattr(losses, name), "get_logits")}
    assert scoring - {"ProxyAnchorLoss", "ProxyNCALoss"} == set(_SETTINGS) == set(SETTINGS)
    for name, settings in _SETTINGS.items():
        parents = [parent for parent in getattr(losses, name).__mro__ if hasattr(parent, "get_logits")]
        arguments = {argument for parent in parents for argument in inspect.signature(parent.__init__).parameters}
        assert set(settings) == arguments - {"self", "num_classes", "embedding_size", "args", "kwargs"}
        assert set(SETTINGS[name]) == set(settings)


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_stay_finite(name):
    """Embeddings along a class weight, against it, and without a direction."""
    model = build(name)
    along = nn.functional.normalize(model.criterion.weight.detach()[:, 0], dim=0)
    embeddings = torch.stack([along, -along, torch.zeros(D), 1e-20 * along, 1e10 * along]).requires_grad_()
    model.losses(embeddings, torch.zeros(5, dtype=torch.int64))["loss"].backward()
    assert torch.isfinite(embeddings.grad).all()
    assert embeddings.grad.abs().max() < 1e5
    assert torch.isfinite(model.criterion.weight.grad).all()


def test_the_angle_has_a_gradient_everywhere():
    vectors = torch.tensor([[3.0, 0.0], [-0.5, 0.0], [0.0, 0.0]], requires_grad=True)
    cosines = SafeCosine()(vectors, torch.tensor([[2.0, 0.0]]))
    torch.testing.assert_close(cosines, torch.tensor([[1.0], [-1.0], [0.0]]), rtol=0, atol=2e-6)
    torch.acos(cosines).sum().backward()
    assert torch.isfinite(vectors.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SETTINGS)
def test_half_precision_is_lifted_and_leaves_the_weights(name, dtype):
    model = build(name).to(dtype)
    embeddings, labels = torch.randn(6, D).to(dtype), torch.arange(6) % C
    before = model.criterion.weight.clone()
    with torch.autocast("cpu", dtype):
        loss, scores = model.losses(embeddings, labels)["loss"], model.class_scores(embeddings)
    assert loss.dtype == scores.dtype == model.criterion.weight.dtype == torch.float32
    assert torch.equal(model.criterion.weight, before)
    whole = build(name)
    torch.testing.assert_close(loss, whole.losses(embeddings.float(), labels)["loss"])


@pytest.mark.parametrize("name", SETTINGS)
def test_each_loss_learns_its_weights(name, tmp_path):
    model = build(name)
    before = model.criterion.weight.detach().clone()
    run = trainer(tmp_path, max_epochs=15)
    run.fit(model, loader())
    assert any(model.criterion.weight is p for group in run.optimizers[0].param_groups for p in group["params"])
    moved = (model.criterion.weight.detach() - before).norm(dim=0).view(C, -1)
    assert (moved.amax(1) > 1e-3).all()  # of each class
    assert run.validate(model, loader(24, seed=1), verbose=False)[0]["val/accuracy"] > 0.6  # chance: 1 / 3


def test_prototypes_are_the_directions_of_one_weight_a_class():
    model = build("ArcFaceLoss")
    prototypes = model.class_anchors
    assert prototypes.shape == (C, D)
    torch.testing.assert_close(model.class_scores(3 * prototypes).diagonal(), torch.full((C,), 8.0))
    torch.testing.assert_close(model.metric_embeddings(3 * prototypes), prototypes)
    assert build("SubCenterArcFaceLoss").class_anchors is None
    model = build("LargeMarginSoftmaxLoss")  # of dot products
    scores = 0.5 * model.metric_embeddings(3 * prototypes) @ model.class_anchors.t()
    torch.testing.assert_close(model.class_scores(3 * prototypes), scores)


def test_class_weights_reach_each_image():
    model = build("CosFaceLoss", class_weights=[3.0, 0.0, 0.0])
    embeddings, labels = torch.randn(6, D), torch.arange(6) % C
    expected = 3 * model.criterion(embeddings[labels == 0], labels[labels == 0]).sum() / 6
    torch.testing.assert_close(model.losses(embeddings, labels)["loss"], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "ProxyAnchorLoss"}, "loss is 'ProxyAnchorLoss'; it must be one of 'ArcFaceLoss', 'CosFaceLoss'"),
        ({"loss_args": {"margn": 20}}, "loss_args: ArcFaceLoss has no setting 'margn'; it has margin, scale"),
        ({"loss_args": {"num_classes": 3}}, "ArcFaceLoss has no setting 'num_classes'"),
        ({"loss_args": {"scale": 0}}, "scale of ArcFaceLoss is 0; it must be above 0"),
        ({"loss_args": {"margin": math.nan}}, r"margin of ArcFaceLoss is nan; it must be degrees in \[0, 180\)"),
        (
            {"loss": "CosFaceLoss", "loss_args": {"margin": 28.6}},
            r"margin of CosFaceLoss is 28.6; .* cosine in \[0, 1\]",
        ),
        ({"loss": "SphereFaceLoss", "loss_args": {"margin": 1.5}}, "it must be an integer of at least 1"),
    ],
)
def test_mistakes_get_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        MetricLearningClassifier(C, Flat(), **options)
    assert "\n" not in str(caught.value)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(UserError, match=r'needs the extra .*: pip install "metricloss_pl\[pytorch-metric-learning\]"'):
        MetricLearningClassifier(C, Flat())
