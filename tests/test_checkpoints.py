"""Checkpoint files are whole or the old ones, and their settings name only trusted classes."""

import fractions
import os
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from metricloss_pl.backbones._weights import read_weights
from metricloss_pl.callbacks.run_folder import model_digest
from metricloss_pl.checkpoints import (
    AtomicCheckpointIO,
    plain_settings,
    read_checkpoint,
    trusted_imports,
)
from metricloss_pl.errors import UserError
from metricloss_pl.files import replacing
from tests.systems import make_link, make_pipe, needs_fork


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def torn(checkpoint, file):
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="disk full"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert AtomicCheckpointIO().load_checkpoint(path, weights_only=True) == {"step": 1}
    assert list(path.parent.iterdir()) == [path]


@needs_fork
def test_a_process_that_dies_while_writing_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(torch, "save", lambda checkpoint, file: (file.write(b"half"), file.flush(), os._exit(9)))
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert AtomicCheckpointIO().load_checkpoint(path, weights_only=True) == {"step": 1}


def test_it_is_on_the_disk_before_it_replaces(tmp_path, monkeypatch):
    calls = []
    real_replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), real_replace(a, b)))
    AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
    assert calls == ["fsync", "replace"]


def test_replacing_keeps_the_ending(tmp_path):
    """numpy would add its own to a file without."""
    with replacing(tmp_path / "a.npz") as beside:
        assert beside.suffix == ".npz"
        assert beside.name.startswith(".")
        beside.write_bytes(b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_settings_that_need_code_or_that_the_constructor_lacks_are_left_out():
    backbone = {"class_path": "a.Net", "init_args": {"depth": 3, "weights": "file.pth"}}
    kept = {
        "num_classes": 3,
        "class_names": ["a", "b"],
        "embedding_dim": None,
        "loss": "squared_error",
        "_class_path": "a",
    }
    given = {**kept, "optimizer": torch.optim.SGD, "backbone": backbone, "hierarchy": "of the data"}
    kept["backbone"] = {"class_path": "a.Net", "init_args": {"depth": 3}}
    assert plain_settings(given, {*kept, "optimizer"}) == kept
    assert backbone["init_args"]["weights"] == "file.pth"


@pytest.mark.parametrize("kind", ["folder", "pipe", "below a file"])
def test_what_is_no_file_is_not_replaced(kind, tmp_path):
    target = tmp_path / "target"
    if kind == "folder":
        target.mkdir()
    elif kind == "pipe":
        make_pipe(target)
    else:
        target.touch()
        target = target / "a.csv"
    with pytest.raises(UserError, match=target.name), replacing(target):
        pass


def test_the_file_that_a_link_names_is_replaced(tmp_path):
    make_link(tmp_path / "link.csv", tmp_path / "target.csv")
    with replacing(tmp_path / "link.csv") as beside:
        beside.write_text("new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "target.csv").read_text() == "new"


@pytest.mark.parametrize("text", ["\udce9", "[" * 300_000], ids=["no_unicode", "deep"])
def test_reading_a_checkpoint_leaves_its_texts_alone(tmp_path, text):
    torch.save({"state_dict": {}, "hyper_parameters": {"name": text}, "class_names": []}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"] == {"name": text}


def test_torn_and_foreign_files_are_refused(tmp_path):
    file = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.ones(9)}, "hyper_parameters": {}, "class_names": []}, file)
    whole = file.read_bytes()
    junk = np.random.default_rng(0).bytes(20_000)
    contents = [whole[: len(whole) * share // 20] for share in range(20)] + [junk[100 * i :][:40] for i in range(200)]
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.ckpt"):
            read_checkpoint(file)
    for changed in ({"class_names": None}, {"hyper_parameters": []}, {"state_dict": 1}):
        torch.save({"state_dict": {}, "hyper_parameters": {}, "class_names": [], **changed}, file)
        with pytest.raises(UserError, match=r"a\.ckpt holds no regime"):
            read_checkpoint(file)


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    """A limit on the size of files stands for the disk; torch raises an error of its own in place of the system's."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"last\.ckpt can't be written whole"):
            AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert AtomicCheckpointIO().load_checkpoint(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_another_error_while_writing_is_no_full_disk(tmp_path):
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        AtomicCheckpointIO().save_checkpoint({"step": lambda: None}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())


def test_the_limit_on_imports_ends_with_its_block():
    """A parser of the user's own, in the same process, is as free as before."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--make", type=Callable[[], fractions.Fraction])
    given = ["--make=fractions.Fraction"]
    parser.parse_args(given)
    with (
        pytest.raises(UserError, match=r"the file names fractions\.Fraction"),
        trusted_imports("the file"),
    ):
        parser.parse_args(given)
    parser.parse_args(given)
    with trusted_imports("the file", others=["fractions.Fraction"]):
        parser.parse_args(given)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), MemoryError("much is needed")], ids=repr)
def test_a_file_that_cannot_be_read_is_not_called_torn(error, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    (tmp_path / "whole.ckpt").write_bytes(b"whole")
    monkeypatch.setattr(torch, "load", fail)
    for read in (read_checkpoint, read_weights):
        with pytest.raises(UserError, match=r"whole\.ckpt .*(Permission denied|much is needed)"):
            read(tmp_path / "whole.ckpt")


def test_the_digest_is_of_what_decides_probabilities(tmp_path):
    content = {
        "state_dict": {"a": torch.tensor(1.0), "b": torch.ones(2, 3, dtype=torch.bfloat16).t()},
        "hyper_parameters": {},
        "class_names": ["x", "y"],
        "temperature": 1.5,
    }

    def digest(**changed: object) -> str:
        torch.save(content | changed, tmp_path / "a.ckpt")
        return model_digest(tmp_path / "a.ckpt")

    same = digest()
    assert digest(rejection={"threshold": 1.0}) == same
    assert digest(state_dict=dict(reversed(content["state_dict"].items()))) == same
    assert digest(temperature=1.0) != same
    assert digest(state_dict=content["state_dict"] | {"a": torch.tensor(2.0)}) != same
