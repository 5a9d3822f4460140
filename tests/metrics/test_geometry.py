import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metricloss_pl.metrics import EmbeddingGeometry, geometry, nearest_mean
from tests.processes import run_groups

CLASSES, DIM = 7, 5
ABSENT = 4


def _embeddings(number: int = 61) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (number,), generator=generator)
    labels[labels == ABSENT] = 1
    centers = 3 * torch.randn(CLASSES, DIM, generator=generator)
    return centers[labels] + torch.randn(number, DIM, generator=generator), labels


def _reference(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute the formulas image for image."""
    points = embeddings.double()
    means = {c: points[labels == c].mean(0) for c in set(labels.tolist())}
    distances = [(a - b).norm().item() for a, b in combinations(means.values(), 2)]
    squared = [(x - means[c]).square().sum().item() for x, c in zip(points, labels.tolist(), strict=True)]
    intra_variance = sum(squared) / len(squared)
    mean_distance = sum(distances) / len(distances)
    return {
        "intra_variance": intra_variance,
        "mean_distance": mean_distance,
        "min_distance": min(distances),
        "intra_inter_ratio": math.sqrt(intra_variance) / mean_distance,
        "norm": sum(x.norm().item() for x in points) / len(points),
    }


def _as_floats(values: dict[str, Tensor]) -> dict[str, float]:
    assert all(value.shape == () and value.dtype == torch.float32 for value in values.values())
    return {name: value.item() for name, value in values.items()}


@pytest.mark.parametrize("block", [1, 2, 3, 1024])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_formulas(block: int, offset: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(geometry, "_BLOCK", block)
    embeddings, labels = _embeddings()
    embeddings = embeddings + offset
    metric = EmbeddingGeometry(CLASSES, DIM)
    for batch in zip(embeddings.split(20), labels.split(20), strict=True):
        metric.update(*batch)
    assert _as_floats(metric.compute()) == pytest.approx(_reference(embeddings, labels), rel=1e-5)


def test_collapsed_classes_far_from_the_origin():
    """Spread and distances are a million times below the norm, where sums in float32 would lose them."""
    labels = torch.arange(100) % 2
    noise = 1e-3 * torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    embeddings = 1e3 + 1e-2 * labels[:, None] + noise
    metric = EmbeddingGeometry(2, 3)
    metric.update(embeddings, labels)
    assert _as_floats(metric.compute()) == pytest.approx(_reference(embeddings, labels), rel=1e-3)


def test_class_means_follow_the_updates():
    embeddings, labels = _embeddings()
    metric = EmbeddingGeometry(CLASSES, DIM)
    metric.update(embeddings[:30], labels[:30])
    metric.compute()
    metric.update(embeddings[30:], labels[30:])
    means = metric.class_means
    assert means.shape == (CLASSES, DIM)
    assert means.dtype == torch.float32
    assert means[ABSENT].isnan().all()
    for label in set(range(CLASSES)) - {ABSENT}:
        torch.testing.assert_close(means[label], embeddings[labels == label].mean(0))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_undefined_values_are_nan():
    metric = EmbeddingGeometry(3, 2)
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.update(torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([1, 1]))
    values = _as_floats(metric.compute())
    assert values["norm"] == 5
    assert values["intra_variance"] == 0
    assert all(math.isnan(values[name]) for name in ("mean_distance", "min_distance", "intra_inter_ratio"))


def test_states_stay_float64_in_a_module_of_less_precision():
    module = torch.nn.Module()
    module.metric = EmbeddingGeometry(2, 2)
    for change in (module.half, lambda: module.to(torch.bfloat16)):
        change()
        assert module.metric.sums.dtype == torch.float64
        module.metric.reset()
        assert module.metric.sums.dtype == torch.float64
    module.metric.update(torch.ones(2, 2, dtype=torch.bfloat16), torch.tensor([0, 1]))
    assert module.metric.compute()["norm"].item() == pytest.approx(2**0.5)


def test_states_stay_where_there_is_float64():
    class Mps:
        device = torch.device("mps")

    metric = EmbeddingGeometry(2, 2)
    assert metric._apply(lambda _tensor: Mps()) is metric
    assert metric.sums.device.type == "cpu"


def test_nearest_mean():
    embeddings, labels = _embeddings()
    metric = EmbeddingGeometry(CLASSES, DIM)
    metric.update(embeddings, labels)
    means = metric.class_means
    expected = []
    for x in embeddings:
        distances = {c: (x - mean).norm().item() for c, mean in enumerate(means) if c != ABSENT}
        expected.append(min(distances, key=lambda c: distances[c]))
    assert nearest_mean(embeddings, means).tolist() == expected
    assert nearest_mean(means[:1], means).dtype == torch.int64


def test_nearest_mean_far_from_the_origin():
    """There x^2 + c^2 - 2xc loses the difference in rounding."""
    means = 4096 + torch.tensor([[0.0, 0.0], [0.25, 0.0], [0.0, 0.5]])
    means = torch.cat([means, torch.full((40, 2), torch.nan)])
    embeddings = means[:3] + 0.0625
    assert nearest_mean(embeddings, means).tolist() == [0, 1, 2]
    with torch.autocast("cpu", torch.bfloat16):
        assert nearest_mean(embeddings, means).tolist() == [0, 1, 2]


def _in_a_process(folder: Path):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    embeddings, labels = _embeddings()
    mine = slice(0, 19) if rank == 0 else slice(19, None)  # of unequal size
    metric = EmbeddingGeometry(CLASSES, DIM)
    metric.update(embeddings[mine], labels[mine])
    torch.save((metric.compute(), metric.class_means, metric.counts), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path):
    run_groups((2, _in_a_process, tmp_path))
    embeddings, labels = _embeddings()
    whole = EmbeddingGeometry(CLASSES, DIM)
    whole.update(embeddings, labels)
    counts = torch.zeros(CLASSES, dtype=torch.int64)
    for rank in range(2):
        values, means, own_counts = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(values, whole.compute(), rtol=1e-6, atol=0)
        torch.testing.assert_close(means, whole.class_means, rtol=1e-6, atol=1e-7, equal_nan=True)
        counts += own_counts  # after compute each process holds its own images again
    assert torch.equal(counts, whole.counts)
