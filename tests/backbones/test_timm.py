import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metricloss_pl.backbones import TimmBackbone
from metricloss_pl.errors import UserError


class StubNetwork(nn.Module):
    """What the backbone uses of a network of timm."""

    def __init__(self, in_chans: int, num_classes: int) -> None:
        super().__init__()
        self.pretrained_cfg = {"classifier": "head", "tag": "a1_in1k"}
        self.num_features, self.head_hidden_size = 5, 7
        self.stem, self.hidden = nn.Conv2d(in_chans, 5, 3), nn.Linear(5, 7)
        self.head = nn.Linear(7, num_classes) if num_classes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[-1] == 8, "Input width doesn't match model (8)."
        features: Tensor = self.head(self.hidden(self.stem(images).mean((2, 3))))
        return features


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What timm, or rather a stub in its place, is asked for."""
    asked: list[dict[str, Any]] = []

    def create_model(name: str, **settings: Any) -> nn.Module:
        asked.append({"name": name, **settings})
        if settings["pretrained"] and name.endswith(".nowhere"):
            raise OSError("no route\nto the hub")
        return StubNetwork(settings["in_chans"], settings["num_classes"])

    stub = ModuleType("timm")
    stub.create_model = create_model  # type: ignore[attr-defined]
    stub.is_model = lambda name: name.partition(".")[0] == "stubnet"  # type: ignore[attr-defined]
    stub.list_models = lambda: ["resnet18", "stubnet"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", stub)
    return asked


def test_network_is_built_without_classifier(calls: list[dict[str, Any]]) -> None:
    backbone = TimmBackbone("stubnet", in_channels=1)
    assert calls == [{"name": "stubnet", "pretrained": False, "in_chans": 1, "num_classes": 0}]
    assert backbone.num_features == 7
    assert backbone(torch.rand(2, 1, 8, 8)).shape == (2, 7)


def test_own_weights(calls: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        TimmBackbone("stubnet.a1_in1k", weights="pretrained")
    assert calls[0]["pretrained"]
    assert "stubnet.a1_in1k: all of its tensors loaded from timm's a1_in1k" in caplog.text
    with pytest.raises(
        UserError, match=r"timm can't build stubnet\.nowhere with weights pretrained: no route to the hub"
    ):
        TimmBackbone("stubnet.nowhere", weights="pretrained")


@pytest.mark.usefixtures("calls")
def test_weights_out_of_a_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    whole = StubNetwork(3, 10)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO):
        backbone = TimmBackbone("stubnet", 1, str(tmp_path / "weights.pth"))
    assert f"stubnet: 4 of 4 tensors loaded from {tmp_path / 'weights.pth'}" in caplog.text
    assert not recwarn.list
    assert torch.equal(backbone.network.get_parameter("hidden.weight"), whole.hidden.weight)
    torch.testing.assert_close(backbone.network.get_parameter("stem.weight"), whole.stem.weight.sum(1, keepdim=True))


@pytest.mark.usefixtures("calls")
def test_mistakes_get_one_line() -> None:
    with pytest.raises(UserError, match=r"timm has no network 'stubnett'; close names: stubnet"):
        TimmBackbone("stubnett")
    with pytest.raises(UserError, match=r"'missing\.pth' is neither a file nor 'pretrained' \(backbone stubnet\)"):
        TimmBackbone("stubnet", weights="missing.pth")
    with pytest.raises(UserError, match="in_channels: 0 given"):
        TimmBackbone("stubnet", in_channels=0)
    with pytest.raises(UserError, match=r"images of 9 x 9 px: stubnet takes others: Input width doesn't match"):
        TimmBackbone("stubnet")(torch.rand(1, 3, 9, 9))


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r'needs the extra timm, .*: pip install "metricloss_pl\[timm\]"'):
        TimmBackbone("resnet18")


# ------------------------------------------------------------------------------------------- with timm itself, if there


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 32),
        ("mobilenetv3_small_100", 32),
        ("vit_tiny_patch16_224", 224),
        ("densenet121", 32),
    ],
)
def test_features_are_as_wide_as_said(name: str, side: int) -> None:
    """Also where a hidden layer stands between the maps and the classifier."""
    pytest.importorskip("timm")
    backbone = TimmBackbone(name, in_channels=1).eval()
    assert backbone(torch.rand(2, 1, side, side)).shape == (2, backbone.num_features)


@pytest.mark.parametrize(("name", "classifier"), [("resnet18", "fc"), ("vit_tiny_patch16_224", "head")])
def test_weights_of_a_whole_network(name: str, classifier: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=7).eval()
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "weights.pth")
    backbone = TimmBackbone(name, weights=str(tmp_path / "weights.pth")).eval()
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(whole.get_submodule(classifier)(backbone(images)), whole(images))


def test_mistakes_with_timm() -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"timm has no network 'resnet19'; close names: resnet1"):
        TimmBackbone("resnet19")
    with pytest.raises(UserError, match=r"timm can't build resnet18\.nonsense "):
        TimmBackbone("resnet18.nonsense")
    with pytest.raises(UserError, match="images of 32 x 32 px: vit_tiny_patch16_224 takes others: "):
        TimmBackbone("vit_tiny_patch16_224")(torch.rand(1, 3, 32, 32))
