import logging
import sys

import pytest
import torch

from metricloss_pl.backbones import TimmBackbone
from metricloss_pl.errors import UserError
from tests.backbones.stub_timm import StubNetwork


def test_network_is_built_without_classifier(calls):
    backbone = TimmBackbone("stubnet", in_channels=1)
    assert calls == [{"name": "stubnet", "pretrained": False, "in_chans": 1, "num_classes": 0}]
    assert backbone.num_features == 7


def test_own_weights(calls, caplog):
    with caplog.at_level(logging.INFO):
        TimmBackbone("stubnet.a1_in1k", weights="pretrained")
    assert calls[0]["pretrained"]
    assert "a1_in1k" in caplog.messages[-1]
    with pytest.raises(UserError, match=r"stubnet\.nowhere .*: no route to.*hub/stubnet.nowhere/.*weights FILE$"):
        TimmBackbone("stubnet.nowhere", weights="pretrained")


@pytest.mark.usefixtures("calls")
def test_metadata_of_weights(tmp_path):
    torch.save(StubNetwork(3, 10).state_dict(), tmp_path / "weights.pth")
    metadata = TimmBackbone("stubnet", weights="pretrained").weights_metadata
    assert metadata == ("timm's stubnet", [0.5, 0.25, 0.75], [0.5, 0.5, 1], 32, True)
    of_file = TimmBackbone("stubnet", weights=str(tmp_path / "weights.pth")).weights_metadata
    assert of_file[1:] == metadata[1:]
    assert all(word in of_file.source for word in (str(tmp_path / "weights.pth"), "assumed", "timm's stubnet"))
    assert TimmBackbone("stubnet", 1, "pretrained").weights_metadata.mean == [0.5]
    assert TimmBackbone("stubnet").weights_metadata is None
    recorded = {"mean": [0.1] * 3, "std": [0.2] * 3, "image_format": {"image_size": 32}}
    torch.save({"state_dict": StubNetwork(3, 10).state_dict(), **recorded}, tmp_path / "run.ckpt")
    of_run = TimmBackbone("stubnet", weights=str(tmp_path / "run.ckpt")).weights_metadata
    assert of_run[1:] == ([0.1] * 3, [0.2] * 3, 32, True)


@pytest.mark.usefixtures("calls")
def test_weights_from_a_file(tmp_path, caplog, recwarn):
    whole = StubNetwork(3, 10)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO):
        backbone = TimmBackbone("stubnet", 1, str(tmp_path / "weights.pth"))
    assert "stubnet: 4 of 4 tensors" in caplog.text
    assert not recwarn.list
    assert torch.equal(backbone.network.get_parameter("hidden.weight"), whole.hidden.weight)


@pytest.mark.usefixtures("calls")
def test_mistakes_get_one_line():
    with pytest.raises(UserError, match=r"'stubnett'.* stubnet$"):
        TimmBackbone("stubnett")
    with pytest.raises(UserError, match=r"weights: 'missing\.pth'"):
        TimmBackbone("stubnet", weights="missing.pth")
    with pytest.raises(UserError, match=r"9 x 9 px: stubnet .*doesn't match"):
        TimmBackbone("stubnet")(torch.rand(1, 3, 9, 9))


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"metricloss_pl\[timm\]"):
        TimmBackbone("resnet18")


# ------------------------------------------------------------------------------------------ with timm itself, if there


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet18", 32), ("mobilenetv3_small_100", 32), ("vit_tiny_patch16_224", 224), ("densenet121", 32)],
)
def test_features_are_as_wide_as_said(name, side):
    """Also where a hidden layer stands between the maps and the classifier."""
    pytest.importorskip("timm")
    backbone = TimmBackbone(name, in_channels=4).eval()
    assert backbone(torch.rand(2, 4, side, side)).shape == (2, backbone.num_features)


@pytest.mark.parametrize(("name", "classifier"), [("resnet18", "fc"), ("vit_tiny_patch16_224", "head")])
def test_weights_of_a_whole_network(name, classifier, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    whole = timm.create_model(name, num_classes=7).eval()
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "weights.pth")
    backbone = TimmBackbone(name, weights=str(tmp_path / "weights.pth")).eval()
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(whole.get_submodule(classifier)(backbone(images)), whole(images))


def test_mistakes_with_timm():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"'resnet19'.* resnet1"):
        TimmBackbone("resnet19")
    with pytest.raises(UserError, match=r"resnet18\.nonsense"):
        TimmBackbone("resnet18.nonsense")
    with pytest.raises(UserError, match="32 x 32 px: vit_tiny_patch16_224"):
        TimmBackbone("vit_tiny_patch16_224")(torch.rand(1, 3, 32, 32))
