"""A run that is killed within an epoch and resumed ends, bit for bit, as one that was never interrupted."""

import json
import signal
from pathlib import Path

import pytest
import torch

from tests.interrupted_fit import run_in_turn
from tests.processes import run_groups
from tests.systems import needs_fork

ROOT = Path(__file__).parent.parent
REGIMES = ("softmax", "cosine", "center", "standalone")

# Randomness within the training step; the center regimes accept no mixing.
MIXING = {
    "softmax": ["--model.batch_mixing=MixUp", "--model.batch_mixing.alpha=0.5"],
    "cosine": ["--model.batch_mixing=CutMix", "--model.batch_mixing.probability=0.8"],
}


def arguments(regime: str, runs: Path, workers: int) -> list[str]:
    """Return the arguments for two epochs of 20 steps, with dropout, mixing and a last.ckpt every 7 steps."""
    return [
        "fit",
        f"--config={ROOT / 'configs' / f'digits_{regime}.yaml'}",
        f"--runs_dir={runs}",
        "--trainer.callbacks=null",
        "--trainer.max_epochs=2",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--model.backbone.dropout=0.2",
        f"--data.num_workers={workers}",
        "--save_every_n_steps=7",
        "--test_after_fit=false",
        *MIXING.get(regime, []),
    ]


def command_lines(regime: str, folder: Path, workers: int) -> list[tuple[list[str], int | None]]:
    """Return those of a whole run without workers, then of a run with them, which is killed twice and resumed.

    Each comes with the step in which it is killed.
    """
    resume = ["fit", f"--resume={folder / 'resumed' / f'digits_{regime}' / 'version_0'}"]
    return [
        (arguments(regime, folder / "whole", 0), None),
        (arguments(regime, folder / "resumed", workers), 11),
        (resume, 31),
        ([*resume, "--trainer.callbacks=null"], None),  # the saved config names the callback that kills
    ]


@pytest.fixture(scope="module", params=[0, pytest.param(2, marks=pytest.mark.slow)], ids=lambda n: f"{n}_workers")
def ended(request, tmp_path_factory):
    """Folders by regime, with the exit statuses of their command lines; two regimes are run at a time."""
    folders = {regime: tmp_path_factory.mktemp(regime) for regime in REGIMES}
    runs = [
        (command_lines(regime, folder, request.param), folder / "statuses.json") for regime, folder in folders.items()
    ]
    run_groups(*((1, run_in_turn, *half) for half in (runs[::2], runs[1::2])))
    return folders


@needs_fork
@pytest.mark.parametrize("regime", REGIMES)
def test_killed_and_resumed_equals_uninterrupted(regime, ended):
    """Killed in step 11 (last.ckpt: step 7, within epoch 0) and in step 31 (step 28, within epoch 1)."""
    folder, killed = ended[regime], -signal.SIGKILL
    assert json.loads((folder / "statuses.json").read_text()) == [0, killed, killed, 0]
    expected = last_checkpoint(folder / "whole", regime)
    assert expected["global_step"] == 40
    found = last_checkpoint(folder / "resumed", regime)
    assert found["global_step"] == 40
    for key, tensor in expected["state_dict"].items():
        assert torch.equal(tensor, found["state_dict"][key]), key
    assert equal(expected["optimizer_states"], found["optimizer_states"])
    assert equal(expected.get("center_optimizer_state"), found.get("center_optimizer_state"))
    assert expected["lr_schedulers"] == found["lr_schedulers"]


def last_checkpoint(runs: Path, regime: str) -> dict:
    """Return the last checkpoint of a regime's run."""
    return torch.load(runs / f"digits_{regime}" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)


def equal(a: object, b: object) -> bool:
    """Return whether nested states are the same, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
