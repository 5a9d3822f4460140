"""A checkpoint file is whole or the old one."""

import os

import pytest
import torch

from metricloss_pl.checkpoints import AtomicCheckpointIO, plain_settings, read_checkpoint
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


def test_settings_that_code_would_be_needed_for_are_left_out():
    backbone = {"class_path": "a.Net", "init_args": {"depth": 3, "weights": "file.pth"}}
    given = {"num_classes": 3, "optimizer": torch.optim.SGD, "backbone": backbone, "names": ["a", "b"], "scale": None}
    kept = {"class_path": "a.Net", "init_args": {"depth": 3}}
    assert plain_settings(given) == {"num_classes": 3, "backbone": kept, "names": ["a", "b"], "scale": None}
    assert backbone["init_args"]["weights"] == "file.pth"


def test_what_is_no_file_is_not_replaced(tmp_path):
    with pytest.raises(UserError, match="is no file that could be replaced"), replacing(tmp_path):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"a\.csv can't be written \("), replacing(tmp_path / "file" / "a.csv"):
        pass


def test_a_pipe_is_not_replaced(tmp_path):
    make_pipe(tmp_path / "pipe")
    with pytest.raises(UserError, match="is no file that could be replaced"), replacing(tmp_path / "pipe"):
        pass


def test_the_file_that_a_link_names_is_replaced(tmp_path):
    make_link(tmp_path / "link.csv", tmp_path / "target.csv")
    with replacing(tmp_path / "link.csv") as beside:
        beside.write_text("new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "target.csv").read_text() == "new"


@pytest.mark.parametrize(
    ("text", "message"),
    [("\udce9", None), ("[" * 100 + "]" * 100, None), ("[" * 300_000, "more than 100 deep: it is not trusted")],
    ids=["no_unicode", "nested", "bomb"],
)
@pytest.mark.timeout(20)
def test_texts_that_yaml_chokes_on(tmp_path, text, message):
    settings = {"state_dict": {}, "hyper_parameters": {"name": text}, "class_names": []}
    torch.save(settings, tmp_path / "a.ckpt")
    if message is None:
        assert read_checkpoint(tmp_path / "a.ckpt")["hyper_parameters"] == {"name": text}
    else:
        with pytest.raises(UserError, match=message):
            read_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_pipe(tmp_path / "pipe")
    torch.save({"state_dict": {}, "hyper_parameters": {"name": "{a: pipe}"}, "class_names": []}, "a.ckpt")
    with pytest.raises(UserError, match=r"a.ckpt names pipe, a pipe that would be waited for: it is not trusted"):
        read_checkpoint("a.ckpt")
