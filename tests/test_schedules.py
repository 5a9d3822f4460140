import math

import pytest
import torch

from metricloss_pl.schedules import CosineDecay, StepDecay, WarmRestarts


def rates(steps, schedule=CosineDecay, lr=2.0, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = schedule(optimizer, **options)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_cosine_decay():
    expected = [2 * (0.1 + 0.9 * (1 + math.cos(math.pi * t / 10)) / 2) for t in range(10)]
    assert rates(10, length=10, final=0.1) == pytest.approx(expected)
    assert rates(13, length=10)[10:] == pytest.approx([0, 0, 0])


def test_linear_warm_up():
    seen = rates(10, length=10, warmup=0.4)
    assert seen[:5] == pytest.approx([2 * (0.01 + 0.99 * t / 4) for t in range(5)])
    assert seen[4:] == pytest.approx([1 + math.cos(math.pi * t / 6) for t in range(6)])


def test_resumed_schedule_has_the_new_length():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = CosineDecay(optimizer, length=20)
    scheduler.load_state_dict(CosineDecay(optimizer, length=10).state_dict())
    assert scheduler.length == 20


@pytest.mark.parametrize("epochs", [90, 180, 100])
def test_step_decay_equals_multi_step(epochs):
    thirds = [round(epochs / 3), round(2 * epochs / 3)]
    expected = rates(epochs, torch.optim.lr_scheduler.MultiStepLR, milestones=thirds)
    assert rates(epochs, StepDecay, length=epochs) == pytest.approx(expected)


def test_step_decay_at_other_shares():
    assert rates(10, StepDecay, length=10, milestones=(0.4, 0.8), gamma=0.5) == pytest.approx(
        [2] * 4 + [1] * 4 + [0.5] * 2
    )
    assert rates(2, StepDecay, length=1) == pytest.approx([2, 0.02])  # not before the first step
    assert rates(3, StepDecay) == [2] * 3  # before the length is known


def test_warm_restarts_equal_the_authors():
    """Learning rates of their code with a maximum of 0.5."""
    first = [0.5, 0.46651, 0.42678, 0.375, 0.31471, 0.25, 0.1853, 0.125, 0.07322, 0.03349, 0.00852, 1e-6]
    seen = rates(372, WarmRestarts, lr=0.5)
    assert [round(rate, 5) for rate in seen[:11]] == first[:11]
    cycles = [12 * 2**cycle for cycle in range(5)]
    starts = [sum(cycles[:cycle]) for cycle in range(5)]
    assert starts == [0, 12, 36, 84, 180]
    for start, length in zip(starts, cycles, strict=True):
        later = [1e-6 + (0.5 - 1e-6) * (1 + math.cos(math.pi * (t + 1) / length)) / 2 for t in range(1, length)]
        assert seen[start : start + length] == pytest.approx([0.5, *later])
        assert seen[start + length - 1] == pytest.approx(1e-6)


def test_warm_restarts_without_minimum_equal_torch():
    options = {"T_0": 4, "T_mult": 3, "eta_min": 0.1}
    expected = rates(60, torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, **options)
    assert rates(60, WarmRestarts, reach_minimum=False, **options) == pytest.approx(expected)
    assert rates(60, WarmRestarts, **options) != pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (CosineDecay, {"warmup": 1.0}, "warmup is"),
        (CosineDecay, {"final": 2}, "final is"),
        (CosineDecay, {"length": 0}, "length is"),
        (StepDecay, {"milestones": (0.5, 1.0)}, "milestones are"),
        (StepDecay, {"gamma": 0}, "gamma is"),
        (WarmRestarts, {"T_0": 0}, "T_0"),
    ],
)
def test_errors(schedule, options, message):
    with pytest.raises(ValueError, match=message):
        rates(1, schedule, **options)
