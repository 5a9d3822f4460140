import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from torch import Tensor
from torch.nn import functional as F

from metricloss_pl.metrics import Temperature


def _fit(scores: Tensor, labels: Tensor) -> float:
    metric = Temperature()
    for batch in zip(scores.split(300), labels.split(300), strict=True):
        metric.update(*batch)
    temperature = metric.compute()
    assert temperature.shape == ()
    assert temperature.dtype == torch.float32
    return temperature.item()


def _loss(scores: Tensor, labels: Tensor, temperature: float) -> float:
    return F.cross_entropy(scores.double() / temperature, labels).item()


def _reference(scores: Tensor, labels: Tensor) -> float:
    """Minimize the negative log-likelihood and the prior log T ~ N(0, 2²) over log T."""

    def loss(log_temperature: float) -> float:
        of_images = _loss(scores, labels, torch.tensor(log_temperature).exp().item())
        return of_images - norm.logpdf(log_temperature, scale=2) / len(labels)

    found = minimize_scalar(loss, bounds=(-6.9, 6.9), method="bounded", options={"xatol": 1e-6})
    return torch.tensor(found.x).exp().item()


def _drawn(temperature: float, kind: str) -> tuple[Tensor, Tensor]:
    """Return scores, and labels drawn from their softmax over the temperature."""
    generator = torch.Generator().manual_seed(0)
    if kind == "scores":
        scores = 2 * torch.randn(2000, 10, generator=generator)
    else:  # minus squared distances to 10 centers
        points, centers = torch.randn(2000, 3, generator=generator), torch.randn(10, 3, generator=generator)
        scores = -torch.cdist(points, centers).square()
    labels = torch.multinomial(scores.softmax(1), 1, generator=generator)[:, 0]
    return scores * temperature, labels


@pytest.mark.parametrize("kind", ["scores", "distances"])
@pytest.mark.parametrize("planted", [0.004, 0.05, 1.0, 1.37, 30.0, 400.0])
def test_planted_temperature(planted: float, kind: str):
    scores, labels = _drawn(planted, kind)
    fitted, reference = _fit(scores, labels), _reference(scores, labels)
    assert reference == pytest.approx(planted, rel=0.1)
    assert fitted == pytest.approx(reference, rel=0.02)
    assert _loss(scores, labels, fitted) < _loss(scores, labels, reference) + 1e-4


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_without_images_it_is_one():
    assert Temperature().compute().item() == 1
    assert Temperature(lowest=2, highest=20).compute().item() == 1


def test_equal_scores_leave_one():
    assert _fit(torch.full((1000, 7), 3.3), torch.arange(1000) % 7) == pytest.approx(1, rel=1e-6)


def test_ends_of_the_grid():
    scores, right, wrong = torch.eye(4), torch.arange(4), torch.tensor([1, 2, 3, 0])
    for labels, end in ((right, 0.5), (wrong, 2)):
        metric = Temperature(lowest=0.5, highest=2, per_decade=5)
        metric.update(scores.repeat(5, 1), labels.repeat(5))
        assert metric.compute().item() == pytest.approx(end)
    unbounded = Temperature(spread=float("inf"))  # the likelihood alone
    unbounded.update(scores, wrong)
    assert unbounded.compute().item() == pytest.approx(1000)


@pytest.mark.parametrize(("labels", "low", "high"), [([0, 1, 2, 3], 0.1, 0.9), ([1, 2, 3, 0], 1.1, 10)])
def test_few_images_that_are_all_right_or_all_wrong(labels: list[int], low: float, high: float):
    scores = 3 * torch.eye(4)
    fitted = _fit(scores, torch.tensor(labels))
    assert low < fitted < high
    assert fitted == pytest.approx(_reference(scores, torch.tensor(labels)), rel=0.03)


def test_scores_of_any_size_stay_finite():
    scores = torch.tensor([[1e30, -1e30], [3.0, -1e30], [1e4, 2e4]])
    metric = Temperature()
    metric.update(scores, torch.tensor([0, 0, 1]))
    assert metric.losses.isfinite().all()
    assert 0 < metric.compute().item() <= 1000


def test_half_precision_scores_and_split():
    scores, labels = _drawn(1.0, "scores")
    scores = scores.half()
    whole = Temperature()
    whole.update(scores, labels)
    split = Temperature()
    for batch in zip(scores.split(128), labels.split(128), strict=True):
        split.update(*batch)
    torch.testing.assert_close(split.losses, whole.losses, rtol=1e-12, atol=0)
    assert whole.losses.dtype == torch.float64
    assert split.compute().item() == pytest.approx(_reference(scores, labels), rel=0.02)
