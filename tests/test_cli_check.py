"""`check` on the command line."""

import pytest

from metricloss_pl.cli import main
from metricloss_pl.compare import api
from tests.check.pictures import picture, save
from tests.command_line import refusal_of
from tests.compare.synthetic import make_comparison
from tests.helpers import make_folder


def test_a_folder(tmp_path, monkeypatch, capsys):
    for number in range(4):
        save(picture(number), tmp_path / "images" / "ab"[number % 2] / f"{number}.png")
    save(picture(0), tmp_path / "images" / "a" / "copy.jpg")
    (tmp_path / "images" / "b" / "broken.png").touch()
    monkeypatch.chdir(tmp_path)
    main(["check", "images"])
    screen = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "6" in screen["images"]
    assert "b/broken.png" in screen["broken"]
    assert "1 group" in screen["duplicates"]
    assert "--folds 5" in screen["wrong"]
    assert screen["remaining"].split()[1] == "runs/check/images/remaining.csv"
    assert (tmp_path / "runs/check/images/check.html").is_file()
    assert len((tmp_path / "runs/check/images/remaining.csv").read_text().splitlines()) == 5

    main(["check", "runs/check/images/remaining.csv", "--out", "again"])
    assert "0 groups" in capsys.readouterr().out
    assert len((tmp_path / "again/remaining.csv").read_text().splitlines()) == 5


def test_mistakes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(picture(0), tmp_path / "images" / "a" / "0.png")
    (tmp_path / "images.npz").touch()
    whole = str(make_comparison(tmp_path / "whole"))
    for arguments, words in (
        (["none"], "none"),
        (["images.npz"], "images.npz"),
        (["images", f"--comparison={whole}"], "--folds 5"),
        (["images", "--in_channels=0"], "in_channels is 0"),
        (["images/a"], "no subfolders"),
        (["images", "--out=images/a"], "holds images"),
    ):
        assert words in refusal_of(capsys, "check", *arguments)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "remaining.csv").write_text("mine")
    assert "remaining.csv" in refusal_of(capsys, "check", "images", "--out=mine")
    assert (tmp_path / "mine" / "remaining.csv").read_text() == "mine"
    save(picture(0), tmp_path / "runs" / "check" / "images" / "0.png")
    assert "holds images" in refusal_of(capsys, "check", "images", "--in_channels=0")  # at once


def test_a_report_is_not_replaced_by_that_of_another_folder_of_the_same_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number, place in enumerate(("first", "second")):
        save(picture(number), tmp_path / place / "images" / "a" / f"{place}.png")
    remaining = tmp_path / "runs/check/images/remaining.csv"
    for _ in range(2):
        main(["check", "first/images"])
    line = refusal_of(capsys, "check", "second/images")
    assert str(tmp_path / "first" / "images") in line
    assert "--out" in line
    assert "first.png" in remaining.read_text()
    main(["check", "second/images", "--out=runs/check/images"])
    assert "second.png" in remaining.read_text()


@pytest.mark.slow
def test_wrong_labels_by_a_comparison_of_the_same_folder(tmp_path, monkeypatch, capsys):
    pytest.importorskip("optuna")
    make_folder(tmp_path / "images", images=4, parts=("train", "test"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api.Comparison, "report", lambda self: self.folder / "report.html")
    short = ["--include=[softmax]", "--seeds=[0]", "--steps=1", "--tuning.trials=0", "--trivial=false", "--folds=2"]
    main(["compare", "--data_root=images", *short, "--overrides={data.image_size: 16}"])
    main(["check", "images", "--comparison=runs/compare/images"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong labels")]
    assert "softmax" in line
    assert "16 images" in line
