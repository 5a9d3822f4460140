from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from metricloss_pl.data.samples import Samples, check_samples, concatenate
from metricloss_pl.errors import UserError

Make = Callable[..., Samples]


def test_subset_and_concatenate(samples: Make) -> None:
    whole = replace(samples([4, 3]), groups=torch.arange(7))
    part = whole.subset([5, 2])
    assert torch.equal(part.images, whole.images[[5, 2]])  # type: ignore[arg-type]
    assert part.labels.tolist() == whole.labels[[5, 2]].tolist()
    assert part.names == ["train[5]", "train[2]"]
    assert part.groups is not None
    assert part.groups.tolist() == [5, 2]
    both = concatenate(part, whole)
    assert len(both) == 9
    assert both.subset(range(2, 9)).names == whole.names
    files = Samples(images=[Path("a"), Path("b")], labels=torch.tensor([0, 1]), names=["a", "b"])
    assert files.subset(np.array([1])).images == [Path("b")]
    with pytest.raises(UserError, match="joined"):
        concatenate(files, whole)


def test_good_samples_pass(samples: Make) -> None:
    good = samples([4, 3])
    check_samples(good, 2, "train")
    check_samples(replace(good, labels=good.labels.to(torch.uint8)), 2, "train")
    check_samples(replace(good, images=torch.rand(7, 1, 4, 4)), 2, "train")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 1.5])
def test_float_images_are_finite_and_in_range(samples: Make, value: float) -> None:
    images = torch.rand(7, 1, 4, 4)
    images[4, 0, 2, 2] = value
    with pytest.raises(UserError, match=r"train\[4\]"):
        check_samples(replace(samples([4, 3]), images=images), 2, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 1, 0, 1, 2, 0, 0])}, r"train\[4\].* label 2.* 0 to 1"),
        ({"labels": torch.tensor([0, 1, -1, 1, 0, 0, 0])}, r"train\[2\].* label -1"),
        ({"labels": torch.tensor([0.0, 1, 1, 1, 0, 0, 0])}, "float32: an integer"),
        ({"labels": torch.zeros(7, dtype=torch.bool)}, "bool"),
        ({"labels": torch.zeros(6, dtype=torch.int64)}, "7 images, labels of shape"),
        ({"labels": torch.zeros(7, 1, dtype=torch.int64)}, r"labels of shape \(7, 1\)"),
        ({"names": ["a"] * 6}, "6 names"),
        ({"groups": torch.zeros(3, dtype=torch.int64)}, "groups"),
        ({"images": torch.zeros(7, 4, 4, dtype=torch.uint8)}, r"\(7, 4, 4\)"),
        ({"images": torch.zeros(7, 1, 4, 4, dtype=torch.int32)}, "int32"),
    ],
)
def test_bad_samples_are_named(samples: Make, change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_samples(replace(samples([4, 3]), **change), 2, "train")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_an_empty_part_is_an_error(samples: Make) -> None:
    with pytest.raises(UserError, match=r"test set .* no image"):
        check_samples(samples([3]).subset([]), 1, "test")
