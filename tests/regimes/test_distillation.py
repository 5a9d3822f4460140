"""Distillation: the loss in closed form, and trained teachers on the command line."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import metricloss_pl
from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.cli import main
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import (
    CenterSoftmaxClassifier,
    Classifier,
    CosineClassifier,
    Distillation,
    SoftmaxClassifier,
    StandaloneCenterClassifier,
)
from tests.callbacks import runs
from tests.command_line import QUIET, SMALL, best, fit, load, refusal, result


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the checkpoints of two networks for the digits, of different regimes."""
    folder = tmp_path_factory.mktemp("teachers")
    trained = [fit(config, folder, *SMALL) for config in ("digits_softmax", "digits_cosine")]
    return [str(run / "checkpoints" / "last.ckpt") for run in trained]


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.3, 2.5)])
def test_the_loss_in_closed_form(teachers: list[str], weight: float, temperature: float) -> None:
    distillation = Distillation(teachers, weight, temperature)
    networks = [metricloss_pl.load(path) for path in teachers]
    images, scores = torch.rand(5, 1, 8, 8), torch.randn(5, 10, requires_grad=True)
    losses = {"loss": torch.tensor(3.0), "part": torch.tensor(2.0)}
    distillation.load(networks[0])
    found = distillation(losses, images, scores)
    divergence = 0.0
    for i in range(5):
        p = torch.zeros(10, dtype=torch.float64)
        for network in networks:
            powers = (network(images)[i].detach().double() / network.temperature / temperature).exp()
            p += powers / powers.sum() / 2
        powers = (scores[i].detach().double() / temperature).exp()
        divergence += float((p * (p / (powers / powers.sum())).log()).sum()) / 5 * temperature**2
    assert found["distillation"].item() == pytest.approx(divergence, rel=1e-4)
    assert found["loss"].item() == pytest.approx((1 - weight) * 3.0 + weight * divergence, rel=1e-4)
    assert found["part"] == 2.0
    (gradient,) = torch.autograd.grad(found["loss"], scores)
    q = (scores / temperature).softmax(1).detach()
    assert torch.allclose(gradient, weight * temperature * (q - distillation.probabilities(images)) / 5)


@pytest.mark.parametrize(
    "regime", [SoftmaxClassifier, CosineClassifier, CenterSoftmaxClassifier, StandaloneCenterClassifier]
)
def test_a_step_trains_on_the_teachers_and_leaves_no_trace_in_batch_norms(
    regime: type[Classifier], teachers: list[str], tmp_path: Path
) -> None:
    """Distillation needs the class scores, for the cosine regime a second pass through the head and its batch norm."""
    logged, states = [], []
    options = {"ce_weight": 0.5} if regime is CosineClassifier else {}
    for distillation in (None, Distillation(teachers)):
        torch.manual_seed(0)
        backbone, names = TinyConvNet(width=4), [str(digit) for digit in range(10)]
        model = regime(10, backbone, names, embedding_dim=10, distillation=distillation, **options)
        logged.append(runs.fit(tmp_path, model=model, max_steps=1, log_every_n_steps=1).logged_metrics)
        states.append({name: value for name, value in model.state_dict().items() if "running" in name})
    assert logged[1]["train/loss"] == logged[1]["train/distillation"] != logged[0]["train/loss"]
    assert any("criterion" in name for name in states[0]) == (regime is CosineClassifier)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name])


def test_a_loss_that_is_not_finite_does_not_reach_the_distillation(teachers: list[str]) -> None:
    """As that of a standalone center at its start may be."""
    student = metricloss_pl.load(teachers[0])
    distillation = Distillation(teachers)
    distillation.load(student)
    found = distillation({"loss": torch.tensor(torch.inf)}, torch.rand(5, 1, 8, 8), torch.randn(5, 10))
    assert found["loss"].isfinite()


def test_teachers_are_no_part_of_the_network(teachers: list[str]) -> None:
    distillation = Distillation(teachers)
    distillation.load(metricloss_pl.load(teachers[0]))
    assert not list(distillation.state_dict())
    assert copy.deepcopy(distillation) is distillation


def test_a_checkpoint_does_without_the_teachers(teachers: list[str], tmp_path: Path) -> None:
    copies = [tmp_path / f"{number}.ckpt" for number in range(2)]
    for path, teacher in zip(copies, teachers, strict=True):
        path.write_bytes(Path(teacher).read_bytes())
    flags = ["--model.distillation=Distillation", f"--model.distillation.teachers={[str(path) for path in copies]}"]
    run = fit("digits_cosine", tmp_path / "runs", *SMALL, *flags)
    saved = load(run / "checkpoints" / "best.ckpt")
    assert saved["hyper_parameters"]["distillation"]["init_args"]["teachers"] == [str(path) for path in copies]
    for path in copies:
        path.unlink()
    main(["test", best(run), *QUIET])
    assert "test/accuracy" in result(run, "test")["metrics"]
    assert len(metricloss_pl.load(run / "checkpoints" / "best.ckpt").predict(torch.rand(1, 8, 8)).classes) == 1


def test_a_missing_teacher_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model.distillation=Distillation", "--model.distillation.teachers=[nowhere.ckpt]"]
    line = refusal(capsys, "fit", "--config=digits_softmax.yaml", f"--runs_dir={tmp_path / 'runs'}", *SMALL, *flags)
    assert "nowhere.ckpt" in line
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_teacher_of_other_images_is_refused(teachers: list[str]) -> None:
    student = metricloss_pl.load(teachers[0])
    student.image_format = {**student.image_format, "image_size": 16}
    with pytest.raises(UserError, match=r"image_size of the teacher .* 16"):
        Distillation(teachers).load(student)
    student.class_names = ["zero", *student.class_names[1:]]
    with pytest.raises(UserError, match="'zero'"):
        Distillation(teachers).load(student)


@pytest.mark.parametrize(("seed", "lines"), [(0, 0), (1, 2)])
def test_teachers_of_another_split_are_named(
    seed: int, lines: int, teachers: list[str], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    flags = ["--model.distillation=Distillation", f"--model.distillation.teachers={teachers}", f"--data.seed={seed}"]
    fit("digits_softmax", tmp_path / "runs", *SMALL, *flags)
    named = [str(warning.message) for warning in recwarn if "another split" in str(warning.message)]
    assert len(named) == lines
    assert all(path in line for path, line in zip(teachers, named, strict=False))


@pytest.mark.parametrize(
    "arguments",
    [{"teachers": []}, {"weight": 0.0}, {"weight": 1.5}, {"temperature": 0.0}, {"temperature": float("nan")}],
)
def test_values_out_of_range(arguments: dict) -> None:
    with pytest.raises(UserError):
        Distillation(**{"teachers": ["a.ckpt"], **arguments})
