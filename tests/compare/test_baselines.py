"""Baselines without a network: statistics against a slow reference, and classifiers against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.ensemble import ExtraTreesClassifier

from metricloss_pl.compare.baselines import (
    ForestClassifier,
    MajorityClassifier,
    color_and_edge_statistics,
    with_trivial,
)
from metricloss_pl.compare.config import ComparisonConfig, Variant
from metricloss_pl.compare.plan import Run
from metricloss_pl.compare.runner import Task, build, execute
from tests.callbacks.runs import digits, trainer
from tests.compare.small import small


def reference(image: np.ndarray) -> list[float]:
    """Return the statistics of an image (H, W, 3) in [0, 1], pixel by pixel."""

    def quantiles(values, shares):
        ordered = sorted(values)
        return [ordered[round(share * (len(ordered) - 1))] for share in shares]

    def edges(gray):
        found = []
        for row in range(1, len(gray) - 1):
            for column in range(1, len(gray[0]) - 1):
                dx, dy = gray[row, column + 1] - gray[row, column - 1], gray[row + 1, column] - gray[row - 1, column]
                found.append((math.hypot(dx, dy), math.atan2(dy, dx)))
        return found

    numbers = []
    for channel in range(3):
        values = image[:, :, channel].ravel()
        numbers += [values.mean(), values.std(), *quantiles(values, (0.1, 0.5, 0.9))]
    gray = image.mean(2)
    of_edges = edges(gray)
    strength = np.array([one for one, _ in of_edges])
    numbers += [strength.mean(), strength.std(), *quantiles(strength, (0.5, 0.9, 0.99))]
    half = np.array([[gray[r : r + 2, c : c + 2].mean() for c in range(0, 12, 2)] for r in range(0, 12, 2)])
    numbers.append(np.mean([one for one, _ in edges(half)]))
    directions = [0.0] * 8
    for one, angle in of_edges:
        directions[int(angle % math.pi / math.pi * 8)] += one / len(of_edges)
    numbers += directions
    numbers += [gray[r : r + 4, c : c + 4].mean() for r in (0, 4, 8) for c in (0, 4, 8)]
    chroma, hues = [], [0.0] * 8
    for pixel in image.reshape(-1, 3):
        chroma.append(max(pixel) - min(pixel))
        red, green, blue = pixel
        angle = math.atan2(math.sqrt(3) * (green - blue), 2 * red - green - blue)
        hues[int(angle % (2 * math.pi) / (2 * math.pi) * 8)] += chroma[-1] / 144
    return [*numbers, np.mean(chroma), np.std(chroma), *hues]


def test_statistics_are_those_of_a_slow_reference():
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    other = torch.zeros(3, 12, 12, dtype=torch.uint8)
    batch = torch.stack([other, torch.from_numpy(image).permute(2, 0, 1)])
    found = color_and_edge_statistics(batch)
    assert found.shape == (2, 48)
    assert not found[0].any()
    np.testing.assert_allclose(found[1], reference(image / 255.0), atol=1e-5)
    torch.testing.assert_close(color_and_edge_statistics(batch / 255), found)
    assert color_and_edge_statistics(batch[:, :1]).shape == (2, 28)


def test_quantiles_of_large_images_are_nearly_exact():
    """They are those of a part of the pixels."""
    images = torch.rand(1, 1, 150, 170, generator=torch.Generator().manual_seed(0)) ** 2
    found = color_and_edge_statistics(images)[0, 2:5]
    torch.testing.assert_close(found, images.quantile(torch.tensor([0.1, 0.5, 0.9])), atol=0.02, rtol=0)


def fit(model, folder, data):
    run = trainer(folder, max_epochs=1, limit_train_batches=1)
    run.fit(model, data)
    data.setup("test")
    return model(next(iter(data.test_dataloader()))[0]).softmax(1)


def test_the_forest_is_that_of_scikit_learn(tmp_path):
    """Each class has one vote on top of those of the trees; test-time views leave the plain image."""
    data = digits(orientation="upright")
    found = fit(ForestClassifier(10, seed=3), tmp_path, data)
    images, labels = (torch.cat(column) for column in zip(*data.train_eval_dataloader(), strict=True))
    forest = ExtraTreesClassifier(300, random_state=3).fit(color_and_edge_statistics(images), labels)
    tested = next(iter(data.test_dataloader()))[0]
    expected = (300 * forest.predict_proba(color_and_edge_statistics(tested)) + 1) / 310
    np.testing.assert_allclose(found, expected, atol=1e-6)
    of_views = fit(ForestClassifier(10, seed=3), tmp_path, digits(tta="flip"))
    torch.testing.assert_close(of_views, found)


def test_the_majority_has_the_frequencies_of_the_training_images(tmp_path):
    data = digits(samples_per_class=None, val_fraction=0.9)
    found = fit(MajorityClassifier(10), tmp_path, data)
    counts = data.class_counts.double() + 1
    assert len(found) == 16
    torch.testing.assert_close(found[0].double(), counts / counts.sum())
    assert (found == found[0]).all()


@pytest.mark.parametrize("model", [MajorityClassifier(10), ForestClassifier(10)])
def test_parts_of_a_set_are_enough(model, tmp_path):
    """A class without training images has a finite score."""
    data = digits()
    data.setup("fit")
    kept = (data.samples("train").labels != 4).nonzero().flatten().numpy()
    data._add({"train": data.samples("train").subset(kept)})
    found = fit(model, tmp_path, data)
    assert found.isfinite().all()
    assert (found[:, 4] < found.max(1).values).all()


def test_baselines_have_the_images_of_the_baseline():
    """A run of them is a run like any other; a baseline that is no run file has none."""
    config = with_trivial(small(trials=1, folds=3, sizes=[None]).checked())
    assert list(config.variants) == ["softmax", "cosine", "majority", "color_and_edges"]
    runs = [Run("final", name, None, 0, 0, 1, None, name, ()) for name in ("majority", "color_and_edges", "cosine")]
    tasks = [Task(run, config) for run in runs]
    outcomes = [execute(task) for task in tasks[:2]]
    assert [outcome.result["reason"] for outcome in outcomes] == [None] * 2
    data = build(tasks[2], {})[1]
    data.setup("test")
    for outcome in outcomes:
        assert outcome.predictions.names.tolist() == data.samples("test").names
    assert tasks[0].factory.decisive({}) != tasks[1].factory.decisive({})
    assert {config.trials(name) for name in ("majority", "color_and_edges")} == {0}
    mine = ComparisonConfig({"mine": Variant(factory=print)}, trivial=True).checked()
    assert with_trivial(mine) is mine
