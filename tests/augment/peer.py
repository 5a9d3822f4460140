"""torchvision's policies, taken apart."""

from __future__ import annotations

from torch import Tensor
from torchvision.transforms import v2

from metricloss_pl.augment.operations import Operation

_NAMES = {operation: operation.name.title().replace("_", "") for operation in Operation}
_NAMES[Operation.AUTOCONTRAST] = "AutoContrast"
_BY_NAME = {name: operation for operation, name in _NAMES.items()}

RANDAUGMENT, TRIVIALAUGMENT = v2.RandAugment(), v2.TrivialAugmentWide()
AUTOAUGMENT = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
BINS = {RANDAUGMENT: 31, TRIVIALAUGMENT: 31, AUTOAUGMENT: 10}

Choice = tuple[int, float]  # operation and strength


def change(image: Tensor, operation: int, strength: float) -> Tensor:
    """Apply the operation of torchvision's policies to an image (C, H, W)."""
    name = _NAMES[Operation(operation)]
    return RANDAUGMENT._apply_image_or_video_transform(image, name, strength, "nearest", {Tensor: None})


def operations(policy: v2.Transform) -> list[Operation]:
    """Return the operations of a policy."""
    return [_BY_NAME[name] for name in policy._AUGMENTATION_SPACE]


def strengths(policy: v2.Transform, operation: Operation, height: int, width: int) -> list[tuple[float, ...]]:
    """Return each strength that the policy has for the operation, as one or two equally likely signed numbers."""
    space, signed = policy._AUGMENTATION_SPACE[_NAMES[operation]]
    values = space(BINS[policy], height, width)
    return [(value, -value) if signed else (value,) for value in ([0.0] if values is None else values.tolist())]


def randaugment(magnitude: int, height: int, width: int) -> dict[tuple[Choice, ...], float]:
    """Return the probability of each choice of one operation."""
    chances: dict[tuple[Choice, ...], float] = {}
    for operation in operations(RANDAUGMENT):
        levels = strengths(RANDAUGMENT, operation, height, width)
        signs = levels[magnitude if len(levels) > 1 else 0]
        _add(chances, [((operation, strength),) for strength in signs], 1 / 14)
    return chances


def trivialaugment(height: int, width: int) -> dict[tuple[Choice, ...], float]:
    """Return the probability of each choice of one operation."""
    chances: dict[tuple[Choice, ...], float] = {}
    for operation in operations(TRIVIALAUGMENT):
        levels = strengths(TRIVIALAUGMENT, operation, height, width)
        for signs in levels:
            _add(chances, [((operation, strength),) for strength in signs], 1 / 14 / len(levels))
    return chances


def autoaugment(height: int, width: int) -> dict[tuple[Choice, ...], float]:
    """Return the probability of each choice of two operations."""
    chances: dict[tuple[Choice, ...], float] = {}
    for pair in AUTOAUGMENT._policies:
        steps: list[dict[Choice, float]] = []
        for name, probability, level in pair:
            operation = _BY_NAME[name]
            signs = set(strengths(AUTOAUGMENT, operation, height, width)[level or 0])  # one if it is 0
            step = {(int(operation), strength): probability / len(signs) for strength in signs}
            steps.append({**step, (int(Operation.IDENTITY), 0.0): 1 - probability})
        for first, first_chance in steps[0].items():
            for second, second_chance in steps[1].items():
                _add(chances, [(first, second)], first_chance * second_chance / 25)
    return chances


def _add(chances: dict[tuple[Choice, ...], float], outcomes: list[tuple[Choice, ...]], chance: float) -> None:
    """Share a probability equally among outcomes."""
    for outcome in outcomes:
        if chance:
            chances[outcome] = chances.get(outcome, 0) + chance / len(outcomes)
