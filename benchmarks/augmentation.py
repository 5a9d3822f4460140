"""Policies on batches of 128 color images, against torchvision's on uint8 tensors image by image, on one core.

Every turn draws other operations. The lines also state microseconds per image.
"""

from __future__ import annotations

import itertools

import torch
from _measure import Step, interleaved, quick_asked, report_ratio
from torch import nn
from torchvision.transforms import v2

from metricloss_pl.augment import Augmentation, AutoAugment, RandAugment, TrivialAugment
from metricloss_pl.augment.keys import image_keys

SUBJECT = "augmentation of a batch"
BATCH_SIZE = 128
GOAL = 5.0  # at 32 px
POLICIES: tuple[tuple[Augmentation, nn.Module, float], ...] = (  # ours, torchvision's, goal in microseconds at 32 px
    (TrivialAugment(), v2.TrivialAugmentWide(), 25.0),
    (RandAugment(), v2.RandAugment(), 45.0),
    (AutoAugment(), v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), 45.0),
)


def whole_batches(policy: Augmentation, images: torch.Tensor) -> Step:
    epochs = itertools.cycle([image_keys(0, [epoch] * len(images), range(len(images))) for epoch in range(100)])
    return lambda: policy(images, next(epochs))


def image_by_image(policy: nn.Module, images: torch.Tensor) -> Step:
    return lambda: [policy(image) for image in images]


def compare_at(side: int, batch_size: int, quick: bool) -> None:
    """Print a line for each policy at this side in px."""
    torch.manual_seed(0)
    images = torch.randint(256, (batch_size, 3, side, side), dtype=torch.uint8)
    for policy, peer, goal_us in POLICIES:
        steps = whole_batches(policy, images), image_by_image(peer, images)
        seconds, turns = interleaved(*steps, quick=quick)
        goals = {"goal": GOAL, "goal_us_per_image": goal_us} if side == 32 else {}
        report_ratio(
            SUBJECT,
            (f"{policy}, {side} px", seconds[0]),
            (f"torchvision's {type(peer).__name__}, image by image", seconds[1]),
            us_per_image=[round(1e6 * each / batch_size, 1) for each in seconds],
            image_shape=list(images.shape[1:]),
            batch_size=batch_size,
            repetitions=turns,
            **goals,
        )


if __name__ == "__main__":
    quick = quick_asked(__doc__)
    torch.set_num_threads(1)
    for side in (32, 96):
        compare_at(side, 8 if quick else BATCH_SIZE, quick)
