"""Benchmarks run and print lines of one form, and both sides of a comparison compute the same result."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from tests.side_by_side import run_scripts

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(file for file in (ROOT / "benchmarks").glob("[!_]*.py"))
MACHINE = {"cpu", "cores", "threads", "system", "python", "torch", "metricloss_pl"}
RATIO = {"ours", "against", "ours_median", "against_median", "unit", "ratio"}


@pytest.fixture(scope="module")
def results():
    """Finished processes of all scripts."""
    return dict(zip(SCRIPTS, run_scripts(*((script, "--quick") for script in SCRIPTS)), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_lines_of_one_form(script, results):
    result = results[script]
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert lines
    for line in lines:
        assert line["subject"]
        assert set(line["machine"]) == MACHINE
        if line["kind"] == "ratio":
            assert set(line) >= RATIO
            assert line["unit"] in ("s", "bytes")


@pytest.fixture
def center_step(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("center_step")


@pytest.fixture
def standalone_loss(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("standalone_loss")


def test_peers_do_the_center_step(center_step):
    """Later losses depend on the steps of the centers; classes recur in a batch, and some are absent."""
    steps = {"ours": center_step.ours} | {name: peer.prepare for name, peer in center_step.PEERS.items()}
    values = {}
    for name, prepare in steps.items():
        step = prepare(6, 8, 4)
        values[name] = torch.stack([step().detach() for _ in range(5)])
    torch.testing.assert_close(values["dense_backward"], values["ours"])
    torch.testing.assert_close(values["embedding_sparse"], values["embedding_dense"])
    torch.testing.assert_close(values["embedding_dense"][0], values["ours"][0])
    torch.testing.assert_close(values["distance_matrix"][0], 2 * values["ours"][0])  # the form without the 1/2


def test_source_form_equals_standalone_loss(standalone_loss):
    torch.testing.assert_close(standalone_loss.source_form(6, 8, 4)(), standalone_loss.ours(6, 8, 4)())


def test_nearest_center_equals_whole_matrix(standalone_loss):
    assert standalone_loss.nearest(50, 8, 4)().equal(standalone_loss.whole_matrix(50, 8, 4)())
