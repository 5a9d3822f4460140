"""A run killed within an epoch and resumed ends, bit for bit, as one that was never interrupted."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
REGIMES = ("softmax", "cosine", "center", "standalone")

# Chance within the training step; the center regimes take no mixing.
MIXING = {
    "softmax": ["--model.mixing=MixUp", "--model.mixing.alpha=0.5"],
    "cosine": ["--model.mixing=CutMix", "--model.mixing.probability=0.8"],
}

# In one fresh interpreter for all: it imports once, and its forks start without threads of torch.
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tests.interrupted_fit import in_a_process_of_its_own
print(json.dumps([in_a_process_of_its_own(*run) for run in json.loads(sys.argv[2])]))
"""


def statuses(*runs: tuple) -> list[int]:
    """Exit statuses of command lines, one after the other."""
    command = [sys.executable, "-c", PROGRAM, str(ROOT), json.dumps(runs)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def arguments(regime: str, runs: Path, workers: int) -> list[str]:
    """Three epochs of 20 steps, with dropout, augmentation, mixing and a last.ckpt every 7 steps."""
    return [
        "fit",
        f"--config={ROOT / 'configs' / f'digits_{regime}.yaml'}",
        f"--runs_dir={runs}",
        "--trainer.callbacks=null",
        "--trainer.max_epochs=3",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--model.backbone.dropout=0.2",
        f"--data.num_workers={workers}",
        "--save_every_n_steps=7",
        "--test_after_fit=false",
        *MIXING.get(regime, []),
    ]


@pytest.mark.parametrize("regime", REGIMES)
def test_killed_and_resumed_equals_uninterrupted(regime, tmp_path):
    """Killed in step 31 (last.ckpt: step 28, within epoch 1), with 0 and with 2 workers; then again in step 45."""
    whole = (arguments(regime, tmp_path / "whole", 0),)
    runs = [whole]
    for workers in (0, 2):
        args = arguments(regime, tmp_path / str(workers), workers)
        resume = ["fit", f"--resume={tmp_path / str(workers) / f'digits_{regime}' / 'version_0'}"]
        runs += [(args, 31), (resume, 45), (resume,)]
    # A run's config names the callback that killed it; the list is given anew.
    runs = [(run[0] if len(run) == 2 else [*run[0], "--trainer.callbacks=null"], *run[1:]) for run in runs]
    killed = -signal.SIGKILL
    assert statuses(*runs) == [0, killed, killed, 0, killed, killed, 0]
    expected = last_checkpoint(tmp_path / "whole", regime)
    assert expected["global_step"] == 60
    for workers in (0, 2):
        found = last_checkpoint(tmp_path / str(workers), regime)
        assert found["global_step"] == 60
        for key, tensor in expected["state_dict"].items():
            assert torch.equal(tensor, found["state_dict"][key]), (workers, key)
        assert equal(expected["optimizer_states"], found["optimizer_states"])
        assert equal(expected.get("center_optimizer_state"), found.get("center_optimizer_state"))
        assert expected["lr_schedulers"] == found["lr_schedulers"]


def last_checkpoint(runs: Path, regime: str) -> dict:
    """The end of a run."""
    return torch.load(runs / f"digits_{regime}" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)


def equal(a: object, b: object) -> bool:
    """Whether nested states are the same, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
