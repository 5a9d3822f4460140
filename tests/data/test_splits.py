from __future__ import annotations

import numpy as np
import pytest
import torch

from metricloss_pl.data.splits import choose_per_class, split_off
from metricloss_pl.errors import UserError


def labels_of(*counts: int) -> torch.Tensor:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def test_choose_per_class() -> None:
    labels = labels_of(5, 9, 7)
    chosen = choose_per_class(labels, 5, 0, ["a", "b", "c"])
    assert torch.bincount(labels[chosen]).tolist() == [5, 5, 5]
    assert (np.diff(chosen) > 0).all()
    assert np.array_equal(chosen, choose_per_class(labels, 5, 0, ["a", "b", "c"]))
    assert not np.array_equal(chosen, choose_per_class(labels, 5, 1, ["a", "b", "c"]))


def test_choose_per_class_names_the_class_that_has_fewer() -> None:
    with pytest.raises(UserError, match=r"'b' \(label 1\) has 4 images"):
        choose_per_class(labels_of(5, 4), 5, 0, ["a", "b"])
    with pytest.raises(UserError, match="'c'"):
        choose_per_class(labels_of(5, 5), 5, 0, ["a", "b", "c"])


def test_split_is_a_partition_with_each_class_within_one_of_its_share() -> None:
    counts = np.array([33, 47, 8, 120, 4, 1, 2])
    labels = labels_of(*counts.tolist())
    for seed in range(20):
        rest, cut = split_off(labels, 0.15, seed)
        assert np.array_equal(np.sort(np.concatenate([rest, cut])), np.arange(counts.sum()))
        assert len(cut) == round(0.15 * counts.sum())
        got = np.bincount(labels[cut], minlength=7)
        assert (abs(got - 0.15 * counts) < 1).all()
        assert (np.bincount(labels[rest], minlength=7) >= 1).all()


def test_exact_shares_are_exact() -> None:
    for fraction, want in ((0.1, 3), (0.4, 12), (0.7, 21), (1 / 3, 10)):
        labels = labels_of(30, 30, 30)
        _, cut = split_off(labels, fraction, 0)
        assert np.bincount(labels[cut]).tolist() == [want] * 3


def test_every_class_keeps_an_image() -> None:
    labels = labels_of(1, 2, 3, 50)
    rest, cut = split_off(labels, 0.95, 0)
    assert (np.bincount(labels[rest]) >= 1).all()
    assert 0 not in labels[cut]
    for equal in (False, True):
        rest, cut = split_off(labels_of(1, 1), 0.5, 0, equal=equal)
        assert len(rest) == 2
        assert len(cut) == 0


def test_equal_classes_stay_equal() -> None:
    labels = labels_of(*[25] * 8)
    _, cut = split_off(labels, 0.1, 0, equal=True)
    assert np.bincount(labels[cut]).tolist() == [3] * 8
    _, cut = split_off(labels, 0.1, 0)
    assert sorted(np.bincount(labels[cut]).tolist()) == [2] * 4 + [3] * 4


def test_a_split_depends_on_its_seed_alone() -> None:
    labels = labels_of(30, 40, 50)
    np.random.seed(0)  # noqa: NPY002 - the global state must not matter
    first = split_off(labels, 0.2, 7)[1]
    np.random.seed(1)  # noqa: NPY002
    assert np.array_equal(first, split_off(labels, 0.2, 7)[1])
    assert not np.array_equal(first, split_off(labels, 0.2, 8)[1])
    # Written down, so that another machine or version that draws differently is noticed.
    assert split_off(torch.tensor([0] * 6 + [1] * 6), 0.5, 0)[1].tolist() == PINNED


PINNED = [2, 3, 5, 7, 10, 11]


def test_groups_are_never_torn() -> None:
    generator = np.random.default_rng(0)
    groups = torch.from_numpy(generator.integers(0, 60, 400))
    labels = torch.from_numpy(generator.integers(0, 4, 400))
    shares = []
    for seed in range(10):
        rest, cut = split_off(labels, 0.25, seed, groups=groups)
        assert not set(groups[rest].tolist()) & set(groups[cut].tolist())
        assert len(rest) + len(cut) == 400
        counts = np.bincount(labels[cut], minlength=4) / np.bincount(labels)
        assert (abs(counts - 0.25) < 0.06).all()
        shares.append(tuple(cut.tolist()))
    assert len(set(shares)) == 10


def test_groups_leave_every_class_an_image() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    groups = torch.tensor([9, 9, 9, 1, 2, 3, 4, 5, 6, 7])
    rest, cut = split_off(labels, 0.8, 0, groups=groups)
    assert set(labels[rest].tolist()) == {0, 1}
    assert len(cut) > 0
