import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest

from tests.backbones.stub_timm import StubNetwork


@pytest.fixture(autouse=True)
def lightning_is_heard(monkeypatch):
    """Lightning's loggers keep their messages from others', and so from pytest's before its version 9."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)


@pytest.fixture
def calls(monkeypatch):
    """Put a stub in the place of timm; it notes its calls."""
    asked = []

    def create_model(name, **settings):
        asked.append({"name": name, **settings})
        if settings["pretrained"] and name.endswith(".nowhere"):
            raise OSError("no route\nto the hub")
        return StubNetwork(settings["in_chans"], settings["num_classes"])

    stub = ModuleType("timm")
    stub.create_model = create_model
    stub.is_model = lambda name: name.partition(".")[0] == "stubnet"
    stub.list_models = lambda: ["resnet18", "stubnet"]
    stub.models = ModuleType("timm.models")
    stub.models.get_pretrained_cfg = lambda name: SimpleNamespace(hf_hub_id=f"hub/{name}")
    monkeypatch.setitem(sys.modules, "timm", stub)
    monkeypatch.setitem(sys.modules, "timm.models", stub.models)
    return asked
