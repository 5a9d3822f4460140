import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metricloss_pl.metrics import HierarchicalAccuracy, HierarchicalPrecision, MistakeSeverity, hierarchical
from tests.processes import run_groups

# Two pairs and one alone, in a tree of height 3: (0, 1) at height 1, (2, 3) at height 2, all others at 3.
HEIGHTS = torch.tensor(
    [[0, 1, 3, 3, 3], [1, 0, 3, 3, 3], [3, 3, 0, 2, 3], [3, 3, 2, 0, 3], [3, 3, 3, 3, 0]], dtype=torch.int16
)
HEIGHT = 3
KS = (1, 2, 5, 30)


def predictions(number: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randint(5, (number,), generator=generator) for _ in range(2))


def embeddings(number: int = 61, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(classes, (number,), generator=generator)
    centers = torch.randn(5, 3, generator=generator)
    return 50 + centers[labels] + torch.randn(number, 3, generator=generator), labels


def precision_by_hand(points: Tensor, labels: Tensor, area: int) -> dict[str, float]:
    """Compute the values query for query from sorted lists."""
    curves = []
    for query, label in enumerate(labels):
        others = [i for i in range(len(points)) if i != query]
        gains = {i: 1 - HEIGHTS[label, labels[i]].item() / HEIGHT for i in others}
        found = sorted(others, key=lambda i: (points[query].double() - points[i].double()).norm().item())
        best = sorted(gains.values(), reverse=True)
        if best[0] == 0:
            continue
        curves.append([sum(gains[i] for i in found[:k]) / sum(best[:k]) for k in range(1, len(others) + 1)])
    curve = [sum(column) / len(curves) for column in zip(*curves, strict=True)]
    trapezoids = sum((a + b) / 2 for a, b in pairwise(curve[:area]))
    values = {f"hp_{k}": curve[k - 1] for k in KS if k <= len(curve)}
    return {**values, f"mahp_{area}": trapezoids / min(area, len(curve))}


def as_floats(values: dict[str, Tensor]) -> dict[str, float]:
    assert all(value.shape == () and value.dtype == torch.float32 for value in values.values())
    return {name: value.item() for name, value in values.items()}


def test_accuracy_and_severity():
    predicted, labels = predictions()
    accuracy, severity = HierarchicalAccuracy(HEIGHTS, HEIGHT), MistakeSeverity(HEIGHTS)
    for k in range(3):
        accuracy.update(predicted[k::3], labels[k::3])
        severity.update(predicted[k::3], labels[k::3])
    pairs = list(zip(predicted.tolist(), labels.tolist(), strict=True))
    similar = [1 - HEIGHTS[p, y].item() / HEIGHT for p, y in pairs]
    wrong = [HEIGHTS[p, y].item() for p, y in pairs if p != y]
    assert accuracy.compute().item() == pytest.approx(sum(similar) / len(similar), rel=1e-7)
    assert severity.compute().item() == pytest.approx(sum(wrong) / len(wrong), rel=1e-7)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_undefined_values_are_nan():
    assert HierarchicalAccuracy(HEIGHTS, HEIGHT).compute().isnan()
    severity = MistakeSeverity(HEIGHTS)
    severity.update(torch.tensor([1, 2]), torch.tensor([1, 2]))
    assert severity.compute().isnan()
    precision = HierarchicalPrecision(HEIGHTS, HEIGHT, ks=(1, 5), area=2)
    for images in range(2):
        precision.update(torch.zeros(images, 3), torch.zeros(images, dtype=torch.int64))
        assert all(math.isnan(value) for value in as_floats(precision.compute()).values())
    precision.reset()
    precision.update(torch.randn(2, 3), torch.tensor([0, 2]))  # nothing is similar
    assert all(math.isnan(value) for value in as_floats(precision.compute()).values())
    precision.reset()
    precision.update(torch.randn(2, 3), torch.tensor([2, 3]))
    assert as_floats(precision.compute())["hp_1"] == 1
    assert math.isnan(as_floats(precision.compute())["hp_5"])


@pytest.mark.parametrize("area", [7, 250])
@pytest.mark.parametrize(
    ("block", "dtype"), [(1, torch.float32), (300, torch.float32), (2**24, torch.float32), (2**24, torch.float16)]
)
def test_hierarchical_precision(block: int, dtype: torch.dtype, area: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hierarchical, "_BLOCK", block)
    points, labels = embeddings()
    points = points if dtype == torch.float32 else (points - 50).to(dtype)  # no two at equal distance
    metric = HierarchicalPrecision(HEIGHTS, HEIGHT, KS, area)
    for batch in zip(points.split(20), labels.split(20), strict=True):
        metric.update(*batch)
    assert as_floats(metric.compute()) == pytest.approx(precision_by_hand(points, labels, area), rel=1e-6)


def test_a_class_with_one_image_and_no_kin_is_no_query():
    points, labels = embeddings(classes=4)
    labels[7] = 4
    metric = HierarchicalPrecision(HEIGHTS, HEIGHT, KS)
    metric.update(points, labels)
    assert as_floats(metric.compute()) == pytest.approx(precision_by_hand(points, labels, 250), rel=1e-6)


def test_perfect_order():
    """HP@k is 1 throughout, and the area by trapezoids from 1 to K over K is (K - 1) / K."""
    labels = torch.arange(5).repeat_interleave(80)
    places = torch.tensor([0.0, 1, 100, 102, 1000])
    points = places[labels, None] + 1e-3 * torch.rand(400, 1, generator=torch.Generator().manual_seed(0))
    metric = HierarchicalPrecision(HEIGHTS, HEIGHT)
    metric.update(points, labels)
    values = as_floats(metric.compute())
    assert list(values) == ["hp_1", "hp_10", "hp_50", "hp_100", "mahp_250"]
    assert values.pop("mahp_250") == pytest.approx(249 / 250)
    assert values == {name: pytest.approx(1) for name in values}


def test_one_class_is_ordinary_precision():
    """If no two classes are similar, HP@k is the share of the k nearest that are of the query's class."""
    points, labels = embeddings(40, classes=4)
    heights = 1 - torch.eye(5, dtype=torch.int64)
    metric = HierarchicalPrecision(heights, 1, ks=(1,))
    metric.update(points, labels)
    distances = torch.cdist(points.double(), points.double()).fill_diagonal_(torch.inf)
    expected = (labels[distances.argmin(1)] == labels).double().mean().item()
    assert as_floats(metric.compute())["hp_1"] == pytest.approx(expected)


def test_the_heights_stay_out_of_state_dicts_and_integers():
    module = torch.nn.ModuleList([HierarchicalAccuracy(HEIGHTS, 3), MistakeSeverity(HEIGHTS)])
    module.append(HierarchicalPrecision(HEIGHTS, 3))
    assert module.state_dict() == {}
    module.half()
    assert module[0].lca_heights.dtype == torch.int16


def _metrics() -> list:
    return [HierarchicalAccuracy(HEIGHTS, HEIGHT), MistakeSeverity(HEIGHTS), HierarchicalPrecision(HEIGHTS, HEIGHT, KS)]


def _update(metrics: list, images: slice) -> list:
    predicted, labels = predictions()
    metrics[0].update(predicted[images], labels[images])
    metrics[1].update(predicted[images], labels[images])
    points, labels = embeddings()
    metrics[2].update(points[images], labels[images])
    return [metric.compute() for metric in metrics]


def _in_a_process(folder: Path, cut: int) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    values = _update(_metrics(), slice(0, cut) if rank == 0 else slice(cut, None))
    torch.save(values, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("cut", [19, 0])  # unequal numbers; a process without images
def test_two_processes_equal_one(cut: int, tmp_path: Path):
    run_groups((2, _in_a_process, tmp_path, cut))
    accuracy, severity, precision = _update(_metrics(), slice(None))
    for rank in range(2):
        values = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(values[0], accuracy)
        assert torch.equal(values[1], severity)
        assert as_floats(values[2]) == pytest.approx(as_floats(precision), rel=1e-7)
