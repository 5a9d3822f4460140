from __future__ import annotations

from collections import Counter

import pytest
import torch

from metricloss_pl.data.sampler import EvaluationSampler, TrainSampler
from metricloss_pl.errors import UserError

LABELS = torch.tensor([0] * 50 + [1] * 30 + [2] * 7)


def order(world: int, batch_size: int, epoch: int = 0, seed: int = 0, balanced: bool = False) -> list[list[int]]:
    """Per process, the indices of an epoch."""
    result = []
    for rank in range(world):
        sampler = TrainSampler(LABELS, batch_size, seed=seed, balanced=balanced, num_replicas=world, rank=rank)
        sampler.set_epoch(epoch)
        result.append([index for index, _ in sampler])
        assert len(result[-1]) == len(sampler)
    return result


@pytest.mark.parametrize(("num_images", "world"), [(21, 1), (21, 2), (21, 4), (3, 4), (16, 2)])
def test_evaluation_sees_each_image_once(num_images: int, world: int) -> None:
    seen = []
    for rank in range(world):
        sampler = EvaluationSampler(num_images, num_replicas=world, rank=rank)
        own = list(sampler)
        assert len(own) == len(sampler)
        assert own == sorted(own)
        seen += own
    assert sorted(seen) == list(range(num_images))


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(("world", "batch_size"), [(1, 10), (2, 10), (3, 5), (4, 10)])
def test_training_drops_the_incomplete_global_batch(world: int, batch_size: int, balanced: bool) -> None:
    steps = 87 // (world * batch_size)
    parts = order(world, batch_size, balanced=balanced)
    assert [len(part) for part in parts] == [steps * batch_size] * world
    if not balanced:
        seen = [index for part in parts for index in part]
        assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("balanced", [False, True])
def test_global_batches_do_not_depend_on_the_number_of_processes(balanced: bool) -> None:
    alone = order(1, 24, balanced=balanced)[0]
    for world in (2, 3, 4):
        parts = order(world, 24 // world, balanced=balanced)
        size = 24 // world
        for step in range(3):
            together = sorted(index for part in parts for index in part[step * size : (step + 1) * size])
            assert together == sorted(alone[step * 24 : (step + 1) * 24])


def test_a_small_part_is_one_smaller_batch() -> None:
    labels = torch.zeros(7, dtype=torch.int64)
    assert sorted(index for index, _ in TrainSampler(labels, 64)) == list(range(7))
    assert [len(TrainSampler(labels, 64, num_replicas=2, rank=rank)) for rank in (0, 1)] == [3, 3]
    with pytest.raises(UserError, match=r"7 training images .* 8 processes"):
        TrainSampler(labels, 64, num_replicas=8, rank=0)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {(seed, epoch): tuple(order(1, 8, epoch, seed)[0]) for seed in (0, 1) for epoch in (0, 1)}
    assert len(set(orders.values())) == 4
    torch.manual_seed(5)
    assert tuple(order(1, 8, 1, 1)[0]) == orders[1, 1]


def test_balanced_classes_and_images_come_equally_often() -> None:
    indices = order(1, 10, balanced=True)[0]
    assert len(indices) == 80
    classes = LABELS[indices].tolist()
    assert max(Counter(classes).values()) - min(Counter(classes).values()) <= 1
    for start in range(0, 78, 3):
        assert sorted(classes[start : start + 3]) == [0, 1, 2]
    for label in range(3):
        often = Counter(index for index in indices if LABELS[index] == label)
        members = int((label == LABELS).sum())
        counts = [*often.values(), *([0] * (members - len(often)))]
        assert max(counts) - min(counts) <= 1


def test_items_carry_the_epoch_and_repetitions() -> None:
    sampler = TrainSampler(LABELS, 8)
    sampler.set_epoch(3)
    assert {draw for _, draw in sampler} == {3}
    balanced = TrainSampler(LABELS, 8, balanced=True)
    balanced.set_epoch(3)
    items = list(balanced)
    assert len(set(items)) == len(items)
    for index in {index for index, _ in items}:
        draws = [draw for other, draw in items if other == index]
        assert draws == [3 + (times << 32) for times in range(len(draws))]


@pytest.mark.parametrize(("world", "batch_size"), [(1, 9), (3, 3)])
def test_repeated_images_come_equally_often_and_as_new_draws(world: int, batch_size: int) -> None:
    items = []
    for rank in range(world):
        sampler = TrainSampler(LABELS, batch_size, repeat=3, num_replicas=world, rank=rank)
        sampler.set_epoch(2)
        items += list(sampler)
    assert len(items) == 3 * 87
    assert len(set(items)) == len(items)
    for index in range(87):
        assert sorted(draw for other, draw in items if other == index) == [2, 2 + (1 << 32), 2 + (2 << 32)]
    first = [index for index, _ in TrainSampler(LABELS, 87, repeat=3)][:87]
    assert 40 < len(set(first)) < 70  # shuffled over the whole epoch: 87 of 3 x 87 cards show some 61 faces


def test_a_repeated_small_part_fills_its_batches() -> None:
    labels = torch.zeros(5, dtype=torch.int64)
    assert Counter(index for index, _ in TrainSampler(labels, 10, repeat=4)) == dict.fromkeys(range(5), 4)
    assert len(TrainSampler(labels, 8, repeat=4)) == 16
    balanced = Counter(index for index, _ in TrainSampler(labels, 10, repeat=4, balanced=True))
    assert balanced == dict.fromkeys(range(5), 4)


def test_resume_inside_an_epoch() -> None:
    whole = TrainSampler(LABELS, 8)
    whole.set_epoch(2)
    resumed = TrainSampler(LABELS, 8)
    resumed.resume(lambda: (2, 3))
    assert list(resumed) == list(whole)[24:]
    whole.set_epoch(3)
    resumed.set_epoch(3)
    assert list(resumed) == list(whole)
