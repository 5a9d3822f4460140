"""Documents are true: Python in README.md runs, commands parse or run, links lead to files."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import metricloss_pl.regimes
from metricloss_pl.cli import main
from tests.helpers import make_folder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
TEXT = README + (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^(<!-- needs: checkpoint -->\n)?```(\w*)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
PYTHON = [(bool(needs), text) for needs, language, text in BLOCKS if language == "python"]
LINES = [line for _, language, text in BLOCKS if language == "bash" for line in text.splitlines() if "cli.py " in line]
COMMANDS = [shlex.split(line.partition("cli.py ")[2]) for line in LINES]
OF_RUN_FILES = [command for command in COMMANDS if "--config" in command]
OF_RUNS = [command for command in COMMANDS if {"--resume", "--ckpt_path"} & {*command}]


def test_all_blocks_and_commands_are_tested():
    assert README.count("```python") == len(PYTHON) > 0
    assert [command[0] for command in OF_RUNS] == ["fit", "test", "predict"]
    others = [command for command in COMMANDS if command not in OF_RUN_FILES + OF_RUNS]
    assert others == [["compare", "--data_root", "my_images"]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Train on the digits for one epoch."""
    runs = tmp_path_factory.mktemp("runs")
    config = f"--config={ROOT / 'configs' / 'digits_cosine.yaml'}"
    flags = ["--trainer.max_epochs=1", "--trainer.callbacks=null", "--test_after_fit=false", f"--runs_dir={runs}"]
    main(["fit", config, *flags, *QUIET])
    return runs / "digits_cosine" / "version_0" / "checkpoints" / "best.ckpt"


def write_digits(folder, *names):
    folder.mkdir(exist_ok=True)
    for image, name in zip(load_digits().images, names, strict=False):
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(folder / name)


def as_parameter(needs_checkpoint, text):
    """Mark all blocks but one as slow: each imports torch in a process of its own."""
    line = README.count("\n", 0, README.index(text))
    return pytest.param(needs_checkpoint, text, id=f"line_{line}", marks=() if needs_checkpoint else pytest.mark.slow)


@pytest.mark.parametrize(("needs_checkpoint", "text"), [as_parameter(*block) for block in PYTHON])
def test_python_runs(needs_checkpoint, text, tmp_path, request):
    make_folder(tmp_path / "my_images", images=12)
    if needs_checkpoint:
        shutil.copy(request.getfixturevalue("checkpoint"), tmp_path / "best.ckpt")
        write_digits(tmp_path, "photo.jpg")
    done = subprocess.run(
        [sys.executable, "-c", text],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if needs_checkpoint:
        assert re.match(r"\['\d'\] tensor\(\[\[", done.stdout)


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    """Hold all that commands name: configs, images, a list, arrays, and a project with its own regime."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    make_folder(tmp_path / "my_images", images=6)
    rows = [f"{name}/{i}.png,{name}" for name in ("cat", "dog") for i in range(6)]
    (tmp_path / "my_images" / "list.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    images = np.zeros((12, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "my_images.npz", train_images=images, train_labels=np.arange(12) % 2)
    [project] = [text for _, text in PYTHON if "class SmallNormClassifier" in text]
    (tmp_path / "my_project.py").write_text(project)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("command", OF_RUN_FILES, ids=" ".join)
@pytest.mark.usefixtures("working_folder")
def test_commands_parse(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--print_config"])
    assert caught.value.code in (0, None), capsys.readouterr().err
    assert "class_path: " in capsys.readouterr().out


def test_commands_on_a_run(checkpoint, tmp_path, monkeypatch):
    run = tmp_path / "runs" / "digits_cosine" / "version_0"
    shutil.copytree(checkpoint.parent.parent, run)
    write_digits(tmp_path / "new_images", *(f"{i}.png" for i in range(5)))
    monkeypatch.chdir(tmp_path)
    for command in OF_RUNS:
        main([*("2" if word == "60" else word for word in command), *QUIET])  # 60 epochs
    columns = (run / "predictions.csv").read_text().splitlines()[0].split(",")
    assert columns == ["file", "class", "probability", "runner_up", "runner_up_probability"]
    assert all(f"`{column}`" in README for column in columns)


@pytest.mark.parametrize("file", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")], ids=str)
def test_links_and_configs_exist(file):
    text = file.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    configs = re.findall(r"\bconfigs/[\w/]+\.(?:yaml|txt)", text)
    assert links or file.name != "README.md"
    for path in [*(file.parent / link for link in links), *(ROOT / config for config in configs)]:
        assert path.is_file(), path


def test_the_table_lists_all_regimes():
    rows = re.findall(r"^\| `(\w+)` \|.*`(<data>|[a-z]+)_(\w+)\.yaml`", README, flags=re.MULTILINE)
    assert {regime for regime, _, _ in rows} == set(metricloss_pl.regimes.__all__) - {"Classifier", "Distillation"}
    every = ("digits", "mnist", "fashion_mnist", "cifar10", "cub", "folder")
    for _, data, stem in rows:
        for name in every if data == "<data>" else (data,):
            assert (ROOT / "configs" / f"{name}_{stem}.yaml").is_file()
