from __future__ import annotations

from collections import Counter
from typing import Any

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


# Batches of M images of each of P classes.

MANY = torch.tensor([label for label in range(23) for _ in range(1 + label % 9)])  # 1 to 9 images per class


def class_batches(world: int, epoch: int, per_class: int = 4, **options: int) -> list[list[int]]:
    """The global batches of 24 images of an epoch."""
    parts = []
    for rank in range(world):
        sampler = TrainSampler(MANY, 24 // world, per_class=per_class, num_replicas=world, rank=rank, **options)
        sampler.set_epoch(epoch)
        items = list(sampler)
        assert len(items) == len(sampler)
        assert len(set(items)) == len(items)
        parts.append([index for index, _ in items])
    assert len({len(part) for part in parts}) == 1
    size = 24 // world
    steps = range(0, len(parts[0]), size)
    return [sorted(index for part in parts for index in part[step : step + size]) for step in steps]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_batch_holds_as_many_images_of_each_of_its_classes(world: int) -> None:
    for epoch in range(5):
        batches = class_batches(world, epoch)
        assert batches == class_batches(1, epoch)
        assert len(batches) == len(MANY) // 24
        for batch in batches:
            by_class = Counter(MANY[batch].tolist())
            assert len(by_class) == 6
            assert set(by_class.values()) == {4}
            for label in by_class:
                often = Counter(index for index in batch if MANY[index] == label)
                members = int((label == MANY).sum())
                counts = [*often.values(), *([0] * (members - len(often)))]
                assert max(counts) - min(counts) <= 1  # four images if there are four


@pytest.mark.parametrize("per_class", [4, 12])
def test_no_class_is_left_out_over_epochs(per_class: int) -> None:
    """In a round of as few batches as can hold all classes each comes, at most twice; an epoch may be shorter."""
    batches = [batch for epoch in range(12) for batch in class_batches(1, epoch, per_class)]
    of_batch = 24 // per_class
    in_round = -(-23 // of_batch)
    assert len(batches) >= 4 * in_round
    rounds = set()
    for start in range(0, len(batches) - in_round + 1, in_round):
        classes = [tuple(sorted(set(MANY[batch].tolist()))) for batch in batches[start : start + in_round]]
        often = Counter(label for batch in classes for label in batch)
        assert sum(often.values()) == of_batch * in_round
        assert set(often) == set(range(23))
        assert max(often.values()) <= 2
        rounds.add(tuple(classes))
    assert len(rounds) >= 4  # each one shuffled again


def test_images_of_a_class_come_equally_often_in_an_epoch() -> None:
    indices = [index for batch in class_batches(1, 0, repeat=10) for index in batch]
    assert len(indices) == len(MANY) * 10 // 24 * 24
    often = torch.bincount(torch.tensor(indices), minlength=len(MANY))
    for label in range(23):
        counts = often[label == MANY]
        assert counts.max() - counts.min() <= 1
    classes = torch.bincount(MANY[indices], minlength=23) // 4
    assert classes.max() - classes.min() <= 5


def test_class_batches_depend_on_seed_and_epoch_alone() -> None:
    orders = {(seed, epoch): str(class_batches(1, epoch, seed=seed)) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(set(orders.values())) == 6
    torch.manual_seed(5)
    assert str(class_batches(1, 2, seed=1)) == orders[1, 2]


def test_a_part_smaller_than_a_batch_gives_one_of_classes() -> None:
    labels = torch.arange(12) // 2
    indices = [index for index, _ in TrainSampler(labels, 16, per_class=4)]
    assert sorted(Counter(labels[indices].tolist()).values()) == [4] * 4
    assert set(Counter(indices).values()) == {2}


@pytest.mark.parametrize(
    ("batch_size", "world", "per_class"), [(10, 1, 4), (5, 2, 4), (8, 1, 8), (96, 1, 4), (48, 2, 4)]
)
def test_impossible_class_batches_are_refused(batch_size: int, world: int, per_class: int) -> None:
    message = (
        f"samples_per_class_in_batch is {per_class} and batch_size {batch_size} x {world} processes: .* the 23 that"
    )
    with pytest.raises(UserError, match=message):
        TrainSampler(MANY, batch_size, per_class=per_class, num_replicas=world, rank=0)


@pytest.mark.parametrize("options", [{}, {"per_class": 2}, {"balanced": True}])
def test_resume_inside_an_epoch(options: dict[str, Any]) -> None:
    whole = TrainSampler(LABELS, 6, **options)
    whole.set_epoch(2)
    resumed = TrainSampler(LABELS, 6, **options)
    resumed.resume(lambda: (2, 3))
    assert list(resumed) == list(whole)[18:]
    whole.set_epoch(3)
    resumed.set_epoch(3)
    assert list(resumed) == list(whole)
