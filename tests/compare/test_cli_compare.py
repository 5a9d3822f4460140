"""`metricloss compare` on the command line: its settings, its screen and its mistakes."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from metricloss_pl.cli import main
from metricloss_pl.compare import api, driver
from metricloss_pl.compare.budget import Cost
from metricloss_pl.compare.store import Store
from tests.compare.small import CONFIGS
from tests.helpers import make_folder

pytest.importorskip("optuna")

DIGITS = str(CONFIGS / "compare" / "digits.yaml")
FEW = ["--include", "[softmax]", "--seeds", "[0]", "--steps", "1", "--tuning.trials", "0", "--trivial", "false"]
DRY = [*FEW, "--dry_run", "true"]


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr(api.Comparison, "report", lambda self: self.folder / "report.html")


@pytest.fixture
def free(monkeypatch):
    """No step is measured."""
    cost = Cost(0.1, 0.0, 0.1, 5, 5, 0.1)
    monkeypatch.setattr(driver, "measure", lambda task: cost)


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit):
        main(["compare", *arguments])
    return capsys.readouterr().err


def rows(screen: str) -> dict[str, str]:
    return {line.split("  ")[0]: line for line in screen.splitlines() if "  " in line}


def test_a_folder_alone_is_enough(tmp_path, capsys, monkeypatch):
    root = make_folder(tmp_path / "fruit", images=10)
    monkeypatch.chdir(tmp_path)
    main(["compare", "--data_root", str(root), *FEW, "--overrides", "{data.image_size: 16}"])
    [found] = Store(tmp_path / "runs" / "compare" / "fruit").results().values()
    assert found["status"] == "ok"
    assert Store(tmp_path / "runs" / "compare" / "fruit").plan()["data"]["root"] == str(root)
    assert "20 images of 2 classes" in rows(capsys.readouterr().out)["data"]


@pytest.mark.usefixtures("free")
def test_lists_and_arrays_are_compared_like_folders(tmp_path, capsys, monkeypatch):
    """Also on folds, in which groups are kept whole."""
    root = make_folder(tmp_path / "images", images=8)
    files = sorted(root.rglob("*.png"))
    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "group"])
        writer.writerows((path.relative_to(tmp_path), path.parent.name, int(path.stem) // 2) for path in files)
    images = np.random.default_rng(0).integers(0, 255, (16, 12, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "arrays.npz", train_images=images, train_labels=np.arange(16) % 2)
    monkeypatch.chdir(tmp_path)
    for name in ("list.csv", "arrays.npz"):
        main(["compare", "--data_root", name, *DRY, "--folds", "2"])
        screen = rows(capsys.readouterr().out)
        assert "16 images of 2 classes, 16 of them tested in 2 folds" in screen["data"]
        assert screen["folder"].endswith(name.partition(".")[0])
    made = driver.Driver(
        api.ComparisonConfig(
            {"softmax": api.Variant(str(CONFIGS / "folder_softmax.yaml"))}, data_root="list.csv", folds=2, trivial=False
        ).checked(),
        Store("x"), 1, None, "none",
    )  # fmt: skip
    made.prepare(retry_failed=False)
    from metricloss_pl.compare.runner import build

    data = build(made._task(made.runs[0]), {})[1]
    tested = {(Path(name).parent.name, int(Path(name).stem) // 2) for name in data.read("test").names}
    trained = {(Path(name).parent.name, int(Path(name).stem) // 2) for name in data.read("train").names}
    assert tested
    assert not {group for _, group in tested} & {group for _, group in trained}


@pytest.mark.usefixtures("free")
def test_images_that_occur_twice_are_reported(tmp_path, capsys, monkeypatch):
    root = make_folder(tmp_path / "fruit", images=12, parts=("train", "test"))
    for image in range(12):
        shutil.copy(root / "train" / "cat" / f"{image}.png", root / "test" / "cat" / f"{image}.png")
    (root / "train" / "dog" / "scan.heic").touch()
    monkeypatch.chdir(tmp_path)
    main(["compare", "--data_root", str(root), *DRY, "--sizes", "[2]"])
    screen = capsys.readouterr().out
    assert "warning: 12 duplicates in more than one set" in screen
    assert "scan.heic" in screen
    (root / "train" / "dog" / "7.png").write_bytes(b"no image")  # no run draws it
    assert "7.png cannot be read as an image" in refused(capsys, "--data_root", str(root), *DRY, "--sizes", "[2]")
    shutil.copytree(root / "train" / "cat", tmp_path / "alone" / "cat")
    assert "error: the data have 1 class" in refused(capsys, "--data_root", str(tmp_path / "alone"), *DRY)


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    few = ["--include", "[softmax]", "--sizes", "[5]", "--trivial", "false", "--dry_run", "true"]
    main(["compare", "--config", DIGITS, "--output_dir", str(tmp_path / "results"), *few])
    screen = rows(capsys.readouterr().out)
    assert screen["final runs"].split()[2] == "5,"
    assert screen["trials"].split()[1] == "5:"
    assert "20 validation images" in screen["trials"]
    assert re.search(r"about [\d.]+ (s|min)", screen["time left"])
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "compare needs --config"),
        (["--data_root", "nowhere", *DRY], "error: no folder nowhere"),
        (["--data_root", "nowhere.csv", *DRY], "nowhere.csv"),
        (["--config", DIGITS, "--samples_per_class", "3"], "samples_per_class"),
        (["--data_rot", "my_images"], "unrecognized arguments: --data_rot"),
        (["--config", DIGITS, "--seeds", "[a]"], "seeds"),
        (["--config", DIGITS, "--seeds", "0,1"], 'as in --seeds "[0,1]"'),
        (["--config", DIGITS, "--include", "softmax,cosine"], '--include "[softmax,cosine]"'),
        (["--config", DIGITS, "--include", "[cosine, arcface]"], "include names arcface"),
        (["--config", DIGITS, "--data.image_size=16"], '--overrides "{data.image_size: VALUE}"'),
        (["--config", DIGITS, "--keep_checkpoints", "some"], "keep_checkpoints"),
    ],
)
def test_a_mistake_gets_one_line(arguments, message, capsys):
    error = refused(capsys, *arguments)
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("flags", "epochs", "steps"),
    [
        ([], None, 400),
        (["--epochs", "7"], 7, None),
        (["--steps=30"], None, 30),
        (["--epochs=7", "--steps=30"], 7, 30),  # refused by the plan
    ],
)
def test_a_flag_for_epochs_replaces_steps(flags, epochs, steps, tmp_path, monkeypatch):
    config = tmp_path / "plan.yaml"
    config.write_text(f"variants: {{softmax: {{config: {CONFIGS / 'digits_softmax.yaml'}}}}}\nsteps: 400\n")
    described = []

    def note(variants, output_dir: str | None = None, command: str | None = None):
        described.append(variants)

    monkeypatch.setattr(api, "compare", note)
    main(["compare", "--config", str(config), *flags])
    assert [(one.epochs, one.steps) for one in described] == [(epochs, steps)]


@pytest.mark.usefixtures("free")
def test_an_interrupted_comparison_says_how_it_continues(tmp_path, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(driver.InProcess, "wait", interrupt)
    few = ["--include", "[softmax]", "--sizes", "[5]", "--trivial", "false", "--n_parallel", "1"]
    with pytest.raises(SystemExit) as caught:
        main(["compare", "--config", DIGITS, "--output_dir", str(tmp_path / "out"), *few])
    assert caught.value.code == 130
    assert "the same command continues" in capsys.readouterr().out


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    text = capsys.readouterr().out
    for name in (
        "include",
        "n_parallel",
        "cluster",
        "pretrained",
        "keep_checkpoints",
        "output_dir",
        "dry_run",
        "sizes",
    ):
        assert f"--{name} " in text
