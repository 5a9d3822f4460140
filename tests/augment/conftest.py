from __future__ import annotations

import pytest
import torch

from metricloss_pl.augment.keys import image_keys


@pytest.fixture
def keys() -> torch.Tensor:
    return image_keys(3, [5] * 64, range(64))
