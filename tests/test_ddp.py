"""Two processes train as one with the same global batch: weights, centers, temperature and metrics."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ddp_fit import REGIMES


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """How every regime ends, by number of processes."""
    folder, ends = tmp_path_factory.mktemp("ddp"), {}
    for processes in (1, 2):
        file = folder / f"{processes}.pt"
        command = [sys.executable, Path(__file__).parent / "ddp_fit.py", str(processes), file]
        result = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
        assert file.is_file(), result.stderr[-3000:]
        ends[processes] = torch.load(file, weights_only=True)
    return ends


@pytest.mark.parametrize("name", REGIMES)
def test_two_processes_train_as_one(name, ends):
    one, two = ends[1][name], ends[2][name]
    for key, tensor in one["state"].items():
        torch.testing.assert_close(
            tensor, two["state"][key], rtol=1e-5, atol=1e-5, msg=lambda message, key=key: f"{key}: {message}"
        )
    assert one["metrics"].keys() == two["metrics"].keys()
    for key, value in one["metrics"].items():
        if "inter_loss" in key or (name == "standalone" and key.endswith("/loss")):
            continue  # in evaluation the pairs are those of a process's own batches
        assert value == pytest.approx(two["metrics"][key], rel=1e-4), key
    assert one["metrics"]["test/accuracy"] > 0.3
