"""Documents are true: code and commands of README.md and docs/*.md run, links lead to files, pictures are current."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import metricloss_pl
from metricloss_pl.cli import main
from tests.documents import PAGES, ROOT, TEMPLATES, Block, blocks, fill_working_folder

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [block for block in blocks() if block.page not in TEMPLATES]
RUN = [block for block in BLOCKS if not block.mark.startswith("not run: ")]
PYTHON = [block for block in RUN if block.language == "python"]
SHELL = [block for block in RUN if block.language == "bash"]
FITS = {" ".join(words): words for block in BLOCKS for words in block.commands if words[0] == "fit"}
PARSED = [words for words in FITS.values() if "--config" in words and "--print_config" not in words]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
PUBLIC = ("losses", "losses.functional", "regimes", "class_embeddings", "backbones", "data", "augment", "mixing")
PUBLIC += ("schedules", "callbacks", "metrics", "plots", "compare", "check", "export")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Train on the digits for one epoch."""
    runs = tmp_path_factory.mktemp("runs")
    flags = ["--trainer.max_epochs=1", "--trainer.callbacks=null", "--test_after_fit=false", f"--runs_dir={runs}"]
    main(["fit", "--config=digits_cosine.yaml", *flags, *QUIET])
    return runs / "digits_cosine" / "version_0"


def in_own_process(*command: str, folder: Path, **env: str) -> str:
    """Run a command in a folder, and return what it prints."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", **env}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def as_parameter(block: Block):
    """Return a block as the parameter of a test, which is slow unless it is short Python."""
    quick = block.language == "python" and block.mark != "slow" and "Trainer" not in block.text
    return pytest.param(block, id=block.name, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize("block", [as_parameter(block) for block in PYTHON])
def test_python_runs(block, tmp_path, request):
    fill_working_folder(tmp_path, request.getfixturevalue("run") if "best.ckpt" in block.text else None)
    (tmp_path / "program.py").write_text(block.text, encoding="utf-8")
    in_own_process(sys.executable, "program.py", folder=tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="the blocks are for a POSIX shell")
@pytest.mark.parametrize("block", [as_parameter(block) for block in SHELL])
def test_commands_run(block, tmp_path, run):
    fill_working_folder(tmp_path, run)
    program = tmp_path / "bin" / "metricloss"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.short_program "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    in_own_process("bash", "-euc", block.text, folder=tmp_path, PATH=path)


@pytest.mark.parametrize("words", PARSED, ids=" ".join)
def test_commands_parse(words, tmp_path, monkeypatch, capsys):
    fill_working_folder(tmp_path)
    monkeypatch.chdir(tmp_path if words[2] != "configs/digits_cosine.yaml" else ROOT)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main([*words, "--print_config"])
    assert caught.value.code in (0, None), capsys.readouterr().err
    assert "class_path: " in capsys.readouterr().out


def test_marks_of_blocks_have_a_meaning():
    assert {block.mark.partition(":")[0] for block in BLOCKS} <= {"", "slow", "not run"}
    assert len(PYTHON) > 5
    assert len(SHELL) > 15


@pytest.mark.slow
def test_screen_of_the_first_command(tmp_path):
    """The values of each line may differ, its words and its number of values may not."""
    [screen] = re.findall(r"<!-- screen -->\n```text\n(.*?)```\n<!-- /screen -->", README, flags=re.DOTALL)
    command = next(words for words in PARSED if words[2] == "configs/digits_cosine.yaml")
    printed = in_own_process(
        *(sys.executable, str(ROOT / "cli.py"), *command, "--config", str(ROOT / command[2])), folder=tmp_path
    )

    def words_of(line: str) -> str:
        return re.sub(r"\d+(\.\d+)?", "0", " ".join(line.replace("1 min", "").split()))

    expected = [words_of(line) for line in screen.splitlines()]
    assert [words_of(line) for line in printed.splitlines()][-len(expected) :] == expected


@pytest.mark.parametrize("file", [*ROOT.glob("*.md"), *PAGES[1:], *ROOT.glob("benchmarks/*.md")], ids=str)
def test_links_and_configs_exist(file):
    text = file.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    ours = re.findall(r"metricloss-pl/metricloss_pl/(?:blob|tree)/main/([\w./-]+)\)", text)
    configs = re.findall(r"\bconfigs/[\w/]+\.(?:yaml|txt)", text)
    assert links or file.name != "README.md"
    for path in [*(file.parent / link for link in links), *(ROOT / path for path in (*configs, *ours))]:
        assert path.exists(), path


def test_readme_is_one_page():
    assert len(README.splitlines()) <= 150


def test_the_table_lists_all_regimes():
    rows = re.findall(r"^\| `(\w+)` \|.*`(<data>|[a-z]+)_(\w+)\.yaml`", README, flags=re.MULTILINE)
    assert {regime for regime, _, _ in rows} == set(metricloss_pl.regimes.__all__) - {"Classifier", "Distillation"}
    every = ("digits", "mnist", "fashion_mnist", "cifar10", "cub", "folder")
    for _, data, stem in rows:
        for name in every if data == "<data>" else (data,):
            assert (ROOT / "configs" / f"{name}_{stem}.yaml").is_file()


@pytest.mark.slow
def test_site_builds_and_refers_to_every_public_name(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocs_jupyter")
    program = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    in_own_process(*program, "--config-file", str(ROOT / "mkdocs.yml"), folder=tmp_path)
    _, _, packed = (tmp_path / "site" / "objects.inv").read_bytes().partition(b"zlib.\n")
    names = {line.split()[0] for line in zlib.decompress(packed).decode().splitlines() if line}
    for module in (importlib.import_module(f"metricloss_pl.{name}") for name in PUBLIC):
        public = [
            name
            for name in module.__all__
            if inspect.isclass(value := getattr(module, name)) or inspect.isfunction(value)
        ]
        for name in public:
            assert any(full.startswith(module.__name__) and full.endswith(f".{name}") for full in names), name
    pages = "".join(page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html"))
    assert not re.findall(r"<(?:script|img|link rel=.stylesheet.)[^>]*(?:src|href)=.?https?://[^ >]*", pages)
