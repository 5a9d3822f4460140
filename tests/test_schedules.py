import math

import pytest
import torch

from metricloss_pl.schedules import CosineDecay


def rates(steps, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = CosineDecay(optimizer, **options)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_half_a_cosine():
    expected = [2 * (0.1 + 0.9 * (1 + math.cos(math.pi * t / 10)) / 2) for t in range(10)]
    assert rates(10, length=10, final=0.1) == pytest.approx(expected)
    assert rates(13, length=10)[10:] == pytest.approx([0, 0, 0])


def test_warm_up_is_linear_and_the_cosine_follows():
    seen = rates(10, length=10, warmup=0.4)
    assert seen[:5] == pytest.approx([2 * (0.01 + 0.99 * t / 4) for t in range(5)])
    assert seen[4:] == pytest.approx([1 + math.cos(math.pi * t / 6) for t in range(6)])


def test_a_resumed_schedule_takes_the_new_length():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = CosineDecay(optimizer, length=20)
    scheduler.load_state_dict(CosineDecay(optimizer, length=10).state_dict())
    assert scheduler.length == 20


@pytest.mark.parametrize(
    ("options", "message"), [({"warmup": 1.0}, "warmup"), ({"final": 2}, "final"), ({"length": 0}, "length")]
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=f"{message} is"):
        rates(1, **options)
