"""Every regime trains in half precision, over embeddings tiny and huge and loss weights from nothing to 1000."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from metricloss_pl.regimes import (
    CenterSoftmaxClassifier,
    CosineClassifier,
    MetricLearningClassifier,
    SoftmaxClassifier,
    StandaloneCenterClassifier,
)
from tests.regimes.blobs import C, Flat, loader, trainer


class Scaled(Flat):
    """Features of a norm far from 1."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        nn.init.orthogonal_(self.net[1].weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scale * super().forward(images)


# The learning rate falls with the square of the scale, as the gradients grow.
def sgd(scale: float, weight: float):
    return lambda p: torch.optim.SGD(p, lr=0.01 / (max(scale, 1) ** 2 * (1 + weight)), momentum=0.9)


REGIMES = {
    "softmax": lambda scale, weight: SoftmaxClassifier(C, Scaled(scale), optimizer=sgd(scale, 0)),
    "cosine": lambda scale, weight: CosineClassifier(
        C,
        Scaled(scale),
        embedding_dim=None,
        class_embeddings=torch.eye(4)[:C],
        ce_weight=weight,
        optimizer=sgd(1, weight),
    ),
    "center": lambda scale, weight: CenterSoftmaxClassifier(
        C, Scaled(scale), center_weight=weight, optimizer=sgd(scale, weight)
    ),
    "center_gradient": lambda scale, weight: CenterSoftmaxClassifier(
        C, Scaled(scale), center_weight=weight, center_rule="gradient", optimizer=sgd(scale, weight)
    ),
    "standalone": lambda scale, weight: StandaloneCenterClassifier(
        C, Scaled(scale), inter_weight=weight, center_lr=1e-3, optimizer=sgd(scale, weight)
    ),
    "arcface": lambda scale, weight: MetricLearningClassifier(
        C, Scaled(scale), loss_args={"scale": 1 + weight}, optimizer=sgd(1, weight)
    ),
}


def half_precision(name: str) -> dict:
    """Arguments of the Trainer; with a scaler of gradients also on a CPU, where Lightning would take bfloat16."""
    if name == "16-mixed":
        return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))]}
    return {"precision": name}


@pytest.mark.parametrize("weight", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", REGIMES)
def test_no_nan_and_no_frozen_centers(name, precision, scale, weight, tmp_path):
    torch.manual_seed(0)
    model = REGIMES[name](scale, weight)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    trainer(tmp_path, max_epochs=10, **half_precision(precision)).fit(model, loader())  # 40 steps
    after = model.state_dict()
    for key, tensor in after.items():
        assert torch.isfinite(tensor).all(), key
    if "criterion.centers" in after:
        centers = after["criterion.centers"]
        assert centers.dtype == torch.float32
        assert (centers != before["criterion.centers"]).any(1).all()  # each of them
    if name != "cosine" or scale > 1e-3:  # a weight of 1 does not feel steps of such a tiny gradient
        assert any((after[key] != before[key]).any() for key in after if key.startswith("backbone"))


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_centers_class_embeddings_and_class_weights_stay_float32(precision, tmp_path):
    """The network is half precision, what small steps add up in is not."""
    for name in ("cosine", "center", "standalone", "arcface"):
        model = REGIMES[name](1.0, 0.1)
        trainer(tmp_path, precision=precision, max_epochs=1).fit(model, loader())
        kept = getattr(model.criterion, {"cosine": "class_embeddings", "arcface": "weight"}.get(name, "centers"))
        assert kept.dtype == torch.float32
        assert model.backbone.net[1].weight.dtype != torch.float32
        assert torch.isfinite(kept).all()
