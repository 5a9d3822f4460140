"""Files that a config names, relative to the config, and files that can't be written."""

import os
from typing import Literal

import pytest
import torch
from jsonargparse import ArgumentParser

from metricloss_pl.errors import UserError
from metricloss_pl.files import FilePath, replacing, writing_csv


@pytest.fixture
def parser():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--file", type=Literal["a", "b"] | FilePath | int | torch.Tensor | None)
    return parser


def test_it_is_relative_to_the_config_that_names_it(parser, tmp_path, monkeypatch):
    (tmp_path / "configs" / "trees").mkdir(parents=True)
    (tmp_path / "configs" / "trees" / "one.txt").write_text("a: 1")  # must not be taken for the value
    (tmp_path / "configs" / "config.yaml").write_text("file: trees/one.txt")
    monkeypatch.chdir(tmp_path)
    expected = str(tmp_path / "configs" / "trees" / "one.txt")
    for arguments in (["--config=configs/config.yaml"], ["--file=configs/trees/one.txt"], [f"--file={expected}"]):
        config = parser.parse_args(arguments)
        assert config.file == expected
        assert parser.dump(config).strip() == f"file: {expected}"


def test_a_value_that_is_no_file_is_kept(parser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, expected in {"a": "a", "nowhere.txt": "nowhere.txt", "null": None, ".": "."}.items():
        assert parser.parse_args([f"--file={given}"]).file == expected
    assert parser.parse_object({"file": 7}).file == 7


def test_files_that_can_not_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "table.csv", tmp_path / f"{'long' * 99}.csv"):
        with pytest.raises(UserError, match=r"\.csv can't be written"), replacing(path):
            pytest.fail("nothing is to be written yet")
    monkeypatch.setattr(os, "replace", lambda beside, path: os.mkdir(tmp_path))
    with pytest.raises(UserError, match=r"table\.csv can't be written"), replacing(tmp_path / "table.csv") as beside:
        beside.write_text("new")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_csv_file_keeps_names_of_any_bytes(tmp_path):
    table = tmp_path / "table.csv"
    with writing_csv(table) as writer:
        writer.writerow(["\udcff.png", 'a,"b'])
    assert table.read_bytes() == b'\xff.png,"a,""b"\r\n'
    assert list(tmp_path.iterdir()) == [table]


def test_a_csv_replaces_no_other_kind_of_file(tmp_path):
    """An image after `--csv`, where a file name was forgotten."""
    (tmp_path / "a.png").write_bytes(b"pixels")
    with pytest.raises(UserError, match=r"a\.png"), writing_csv(tmp_path / "a.png"):
        pass
    assert (tmp_path / "a.png").read_bytes() == b"pixels"
