import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metricloss_pl.backbones._weights import adapt_metadata, load_state, read_weights
from metricloss_pl.errors import UserError


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1, bias=False))


def trained() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {key: torch.randn_like(value.float()) for key, value in network().state_dict().items()}


def equal(found: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, found.state_dict()[key]) for key, value in state.items() if value.ndim)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.network.", "model.encoder."])
def test_names_are_found_behind_a_prefix(prefix: str, caplog: pytest.LogCaptureFixture):
    """Beside them may lie what has another prefix: a head, a copy."""
    state, found = trained(), network()
    file = {f"{prefix}{key}": value for key, value in state.items()} | {"centers": torch.zeros(3, 2)}
    if not prefix:
        del file["centers"]
    with caplog.at_level(logging.INFO):
        load_state(found, file, "net", "weights.pth")
    assert "net: 8 of 8 tensors" in caplog.text
    assert equal(found, state)


def test_the_more_complete_of_two_copies_is_taken():
    state, found = trained(), network()
    part = {f"old.{key}": value + 1 for key, value in state.items() if not key.startswith("2")}
    load_state(found, part | {f"new.{key}": value for key, value in state.items()}, "net", "weights.pth")
    assert equal(found, state)


def test_a_partial_match_is_reported():
    state, found = trained(), network()
    start = found.state_dict()["2.weight"].clone()
    del state["2.weight"]
    file = state | {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1), "extra.weight": torch.zeros(1)}
    with pytest.warns(UserWarning, match=r"net: 7 of 8 .* 1 \(2\.weight\); .* 1 \(extra\.weight\)$"):
        load_state(found, file, "net", "weights.pth", leave_out=["fc"])
    assert equal(found, state)
    assert torch.equal(found.state_dict()["2.weight"], start)


def test_weights_of_another_network_are_refused():
    found = network()
    before = {key: value.clone() for key, value in found.state_dict().items()}
    with pytest.raises(UserError, match=r"file\.pth .* net; .* 4 \(a, b, c, \.\.\.\)$"):
        load_state(found, dict.fromkeys("abcd", torch.zeros(1)), "net", "file.pth")
    state = trained() | {"2.weight": torch.zeros(5, 4, 3, 3), "1.bias": torch.zeros(7)}
    with pytest.raises(UserError, match=r"file\.pth .* net; .* 2 \(1\.bias, 2\.weight\)$"):
        load_state(found, state, "net", "file.pth")
    assert equal(found, before)


def test_checkpoints_are_unwrapped(tmp_path: Path):
    for wrapper in ("state_dict", "model"):
        torch.save({wrapper: trained(), "epoch": 3}, tmp_path / "file.pth")
        assert read_weights(tmp_path / "file.pth")[0].keys() == trained().keys()


def test_files_that_are_no_state_dict(tmp_path: Path):
    path = tmp_path / "file.pth"
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"file\.pth is no file"):
        read_weights(path)
    torch.save(network(), path)  # a pickled module, which may run code
    with pytest.raises(UserError, match=r"file\.pth is no file"):
        read_weights(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(UserError, match=r"file\.pth holds no"):
        read_weights(path)


def test_safetensors(tmp_path: Path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(trained(), tmp_path / "file.safetensors")
    assert equal(network(), read_weights(tmp_path / "file.safetensors")[0]) is False
    found = network()
    load_state(found, read_weights(tmp_path / "file.safetensors")[0], "net", "file.safetensors")
    assert equal(found, trained())
    (tmp_path / "file.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"file\.safetensors is no file"):
        read_weights(tmp_path / "file.safetensors")


def test_a_checkpoint_tells_how_its_images_were_prepared(tmp_path: Path):
    recorded = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "image_format": {"image_size": 48}}
    torch.save({"state_dict": trained(), **recorded}, tmp_path / "file.ckpt")
    metadata = read_weights(tmp_path / "file.ckpt")[1]
    assert metadata == (str(tmp_path / "file.ckpt"), [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], 48, False)
    assert adapt_metadata(metadata, 3) is metadata
    gray = adapt_metadata(metadata, 1)
    assert gray.mean == pytest.approx([0.2])
    assert gray.std == pytest.approx([0.5])
    assert adapt_metadata(gray, 3)[1:3] == (gray.mean * 3, gray.std * 3)
    assert adapt_metadata(metadata, 4) is None
    torch.save(trained(), tmp_path / "file.pth")
    assert read_weights(tmp_path / "file.pth")[1] is None


def test_safetensors_that_is_not_installed(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "file.safetensors").touch()
    with pytest.raises(UserError, match="pip install safetensors"):
        read_weights(tmp_path / "file.safetensors")
