"""Benchmarks run and print lines of one form, and both sides of a comparison compute the same result."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from metricloss_pl.augment import HorizontalFlip
from metricloss_pl.data import ImageDataModule
from tests.side_by_side import run_scripts

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(file for file in (ROOT / "benchmarks").glob("[!_]*.py"))
MACHINE = {"cpu", "gpu", "cores", "threads", "system", "python", "torch", "metricloss_pl"}
RATIO = {"ours", "against", "ours_median", "against_median", "unit", "ratio"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Finished processes of all scripts."""
    file = tmp_path_factory.mktemp("data") / "cifar10.npz"
    arrays = {}
    for split, count in (("train", 200), ("test", 20)):
        arrays[f"{split}_images"] = np.random.default_rng(0).integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 10
    np.savez(file, **arrays)
    own = {"gpu": ["--cifar10", file]}
    return dict(zip(SCRIPTS, run_scripts(*((s, "--quick", *own.get(s.stem, [])) for s in SCRIPTS)), strict=True))


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
        if line["kind"] == "check" and "16-mixed" in line["subject"].split(", "):
            assert 0 < line["skipped_steps"] < line["steps"]


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


@pytest.fixture
def gpu(monkeypatch):
    """Script for a GPU, with the CPU in its place."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("gpu")
    monkeypatch.setattr(ImageDataModule, "_trains_on_gpu", lambda data: data.trainer is not None)
    monkeypatch.setattr(module, "peak_bytes", lambda step: 1 + (step() is None))
    return module


@pytest.fixture
def session(gpu):
    return gpu.Session(torch.device("cpu"), quick=True)


def test_measurements_that_need_a_gpu(gpu, session, capsys):
    asked = [(name, "", measure) for name, needs, measure in gpu.measurements() if needs == gpu.GPU]
    assert gpu.run(session, [one for one in asked if "compiled" not in one[0]])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["kind"] for line in lines} == {"check", "ratio"}
    assert [line["on_device"] for line in lines if "on_device" in line] == ["all", "augmentation"]


def test_a_difference_from_the_cpu_is_found(gpu, session):
    class Drifting(HorizontalFlip):
        calls = itertools.count()

        def __call__(self, images, keys):
            return images // 2 + 2 * next(self.calls)

    assert gpu.pixels(session, "flips", HorizontalFlip())
    assert not gpu.pixels(session, "other pixels", Drifting())


def test_a_run_that_does_not_resume_is_found(gpu, session, monkeypatch):
    train = gpu.train
    assert gpu.resume(session, "resumed", "center", "32-true")
    monkeypatch.setattr(gpu, "train", lambda *args, file=None, **settings: train(*args, **settings))
    monkeypatch.setattr(torch, "manual_seed", lambda seed: torch.random.default_generator.seed())
    assert not gpu.resume(session, "trained again", "center", "32-true")


def test_measurements_do_not_depend_on_each_other(gpu, session, capsys):
    def fail(session, subject):
        raise ValueError("no kernel")

    def fits(session, subject):
        return gpu.check(subject, 0, 0)

    def differs(session, subject):
        return gpu.check(subject, float("nan"), 1)

    assert gpu.run(session, [("first", "", fits), ("second", gpu.GPU, fail), ("third", gpu.CIFAR10, fail)])
    assert not gpu.run(session, [("fails", "", fail), ("fits", "", fits)])
    assert not gpu.run(session, [("differs", "", differs), ("fits", "", fits)])
    assert gpu.run(session._replace(end=0.0), [("late", "", fail)])
    kinds = [json.loads(line)["kind"] for line in capsys.readouterr().out.splitlines()]
    assert kinds == ["check", "skipped", "skipped", "error", "check", "check", "check", "skipped"]


def test_the_bare_loop_sees_mirrored_and_shifted_images(gpu):
    data = gpu.noise(5, 2, 4, [])
    loader = gpu.OnDevice(data, torch.device("cpu"))
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert sorted(labels.tolist()) == list(range(10))
    originals = torch.nn.functional.pad(data.samples("train").images, (4, 4, 4, 4))
    places = list(itertools.product(range(9), range(9)))
    for image, label in zip(images, labels, strict=True):
        windows = [originals[label, :, top : top + 4, left : left + 4] for top, left in places]
        assert any(torch.equal(image, window) or torch.equal(image, window.flip(-1)) for window in windows)
