"""Each operation, at every strength of every policy, against torchvision's image by image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metricloss_pl.augment import devices
from metricloss_pl.augment.operations import Operation, apply_operations
from tests.augment import peer

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 21, 34), (1, 96, 64), (3, 2, 5)]
ROUNDED = (Operation.COLOR, Operation.SHARPNESS, Operation.CONTRAST)  # blends, cut to whole levels


def gradients(count: int, shape: tuple[int, int, int]) -> Tensor:
    """Random images of different ranges, float32: the first has a single value, the second the whole range."""
    generator = torch.Generator().manual_seed(count)
    low, high = torch.rand(2, count, 1, 1, 1, generator=generator).sort(0).values
    images = low + (high - low) * torch.rand(count, *shape, generator=generator)
    images[0] = 0.4
    images[1, :, 0, 0], images[1, :, -1, -1] = 0, 1
    return images


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operation", Operation, ids=lambda operation: operation.name)
def test_every_strength_of_every_policy(operation: Operation, shape: tuple[int, int, int]) -> None:
    policies = [policy for policy in peer.BINS if operation in peer.operations(policy)]
    levels = {
        value for policy in policies for signs in peer.strengths(policy, operation, *shape[1:]) for value in signs
    }
    strengths = torch.tensor(sorted(levels), dtype=torch.float64).repeat_interleave(2 if len(levels) > 1 else 8)
    floats = gradients(len(strengths), shape)
    for images, tolerance in (((floats * 255).round().to(torch.uint8), 1), (floats, 1e-6)):
        changed = apply_operations(images, torch.full((len(images),), int(operation)), strengths)
        pairs = zip(images, strengths.tolist(), strict=True)
        expected = torch.stack([peer.change(image, operation, strength) for image, strength in pairs])
        assert changed.dtype == images.dtype
        difference = (changed.double() - expected.double()).abs()
        assert difference.max() <= tolerance
        if not images.is_floating_point():
            assert (difference > 0).double().mean() < (0.02 if operation in ROUNDED else 1e-12)


def test_images_of_16_bits_keep_their_precision() -> None:
    images = (torch.arange(4 * 1024).view(4, 1, 32, 32) * 15.5 + 300) / 65535
    operations = torch.tensor([Operation.ROTATE, Operation.BRIGHTNESS, Operation.AUTOCONTRAST, Operation.INVERT])
    changed = apply_operations(images, operations, torch.tensor([10.0, 0.2, 0, 0], dtype=torch.float64))
    assert min(len(image.unique()) for image in changed) > 900


@pytest.mark.parametrize("on_cpu", [True, False])
def test_each_image_has_its_own_operation(on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with the operations for a GPU, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 3, 9, 7), dtype=torch.uint8, generator=generator)
    operations = torch.randint(len(Operation), (64,), generator=generator)
    strengths = torch.rand(64, dtype=torch.float64, generator=generator)
    each = zip(images.split(1), operations.split(1), strengths.split(1), strict=True)
    alone = torch.cat([apply_operations(*one) for one in each])
    monkeypatch.setattr(devices, "on_cpu", lambda tensor: on_cpu)
    assert torch.equal(apply_operations(images, operations, strengths), alone)
