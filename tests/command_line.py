"""The command line as tests call it, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from metricloss_pl.cli import main

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
# A few of the digits, for an epoch without figures and test.
SMALL = ["--data.samples_per_class=8", "--data.test_fraction=0.05", "--data.batch_size=16", "--data.val_fraction=0.5"]
SHORT = ["--trainer.callbacks=null", "--trainer.max_epochs=1", "--test_after_fit=false", *QUIET]


def fit(config: str, runs: Path, *flags: str) -> Path:
    """Train by a shipped config for an epoch, without figures; return the run's folder."""
    known = set(runs.glob("*/version_*"))
    main(["fit", f"--config={CONFIGS / config}.yaml", f"--runs_dir={runs}", *SHORT, *flags])
    (run,) = set(runs.glob("*/version_*")) - known
    return run


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Return the one line that a run's mistake gets, with status 1 and no traceback."""
    return refusal_of(capsys, *args, *QUIET)


def refusal_of(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Return the one line that a mistake of any subcommand gets."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(list(args))
    assert caught.value.code == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    return line


def load(checkpoint: Path) -> dict:
    return torch.load(checkpoint, weights_only=True)


def best(run: Path) -> str:
    return f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"


def result(run: Path, name: str = "result") -> dict:
    return json.loads((run / f"{name}.json").read_text())


def checkpoint_names(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}
