import pytest
import torch

from metricloss_pl.class_embeddings import one_hot, simplex
from metricloss_pl.errors import UserError


def _recursive(k: int) -> torch.Tensor:
    """Return the matrix k x (k + 1) of Kasarla et al. 2022 as printed, one class per column."""
    if k == 1:
        return torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    inner = (1 - 1 / k**2) ** 0.5 * _recursive(k - 1)
    top = torch.cat([torch.ones(1, 1), torch.full((1, k), -1 / k)], 1)
    return torch.cat([top, torch.cat([torch.zeros(k - 1, 1), inner], 1)])


@pytest.mark.parametrize("num_classes", [2, 3, 4, 10, 57])
def test_simplex_is_the_published_matrix(num_classes: int):
    torch.testing.assert_close(simplex(num_classes), _recursive(num_classes - 1).T.float(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 1000])
def test_simplex_is_regular(num_classes: int):
    embeddings = simplex(num_classes)
    assert embeddings.shape == (num_classes, num_classes - 1)
    assert embeddings.dtype == torch.float32
    cosines = embeddings.double() @ embeddings.double().T
    expected = torch.full((num_classes, num_classes), -1 / (num_classes - 1), dtype=torch.float64)
    torch.testing.assert_close(cosines, expected.fill_diagonal_(1), rtol=0, atol=1e-6)
    assert embeddings.double().sum(0).abs().max() < 1e-5


def test_one_hot():
    embeddings = one_hot(3)
    assert embeddings.dtype == torch.float32
    assert embeddings.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("make", [one_hot, simplex])
def test_one_class_is_refused(make):
    with pytest.raises(UserError, match="num_classes: 1"):
        make(1)
