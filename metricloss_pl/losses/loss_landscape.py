"""Landscapes of losses: over a plane of two features, and over the distance of a pair."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metricloss_pl.losses import functional as F

__all__ = ["pair_weight", "surface"]


def surface(loss: Callable[..., Tensor], axis: Tensor) -> Tensor:
    """Compute a loss of class 0 over the plane of two features.

    Args:
        loss: Function of `losses.functional` of features, labels and reduction, with one-hot class embeddings.
        axis: (G,) values of each feature.

    Returns:
        (G, G); a row has one value of the second feature, that of the other class.
    """
    second, first = torch.meshgrid(axis, axis, indexing="ij")
    features = torch.stack([first.flatten(), second.flatten()], dim=1)
    labels = torch.zeros(len(features), dtype=torch.int64)
    return loss(features, labels, reduction="none").reshape(second.shape)


def pair_weight(inter: F.PairTerm, distances: Tensor) -> Tensor:
    """Compute the derivative of the push of a pair by its squared distance, by autograd.

    Args:
        inter: Term of the standalone center loss.
        distances: (G,) Euclidean distances of the two embeddings, above 0.

    Returns:
        (G,) float64.
    """
    labels, weights = torch.tensor([0, 1]), []
    for distance in distances.tolist():
        embeddings = torch.tensor([[0.0, 0.0], [distance, 0.0]], dtype=torch.float64, requires_grad=True)
        _, push = F.standalone_center_loss(embeddings, labels, embeddings.detach(), inter=inter, pairs="mean")
        (gradient,) = torch.autograd.grad(push, embeddings)
        weights.append(gradient[1, 0].item() / (2 * distance))  # d(d^2)/dx = 2 d
    return torch.tensor(weights, dtype=torch.float64)
