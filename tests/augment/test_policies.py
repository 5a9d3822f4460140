"""Draws of the policies against the published probabilities, and what the draws do to images."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from metricloss_pl.augment import AutoAugment, RandAugment, TrivialAugment
from metricloss_pl.augment.keys import image_keys
from metricloss_pl.augment.operations import Operation
from tests.augment import peer
from tests.augment.images import batch

SIZE = (28, 40)
Policy = RandAugment | TrivialAugment | AutoAugment
Published = Callable[[int, int], dict[tuple[peer.Choice, ...], float]]


@pytest.mark.parametrize(
    ("policy", "published"),
    [
        (RandAugment(1, 9), functools.partial(peer.randaugment, 9)),
        (RandAugment(1, 30), functools.partial(peer.randaugment, 30)),
        (TrivialAugment(), peer.trivialaugment),
        (AutoAugment(), peer.autoaugment),
    ],
    ids=["RandAugment", "RandAugment, strongest", "TrivialAugment", "AutoAugment"],
)
def test_choices_are_as_frequent_as_published(policy: Policy, published: Published) -> None:
    count, chances = 50_000, published(*SIZE)
    operations, strengths = policy.draw(image_keys(1, [0] * count, range(count)), *SIZE)
    drawn = Counter(
        tuple(map(peer.choice, *image)) for image in zip(operations.tolist(), strengths.tolist(), strict=True)
    )
    assert set(drawn) <= set(chances)
    assert sum(chances.values()) == pytest.approx(1)
    observed, expected = [drawn[choice] for choice in chances], [count * chance for chance in chances.values()]
    assert chisquare(observed, expected).pvalue > 1e-4


def test_operations_of_an_image_are_independent() -> None:
    operations, strengths = RandAugment(2).draw(image_keys(1, [0] * 20_000, range(20_000)), 32, 32)
    pairs = Counter(map(tuple, operations.tolist()))
    assert len(pairs) == 14**2
    assert chisquare(list(pairs.values())).pvalue > 1e-4
    signed = strengths[((operations >= Operation.SHEAR_X) & (operations <= Operation.CONTRAST)).all(1)]
    assert chisquare(list(Counter(map(tuple, signed.sign().tolist())).values())).pvalue > 1e-4


@pytest.mark.parametrize("policy", [RandAugment(), RandAugment(3, 30), TrivialAugment(), AutoAugment()], ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_changed_by_the_drawn_operations_in_turn(policy: Policy, channels: int, keys: Tensor) -> None:
    images = batch(channels=channels)
    operations, strengths = policy.draw(keys, *images.shape[2:])
    expected = []
    for image, *choices in zip(images, operations.tolist(), strengths.tolist(), strict=True):
        for operation, strength in zip(*choices, strict=True):
            image = peer.change(image, operation, strength)
        expected.append(image)
    difference = (policy(images, keys).int() - torch.stack(expected).int()).abs()
    assert (difference > 1).double().mean() < 1e-3  # a later operation may enlarge a difference of one level


def test_no_operations_leave_images_as_they_are(keys: Tensor) -> None:
    assert torch.equal(RandAugment(num_ops=0)(batch(), keys), batch())
