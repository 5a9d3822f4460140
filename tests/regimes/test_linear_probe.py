import functools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.callbacks import CachedFeatures
from metricloss_pl.data import NpzDataModule
from metricloss_pl.errors import UserError
from metricloss_pl.losses import functional as F
from metricloss_pl.regimes import LinearProbeClassifier, linear_probe
from metricloss_pl.regimes.linear_probe import fit_logistic_regression
from tests.callbacks.runs import digits, trainer


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_solution_is_the_minimum(classes, weighted):
    """The gradient of ||W||^2 / 2 + C * sum w_i CE_i, by autograd, is zero."""
    torch.manual_seed(0)
    features = torch.randn(40, 5, dtype=torch.float64)
    labels = torch.arange(40) % classes
    weights = torch.rand(40, dtype=torch.float64) if weighted else None
    weight, bias = fit_logistic_regression(features, labels, classes, 0.7, weights)
    assert weight.shape == (classes, 5)
    weight.requires_grad_()
    bias.requires_grad_()
    values = nn.functional.cross_entropy(features @ weight.T + bias, labels, reduction="none")
    objective = weight.square().sum() / 2 + 0.7 * (values if weights is None else values * weights).sum()
    objective.backward()
    assert weight.grad.abs().max() < 1e-3
    assert bias.grad.abs().max() < 1e-3


def build(**options):
    torch.manual_seed(0)
    return LinearProbeClassifier(10, TinyConvNet(width=8), **options)


def fit(folder, model, data, **options):
    run = trainer(folder, CachedFeatures(keep=False, **options), max_epochs=5)
    run.fit(model, data)
    return run


def test_C_is_chosen_on_validation_images(tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr("metricloss_pl.regimes.linear_probe.rank_zero_info", lines.append)
    model, data = build(), digits()
    run = fit(tmp_path, model, data, flip=False)
    assert (run.current_epoch, run.global_step) == (1, 3)
    model.eval()
    sets = {}
    for split, loader in (("train", data.train_eval_dataloader()), ("val", data.val_dataloader())):
        images, labels = (torch.cat(column) for column in zip(*loader, strict=True))
        with torch.no_grad():
            sets[split] = F.normalize(model.backbone(model.normalize(images))).double().numpy(), labels.numpy()
    scores = {}
    for C in (10 ** (exponent / 2) for exponent in range(11)):
        reference = LogisticRegression(C=C, tol=1e-6, max_iter=1000).fit(*sets["train"])
        logits = torch.from_numpy(reference.decision_function(sets["val"][0])).double()
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(sets["val"][1])).item()
        scores[reference.score(*sets["val"]), -loss] = C, reference
    C, reference = scores[max(scores)]
    torch.testing.assert_close(
        model.head.weight.numpy(force=True), reference.coef_, rtol=1e-2, atol=1e-2, check_dtype=False
    )
    assert f"C = {C:.3g} of 11" in "".join(lines)
    assert run.callback_metrics["val/accuracy"].item() == pytest.approx(max(scores)[0])


@pytest.fixture
def unequal(tmp_path):
    """Return a function that builds images of two classes, of which the second has three times as many."""
    torch.manual_seed(0)
    labels = torch.tensor([0] * 8 + [1] * 24)
    images = torch.randint(0, 156, (32, 8, 8)) + 50 * labels[:, None, None]
    arrays = {"images": images.to(torch.uint8).numpy(), "labels": labels.numpy()}
    file = tmp_path / "unequal.npz"
    np.savez(file, **{f"{split}_{name}": array for split in ("train", "val") for name, array in arrays.items()})
    return functools.partial(NpzDataModule, path=str(file), in_channels=1, batch_size=8)


def test_C_given_class_weights_and_two_views(tmp_path, unequal, monkeypatch):
    """Both views of an image count as one image, and both classes the same, also in the validation."""
    seen, score = [], linear_probe._score

    def noted(*args, balanced):
        seen.append(balanced)
        return score(*args, balanced)

    monkeypatch.setattr(linear_probe, "_score", noted)
    model, data = LinearProbeClassifier(2, TinyConvNet(width=8), C=10.0, class_weights="balanced"), unequal()
    fit(tmp_path, model, data, flip=True)
    model.eval()
    images, labels = (torch.cat(column) for column in zip(*data.train_eval_dataloader(), strict=True))
    with torch.no_grad():
        points = F.normalize(model.backbone(model.normalize(torch.cat([images, images.flip(-1)])))).double().numpy()
    weights = len(labels) / (2 * labels.bincount()[labels]) / 2
    reference = LogisticRegression(C=20, tol=1e-6, max_iter=1000)  # of one logit, the difference of both
    reference.fit(points, np.tile(labels, 2), np.tile(weights, 2))
    found = model.head.weight.numpy(force=True)
    assert seen == [True]
    np.testing.assert_allclose(found[1] - found[0], reference.coef_[0], rtol=1e-2, atol=1e-2)


def test_balanced_accuracy_chooses_C_for_unequal_classes():
    logits = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])  # the first class thrice, the second once
    labels = torch.tensor([0, 0, 1, 1])
    assert linear_probe._score(logits, labels, balanced=False)[0] == pytest.approx(3 / 4)
    labels = torch.tensor([0, 0, 0, 0])
    assert linear_probe._score(logits, labels, balanced=True)[0] == pytest.approx(3 / 4)
    labels = torch.tensor([0, 1, 1, 1])
    assert linear_probe._score(logits, labels, balanced=True)[0] == pytest.approx((1 + 1 / 3) / 2)


def test_batches_of_equal_classes_are_refused(tmp_path, unequal):
    for option in ({"balanced_sampling": True}, {"samples_per_class_in_batch": 4}):
        with pytest.raises(UserError, match=r"class_weights to balanced"):
            fit(tmp_path, LinearProbeClassifier(2, TinyConvNet(width=8)), unequal(**option))


def test_no_validation_images(tmp_path):
    with pytest.raises(UserError, match=r"model\.C is null, and there are no validation images"):
        fit(tmp_path, build(), digits(val_fraction=0))


def test_mistakes_get_one_line(tmp_path):
    for C in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UserError, match=f"C is {C}; it must be above 0"):
            build(C=C)
    with pytest.raises(UserError, match="embedding_dim is 4"):
        build(embedding_dim=4)
    with pytest.raises(UserError, match="needs the callback CachedFeatures"):
        trainer(tmp_path).fit(build(), digits())


def test_half_types():
    """Features are float32, and normalized in float32, beside a head of another type."""
    model = LinearProbeClassifier(3, TinyConvNet(width=4)).bfloat16()
    for dtype in (torch.bfloat16, torch.float32):
        assert model.class_scores(torch.rand(5, model.embedding_dim, dtype=dtype)).dtype == torch.bfloat16
