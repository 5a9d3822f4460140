"""Operations by torchvision, image by image, and the choices of each policy as published."""

from __future__ import annotations

import math

import pytest
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from metricloss_pl.augment.operations import Operation

BINS = {"RandAugment": 31, "TrivialAugment": 31, "AutoAugment": 10}
_BLENDS = (Operation.COLOR, Operation.SHARPNESS, Operation.BRIGHTNESS, Operation.CONTRAST)

Choice = tuple[int, float]  # operation and strength, rounded


def change(image: Tensor, operation: int, strength: float) -> Tensor:
    """Apply an operation to an image (C, H, W); its center is that of the top left pixel for shears."""
    angle = math.degrees(math.atan(strength))
    affine = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    top = 1.0 if image.is_floating_point() else 255
    match Operation(operation):
        case Operation.IDENTITY:
            return image
        case Operation.SHEAR_X:
            return F.affine(image, **{**affine, "shear": [angle, 0.0]}, center=[0, 0])
        case Operation.SHEAR_Y:
            return F.affine(image, **{**affine, "shear": [0.0, angle]}, center=[0, 0])
        case Operation.TRANSLATE_X:
            return F.affine(image, **{**affine, "translate": [int(strength), 0]})
        case Operation.TRANSLATE_Y:
            return F.affine(image, **{**affine, "translate": [0, int(strength)]})
        case Operation.ROTATE:
            return F.rotate(image, strength)
        case Operation.COLOR:
            return F.adjust_saturation(image, 1 + strength)
        case Operation.SHARPNESS:
            return F.adjust_sharpness(image, 1 + strength)
        case Operation.BRIGHTNESS:
            return F.adjust_brightness(image, 1 + strength)
        case Operation.CONTRAST:
            return F.adjust_contrast(image, 1 + strength)
        case Operation.POSTERIZE:
            return F.posterize(image, int(strength))
        case Operation.SOLARIZE:
            return F.solarize(image, strength * top)
        case Operation.AUTOCONTRAST:
            return F.autocontrast(image)
        case Operation.EQUALIZE:
            return F.equalize(image)
        case Operation.INVERT:
            return F.invert(image)


def operations(policy: str) -> list[Operation]:
    """Return the operations of a policy."""
    left_out = Operation.IDENTITY if policy == "AutoAugment" else Operation.INVERT
    return [operation for operation in Operation if operation != left_out]


def strengths(policy: str, operation: Operation, height: int, width: int) -> list[tuple[float, ...]]:
    """Return each strength that the policy has for the operation, as one or two equally likely signed numbers."""
    wide = policy == "TrivialAugment"
    last = {
        Operation.SHEAR_X: 0.99 if wide else 0.3,
        Operation.SHEAR_Y: 0.99 if wide else 0.3,
        Operation.TRANSLATE_X: 32 if wide else 150 / 331 * width,
        Operation.TRANSLATE_Y: 32 if wide else 150 / 331 * height,
        Operation.ROTATE: 135 if wide else 30,
        **dict.fromkeys(_BLENDS, 0.99 if wide else 0.9),
    }
    shares = [bin_ / (BINS[policy] - 1) for bin_ in range(BINS[policy])]
    if operation in last:
        return [(last[operation] * share, -last[operation] * share) for share in shares]
    if operation == Operation.POSTERIZE:
        return [(float(round(8 - share * (6 if wide else 4))),) for share in shares]
    if operation == Operation.SOLARIZE:
        return [(1 - share,) for share in shares]
    return [(0.0,)]


def randaugment(magnitude: int, height: int, width: int) -> dict[tuple[Choice, ...], float]:
    """Return the probability of each choice of one operation."""
    chances: dict[tuple[Choice, ...], float] = {}
    for operation in operations("RandAugment"):
        levels = strengths("RandAugment", operation, height, width)
        signs = levels[magnitude if len(levels) > 1 else 0]
        _add(chances, [(choice(operation, strength),) for strength in signs], 1 / 14)
    return chances


def trivialaugment(height: int, width: int) -> dict[tuple[Choice, ...], float]:
    """Return the probability of each choice of one operation."""
    chances: dict[tuple[Choice, ...], float] = {}
    for operation in operations("TrivialAugment"):
        levels = strengths("TrivialAugment", operation, height, width)
        for signs in levels:
            _add(chances, [(choice(operation, strength),) for strength in signs], 1 / 14 / len(levels))
    return chances


def autoaugment(height: int, width: int) -> dict[tuple[Choice, ...], float]:
    """Return the probability of each choice of two operations, by torchvision's list of pairs for CIFAR-10."""
    pairs = getattr(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), "_policies", None)
    if pairs is None:
        pytest.skip("torchvision keeps its list of pairs elsewhere")
    by_name = {operation.name.replace("_", "").lower(): operation for operation in Operation}
    chances: dict[tuple[Choice, ...], float] = {}
    for pair in pairs:
        steps: list[dict[Choice, float]] = []
        for name, probability, level in pair:
            operation = by_name[name.lower()]
            signs = {choice(operation, one) for one in strengths("AutoAugment", operation, height, width)[level or 0]}
            step = {one: probability / len(signs) for one in signs}  # a single one at strength 0
            steps.append({**step, choice(Operation.IDENTITY, 0.0): 1 - probability})
        for first, first_chance in steps[0].items():
            for second, second_chance in steps[1].items():
                _add(chances, [(first, second)], first_chance * second_chance / 25)
    return chances


def choice(operation: int, strength: float) -> Choice:
    """Return a choice by which equal ones are found, whatever their last bits are."""
    return int(operation), round(strength, 4) + 0.0  # not -0.0


def _add(chances: dict[tuple[Choice, ...], float], outcomes: list[tuple[Choice, ...]], chance: float) -> None:
    """Share a probability equally among outcomes."""
    for outcome in outcomes:
        if chance:
            chances[outcome] = chances.get(outcome, 0) + chance / len(outcomes)
