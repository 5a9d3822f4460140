"""The program's table of subcommands, which answers before anything heavy is imported."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import metricloss_pl
from metricloss_pl.cli import main

ROOT = Path(__file__).parent.parent
TRAINER = ("fit", "validate", "test")
FUNCTIONS = ("predict", "similar", "export", "check", "compare", "report", "figure", "hierarchy", "configs")
SUBCOMMANDS = (*TRAINER, *FUNCTIONS)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_subcommand(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name in SUBCOMMANDS:
        assert [line for line in lines if line.startswith(f"  {name} ") and line.endswith(".")], name


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"metricloss_pl {metricloss_pl.__version__}\n"


@pytest.mark.parametrize(
    ("first", "near"),
    [("fits", ": is it fit"), ("train", ""), ("--config=digits_cosine.yaml", ""), ("Test", ": is it test")],
)
def test_an_unknown_subcommand_is_one_line_with_the_known_ones(first, near, capsys):
    with pytest.raises(SystemExit) as caught:
        main([first, "--help"])
    assert caught.value.code == 1
    known = ", ".join(SUBCOMMANDS)
    assert capsys.readouterr().err == f"error: {first} is no subcommand{near}; there are {known}\n"


@pytest.mark.parametrize("program", [["cli.py"], ["-m", "metricloss_pl"]])
@pytest.mark.parametrize("argument", ["--help", "configs"])
def test_answers_without_heavy_imports(program, argument, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *program, argument]
    launched = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **path})
    assert launched.returncode == 0, launched.stderr
    assert f"{' '.join(['python', *program])} " in launched.stdout


@pytest.mark.parametrize("subcommand", FUNCTIONS)
def test_help_of_a_subcommand_says_how_it_is_called(subcommand, capsys):
    with pytest.raises(SystemExit) as caught:
        main([subcommand, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: metricloss {subcommand}")


@pytest.mark.skipif(os.name == "nt" or not shutil.which("bash"), reason="needs bash")
def test_output_that_nobody_reads_ends_quietly():
    program = f"{shlex.quote(sys.executable)} -m metricloss_pl configs | true"
    piped = subprocess.run(["bash", "-o", "pipefail", "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert piped.stderr == ""
