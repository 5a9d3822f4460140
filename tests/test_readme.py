"""The README keeps its word: its Python runs, its commands parse, its links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from metricloss_pl.cli import main
from tests.helpers import make_folder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


class Block(NamedTuple):
    """One fenced block of the README."""

    line: int
    language: str
    needs: str  # what the comment before it asks for, or ""
    text: str


def fenced(document: str) -> list[Block]:
    """All fenced blocks of a document, in order."""
    pattern = r"^(?:<!-- needs: (\w+) -->\n)?```(\w*)\n(.*?)^```$"
    return [
        Block(document.count("\n", 0, match.start(2)) + 1, match[2], match[1] or "", match[3])
        for match in re.finditer(pattern, document, flags=re.MULTILINE | re.DOTALL)
    ]


BLOCKS = fenced(README)
PYTHON = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [
    line for block in BLOCKS if block.language == "bash" for line in block.text.splitlines() if "cli.py " in line
]


def arguments(line: str) -> list[str]:
    """What stands behind cli.py in a line of shell."""
    words = shlex.split(line)
    return words[next(i for i, word in enumerate(words) if word.endswith("cli.py")) + 1 :]


def config_of(args: list[str]) -> str | None:
    """The value of --config."""
    return args[args.index("--config") + 1] if "--config" in args else None


def test_blocks_are_found():
    document = "a\n```python\nx = 1\n```\n\n<!-- needs: checkpoint -->\n```python\ny = 2\n```\n```bash\nls\n```\n"
    assert fenced(document) == [
        Block(2, "python", "", "x = 1\n"),
        Block(7, "python", "checkpoint", "y = 2\n"),
        Block(10, "bash", "", "ls\n"),
    ]
    assert README.count("```python") == len(PYTHON) > 0
    assert README.count("python cli.py ") <= len(COMMANDS) + README.count("`python cli.py ")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.ckpt of one epoch on the digits."""
    runs = tmp_path_factory.mktemp("runs")
    config = f"--config={ROOT / 'configs' / 'digits_cosine.yaml'}"
    flags = ["--trainer.max_epochs=1", "--trainer.callbacks=null", "--test_after_fit=false", f"--runs_dir={runs}"]
    main(["fit", config, *flags, *QUIET])
    return runs / "digits_cosine" / "version_0" / "checkpoints" / "best.ckpt"


def make_images(folder: Path) -> None:
    """A few digits as PNG files."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder.mkdir()
    for i, image in enumerate(load_digits().images[:5]):
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(folder / f"{i}.png")


def in_a_fresh_process(block: Block) -> object:
    """The block as a parameter: it takes seconds to import torch anew, so that but one block is in the fast tests."""
    return pytest.param(block, id=f"line_{block.line}", marks=[] if block.needs else [pytest.mark.slow])


@pytest.mark.parametrize("block", map(in_a_fresh_process, PYTHON))
def test_python_runs_as_it_stands(block, tmp_path, request):
    """In an interpreter that has imported nothing yet."""
    assert block.needs in ("", "checkpoint")
    make_folder(tmp_path / "my_images", images=12)
    if block.needs:
        shutil.copy(request.getfixturevalue("checkpoint"), tmp_path / "best.ckpt")
        make_images(tmp_path / "new_images")
        (tmp_path / "new_images" / "4.png").rename(tmp_path / "photo.jpg")
    (tmp_path / "block.py").write_text(block.text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "block.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"README.md, line {block.line}: {done.stderr}"
    if block.needs:
        assert re.match(r"\['\d'\] tensor\(\[\[", done.stdout)


def lay_out_files(folder: Path) -> None:
    """What the commands name, beside the configs: images, a list, arrays, and a project with a regime of its own."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    make_folder(folder / "my_images", images=6)
    rows = [f"{name}/{i}.png,{name}" for name in ("cat", "dog") for i in range(6)]
    (folder / "my_images" / "list.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    images = np.zeros((12, 28, 28), dtype=np.uint8)
    np.savez(folder / "my_images.npz", train_images=images, train_labels=np.arange(12) % 2)
    (project,) = [block.text for block in PYTHON if "class SmallNormClassifier" in block.text]
    (folder / "my_project.py").write_text(project)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line, tmp_path, monkeypatch, capsys):
    args = arguments(line)
    if (config := config_of(args)) is None:
        assert {"--resume", "--ckpt_path"} & set(args), "a command takes a config, or a run that has one"
        return
    assert (ROOT / config).is_file()
    lay_out_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main([*args, "--print_config"])
    assert caught.value.code in (0, None), capsys.readouterr().err
    assert "class_path: " in capsys.readouterr().out


def test_commands_without_a_config_run(checkpoint, tmp_path, monkeypatch, capsys):
    """Resume, test and predict, as the section on runs has them."""
    run = tmp_path / "runs" / "digits_cosine" / "version_0"
    shutil.copytree(checkpoint.parent.parent, run)
    make_images(tmp_path / "new_images")
    monkeypatch.chdir(tmp_path)
    commands = [args for args in map(arguments, COMMANDS) if config_of(args) is None]
    assert [args[0] for args in commands] == ["fit", "test", "predict"]
    for args in commands:
        fewer = [word if word != "60" else "2" for word in args]  # epochs
        main([*fewer, *QUIET])
    columns = (run / "predictions.csv").read_text().splitlines()[0].split(",")
    assert columns == ["file", "class", "probability", "runner_up", "runner_up_probability"]
    assert all(f"`{column}`" in README for column in columns)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in target]
    assert targets or name != "README.md"
    for target in targets:
        assert (ROOT / target).is_file(), target


def test_configs_that_the_text_names_exist():
    named = set(re.findall(r"configs/[\w/]+\.yaml", README))
    assert len(named) >= 5
    for config in named:
        assert (ROOT / config).is_file(), config


def test_regimes_of_the_table_exist():
    import metricloss_pl.regimes as regimes

    rows = re.findall(r"^\| `(\w+)` \|.*`(<data>|[a-z]+)_(\w+)\.yaml`", README, flags=re.MULTILINE)
    assert {regime for regime, _, _ in rows} == set(regimes.__all__) - {"Classifier"}
    every = ("digits", "mnist", "fashion_mnist", "cifar10", "cub", "folder")
    for _, data, stem in rows:
        for name in every if data == "<data>" else (data,):
            assert (ROOT / "configs" / f"{name}_{stem}.yaml").is_file()
