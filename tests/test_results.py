"""Operations of trainings, as the scripts in `results` count them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.command_line import SMALL, fit, result

ROOT = Path(__file__).parent.parent


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "results"), *sys.path])
    from runs import operations

    return operations


def test_operations_of_a_network_and_its_teachers(operations, tmp_path: Path) -> None:
    """Each convolution and linear layer once forward and twice backward, the first layer without that of its input."""
    teacher = fit("digits_softmax", tmp_path, *SMALL)
    side, width = 8, 32
    multiplications = [
        side**2 * 1 * width * 9,
        side**2 * width * width * 9,
        (side // 2) ** 2 * width * 2 * width * 9,
        (side // 4) ** 2 * 2 * width * 2 * width * 9,
        2 * width * 32,
        32 * 10,
    ]
    forward = 2 * sum(multiplications)
    of_a_step = 3 * forward - 2 * multiplications[0]
    images = result(teacher)["steps"] * 16
    assert operations(teacher, side) == of_a_step * images
    path = teacher / "checkpoints" / "last.ckpt"
    flags = ["--model.distillation=Distillation", f"--model.distillation.teachers=[{path}]"]
    student = fit("digits_softmax", tmp_path, *SMALL, *flags)
    scores_again = 2 * multiplications[-1]  # for the teachers' targets, beside those of the loss
    assert operations(student, side) == (of_a_step + of_a_step + scores_again + forward) * images
