import sys
from pathlib import Path

import pytest

import metricloss_pl
from metricloss_pl.errors import shell_command

PACKAGE = Path(metricloss_pl.__file__).parent


@pytest.mark.parametrize(
    ("script", "program"),
    [
        ("cli.py", "python cli.py"),
        ("../my clone/cli.py", "python '../my clone/cli.py'"),
        (str(PACKAGE / "__main__.py"), "python -m metricloss_pl"),
        ("/usr/lib/python3/pytest/__main__.py", "metricloss"),
        ("/home/user/.venv/bin/metricloss", "metricloss"),
        ("-c", "metricloss"),
    ],
)
def test_commands_are_spelled_as_the_program_was_started(script, program, monkeypatch):
    monkeypatch.setattr(sys, "argv", [script, "fit"])
    assert shell_command("test", "--ckpt_path", "a b.ckpt") == f"{program} test --ckpt_path 'a b.ckpt'"
