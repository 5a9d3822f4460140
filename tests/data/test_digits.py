from __future__ import annotations

import runpy
import sys

import pytest
import torch

from metricloss_pl.data import digits
from metricloss_pl.data.digits import DigitsDataModule


def test_digits() -> None:
    module = DigitsDataModule()
    assert module.class_names == list("0123456789")
    assert module.in_channels == 1
    module.setup(None)
    assert [len(module.samples(part)) for part in ("train", "val", "test")] == [1294, 144, 359]
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (64, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert images.max() == 255
    assert labels.shape == (64,)
    train, test = module.class_counts, torch.bincount(module.samples("test").labels)
    assert (test / (train / 0.9 + test) - 0.2).abs().max() < 0.01


def test_values_are_scaled_from_sixteen() -> None:
    from sklearn.datasets import load_digits

    module = DigitsDataModule()
    module.setup("test")
    test = module.samples("test")
    index = int(test.names[5].removeprefix("digits[").removesuffix("]"))
    source = load_digits()
    assert torch.equal(test.images[5, 0], torch.from_numpy(source.images[index] / 16 * 255).round().to(torch.uint8))  # type: ignore[call-overload]
    assert test.labels[5] == source.target[index]


def test_the_test_part_stays_whatever_the_seed() -> None:
    modules = [DigitsDataModule(seed=seed) for seed in (0, 1)]
    for module in modules:
        module.setup(None)
    first, second = modules
    assert first.samples("test").names == second.samples("test").names
    assert first.samples("val").names != second.samples("val").names
    parts = [set(first.samples(part).names) for part in ("train", "val", "test")]
    assert len(set.union(*parts)) == sum(len(part) for part in parts) == 1797


def test_importing_and_building_loads_no_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of it fails here."""
    for name in {"sklearn", *(name for name in sys.modules if name.startswith("sklearn."))}:
        monkeypatch.setitem(sys.modules, name, None)
    data = runpy.run_path(digits.__file__)["DigitsDataModule"]()
    with pytest.raises(ImportError):
        data.setup()
