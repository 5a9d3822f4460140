"""Values in the figures of the losses against closed forms."""

import numpy as np
import pytest
import torch

from metricloss_pl.losses import functional as F
from metricloss_pl.losses.loss_landscape import pair_weight, surface


def test_surfaces_are_the_losses():
    axis = torch.linspace(-2, 2, 5)
    first, second = np.meshgrid(axis, axis)
    np.testing.assert_allclose(surface(F.squared_error, axis), (first - 1) ** 2 + second**2, atol=1e-6)
    np.testing.assert_allclose(surface(F.cross_entropy, axis), np.log1p(np.exp(second - first)), rtol=1e-5, atol=1e-6)
    norm = np.hypot(first, second)
    cosine = np.divide(first, norm, out=np.zeros_like(first), where=norm > 0)
    np.testing.assert_allclose(surface(F.cosine_loss, axis), 1 - cosine, atol=1e-6)


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("log1p", lambda d: 1 / (1 + d**2)),
        ("log", lambda d: 1 / d**2),
        ("margin", lambda d: (d < 1).astype(float)),
        ("negative", np.ones_like),
    ],
)
def test_weights_of_a_pair(term, expected):
    distances = np.array([0.01, 0.5, 0.99, 1.01, 3.0, 100.0])
    np.testing.assert_allclose(
        pair_weight(term, torch.from_numpy(distances)), expected(distances), rtol=1e-9, atol=1e-12
    )
