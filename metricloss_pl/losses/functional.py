"""Losses as pure functions of tensors.

Each computes half and single precision in float32 (float64 stays float64) with autocast off. They know nothing of
processes or optimizers. They check shapes and options but no values, so that each compiles into one graph.

Shapes: `embeddings (B, D)`, `labels (B,)` int64 in [0, C), `centers (C, D)`, `class_embeddings (C, D)`,
`logits (B, C)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar, get_args

import torch
import torch.nn.functional as nnf
from torch import Tensor

__all__ = [
    "InterTerm",
    "IntraTerm",
    "PairReduction",
    "PairTerm",
    "Reduction",
    "SmoothingTarget",
    "center_delta",
    "center_gradient",
    "center_inter",
    "center_loss",
    "center_offsets",
    "check_options",
    "cosine_cross_entropy",
    "cosine_loss",
    "cosine_similarities",
    "cross_entropy",
    "delta_of_offsets",
    "exponential_intra",
    "gradient_of_offsets",
    "nearest_center",
    "normalize",
    "reduced",
    "squared_distances",
    "squared_error",
    "standalone_center_loss",
]

Reduction = Literal["mean", "sum", "none"]
SmoothingTarget = Literal["all", "non_target"]
PairTerm = Literal["log1p", "log", "margin", "negative"]
PairReduction = Literal["sum", "mean"]
IntraTerm = Literal["squared", "exp"]
InterTerm = Literal["log1p", "log", "margin", "negative", "centers", "softmax"]

# Shorter embeddings have no direction: they count as zero and receive no gradient. Dividing by a tiny norm would send a
# gradient of 1/eps through the network.
_MIN_NORM = 1e-12
# Least squared distance under a logarithm; coincident points stay finite and repel no further.
_MIN_SQUARED_DISTANCE = 1e-12
# Rows of the other points whose distances are computed at once.
_CHUNK = 4096

P = ParamSpec("P")
R = TypeVar("R")


def _full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a loss in float32 or better: half tensors are lifted and autocast is off inside."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with torch.autocast(device_type=device, enabled=False):
            return function(
                *[_lift(value) for value in args],  # type: ignore[arg-type]
                **{name: _lift(value) for name, value in kwargs.items()},  # type: ignore[arg-type]
            )

    return wrapper


def _lift(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def reduced(values: Tensor, reduction: Reduction) -> Tensor:
    """Return mean or sum of values over the batch, or the values as they are."""
    if reduction == "mean":
        return values.mean()
    if reduction == "sum":
        return values.sum()
    if reduction == "none":
        return values
    raise ValueError(f"reduction is {reduction!r}; it must be 'mean', 'sum' or 'none'")


def check_options(**given: tuple[object, object]) -> None:
    """Check options against the Literal that lists their values: `check_options(pairs=(pairs, PairReduction))`.

    Raises:
        ValueError: A value is not listed.
    """
    for name, (value, choices) in given.items():
        if value not in get_args(choices):
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, get_args(choices)))}")


def _check_width(embeddings: Tensor, rows: Tensor, name: str) -> None:
    if embeddings.ndim != 2 or embeddings.shape[1] != rows.shape[1]:
        raise ValueError(
            f"embeddings have shape {tuple(embeddings.shape)} and {name} {tuple(rows.shape)}: "
            "they must be (B, D) and (C, D) with the same D"
        )


def _check_labels(embeddings: Tensor, labels: Tensor) -> None:
    if labels.dtype != torch.int64 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)} for embeddings of shape "
            f"{tuple(embeddings.shape)}: they must be int64 of shape (B,)"
        )


# ------------------------------------------------------------------------------------------------------------- cosine


@_full_precision
def normalize(embeddings: Tensor) -> Tensor:
    """Scale each row to norm 1, psi(x) = x / ||x||; a zero row stays zero and passes no gradient.

    Args:
        embeddings: (B, D).

    Returns:
        (B, D), rows of norm 1 or 0.
    """
    # After division by the largest entry, no square overflows. This comparison keeps nan.
    largest = embeddings.detach().abs().amax(dim=1, keepdim=True)
    no_direction = largest <= _MIN_NORM
    rows = embeddings / torch.where(no_direction, 1.0, largest)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(no_direction, torch.zeros_like(rows), rows / torch.where(no_direction, 1.0, norm))


@_full_precision
def cosine_similarities(embeddings: Tensor, class_embeddings: Tensor | None = None) -> Tensor:
    """Compute the cosine of each embedding to each class embedding, in [-1, 1].

    Args:
        embeddings: (B, D).
        class_embeddings: (C, D), rows of norm 1; None means one-hot, then D is C.

    Returns:
        (B, C).

    Raises:
        ValueError: The widths differ.
    """
    directions = normalize(embeddings)
    if class_embeddings is None:
        return directions
    _check_width(embeddings, class_embeddings, "class_embeddings")
    return directions @ class_embeddings.to(directions.dtype).T


@_full_precision
def cosine_loss(
    embeddings: Tensor, labels: Tensor, class_embeddings: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Compute the cosine loss 1 - <phi(y), psi(x)> of Barz & Denzler (WACV 2020), in [0, 2], for any norm of x.

    Args:
        embeddings: x, (B, D).
        labels: y, (B,).
        class_embeddings: phi, (C, D), rows of norm 1; None means one-hot, then D is C.
        reduction: Reduction over the batch.

    Returns:
        A scalar, or (B,) for `reduction="none"`.

    Raises:
        ValueError: The widths differ, or the reduction is unknown.
    """
    _check_labels(embeddings, labels)
    directions = normalize(embeddings)
    if class_embeddings is None:
        cosine = directions.gather(1, labels[:, None]).squeeze(1)
    else:
        _check_width(embeddings, class_embeddings, "class_embeddings")
        cosine = (directions * class_embeddings[labels]).sum(1)
    return reduced(1 - cosine, reduction)


@_full_precision
def cosine_cross_entropy(
    embeddings: Tensor, labels: Tensor, class_embeddings: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Compute the cross-entropy of the cosines, without head or temperature (cosine + CE as in VIPriors 2020).

    With one-hot class embeddings the logits are the normalized vector psi(x). Cosines lie in [-1, 1], so the value
    never falls below log(1 + (C - 1) exp(-sqrt(C / (C - 1)))).

    Args:
        embeddings: (B, D).
        labels: (B,).
        class_embeddings: (C, D), rows of norm 1; None means one-hot, then D is C.
        reduction: Reduction over the batch.

    Returns:
        A scalar, or (B,) for `reduction="none"`.
    """
    _check_labels(embeddings, labels)
    return nnf.cross_entropy(cosine_similarities(embeddings, class_embeddings), labels, reduction=reduction)


# ------------------------------------------------------------------------------------------------------------ softmax


@_full_precision
def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    smoothing_target: SmoothingTarget = "all",
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute the softmax cross-entropy with label smoothing in either convention.

    `smoothing_target="all"` spreads epsilon over all C classes (torch, Szegedy et al. 2016); `"non_target"` gives
    the true class 1 - epsilon and each other class epsilon / (C - 1) (Barz & Denzler 2020).

    Args:
        logits: (B, C).
        labels: (B,).
        label_smoothing: epsilon in [0, 1].
        smoothing_target: `all` or `non_target`.
        reduction: Reduction over the batch.

    Returns:
        A scalar, or (B,) for `reduction="none"`.
    """
    _check_labels(logits, labels)
    if smoothing_target not in ("all", "non_target"):
        raise ValueError(f"smoothing_target is {smoothing_target!r}; it must be 'all' or 'non_target'")
    if smoothing_target == "all" or label_smoothing == 0:
        return nnf.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction=reduction)
    log_probabilities = nnf.log_softmax(logits, dim=1)
    labeled = log_probabilities.gather(1, labels[:, None]).squeeze(1)
    others = (log_probabilities.sum(1) - labeled) / max(1, logits.shape[1] - 1)
    return reduced(-(1 - label_smoothing) * labeled - label_smoothing * others, reduction)


@_full_precision
def squared_error(
    embeddings: Tensor, labels: Tensor, class_embeddings: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """Compute the squared error ||x - phi(y)||^2 to the class embedding (Barz & Denzler 2020).

    Args:
        embeddings: x, (B, D).
        labels: y, (B,).
        class_embeddings: phi, (C, D); None means one-hot, then D is C.
        reduction: Reduction over the batch.

    Returns:
        A scalar, or (B,) for `reduction="none"`.

    Raises:
        ValueError: The widths differ, or the reduction is unknown.
    """
    _check_labels(embeddings, labels)
    if class_embeddings is None:
        targets = nnf.one_hot(labels, embeddings.shape[1]).to(embeddings.dtype)
    else:
        _check_width(embeddings, class_embeddings, "class_embeddings")
        targets = class_embeddings[labels]
    return reduced((embeddings - targets).square().sum(1), reduction)


# ------------------------------------------------------------------------------------------------------------- center


@_full_precision
def center_loss(embeddings: Tensor, labels: Tensor, centers: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Compute half the squared distance to the own center, 1/2 ||x - c_y||^2 (Wen et al., ECCV 2016, Eq. 2, over B).

    Args:
        embeddings: x, (B, D).
        labels: y, (B,).
        centers: c, (C, D).
        reduction: Reduction over the batch.

    Returns:
        A scalar, or (B,) for `reduction="none"`.

    Raises:
        ValueError: The widths differ, or the reduction is unknown.
    """
    return reduced(0.5 * center_offsets(embeddings, labels, centers).square().sum(1), reduction)


@_full_precision
def center_offsets(embeddings: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """Compute the offset c_y - x from each embedding to its own center.

    Args:
        embeddings: x, (B, D).
        labels: y, (B,).
        centers: c, (C, D).

    Returns:
        (B, D).

    Raises:
        ValueError: The widths differ.
    """
    _check_labels(embeddings, labels)
    _check_width(embeddings, centers, "centers")
    return centers.index_select(0, labels) - embeddings  # twice as fast as centers[labels] for many centers


@_full_precision
def center_delta(embeddings: Tensor, labels: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the center update of Wen et al. (ECCV 2016), Eq. 4: delta_j = sum_{i: y_i = j} (c_j - x_i) / (1 + n_j).

    The step is c_j <- c_j - alpha * delta_j: independent of the loss weight, none for classes absent from the batch.

    Args:
        embeddings: x, (B, D).
        labels: y, (B,).
        centers: c, (C, D).

    Returns:
        The K classes present, (K,) ascending, and their delta, (K, D).
    """
    return delta_of_offsets(center_offsets(embeddings, labels, centers), labels)


def delta_of_offsets(offsets: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`center_delta` from the offsets (B, D) of `center_offsets`."""
    classes, sums, counts = _class_sums(offsets, labels)
    return classes, sums.div_(1 + counts[:, None])


@_full_precision
def center_gradient(embeddings: Tensor, labels: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the mean squared distance to the own center: sum_{i: y_i = j} 2 (c_j - x_i) / B.

    The center step of pytorch-center-loss, whose published loss has no 1/2.

    Args:
        embeddings: x, (B, D).
        labels: y, (B,).
        centers: c, (C, D).

    Returns:
        The K classes present, (K,) ascending, and their gradient, (K, D).
    """
    return gradient_of_offsets(center_offsets(embeddings, labels, centers), labels)


def gradient_of_offsets(offsets: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`center_gradient` from the offsets (B, D) of `center_offsets`."""
    classes, sums, _ = _class_sums(offsets, labels)
    return classes, sums.mul_(2 / max(len(labels), 1))


def _class_sums(offsets: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return classes present (K,), sums of the offsets of their members (K, D), and member counts (K,)."""
    classes, member_of, counts = labels.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(classes), offsets.shape[1], dtype=offsets.dtype, device=offsets.device)
    return classes, sums.index_add_(0, member_of, offsets), counts


# --------------------------------------------------------------------------------------------------------- standalone


@_full_precision
def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Compute the squared Euclidean distance of each row of x to each row of y.

    Computed by a matrix product, which exports to ONNX, in float64 about a point amid y: a distance that is small
    beside the norms keeps its float32 digits. From float64 input, distances far below the spread of y lose digits.

    Args:
        x: (N, D).
        y: (M, D).

    Returns:
        (N, M), at least 0.

    Raises:
        ValueError: The widths differ.
    """
    _check_width(x, y, "the other points")
    if len(y) == 0:
        return x.new_zeros(len(x), 0)
    reference = _reference(y)
    chunks = [y[start : start + _CHUNK] for start in range(0, len(y), _CHUNK)]
    return torch.cat([_distances_by_product(x, chunk, reference).to(x.dtype) for chunk in chunks], dim=1)


@_full_precision
def nearest_center(embeddings: Tensor, centers: Tensor, chunk_size: int = _CHUNK) -> Tensor:
    """Find the center nearest to each embedding with B x chunk_size distances in memory.

    Args:
        embeddings: (B, D).
        centers: (C, D).
        chunk_size: Centers at a time, at least 1.

    Returns:
        (B,) int64, the first of equally near ones; 0 for an embedding with nan.

    Raises:
        ValueError: The widths differ.
    """
    _check_width(embeddings, centers, "centers")
    reference = _reference(centers)
    nearest = torch.zeros(len(embeddings), dtype=torch.int64, device=embeddings.device)
    least = torch.full((len(embeddings),), torch.inf, dtype=torch.float64, device=embeddings.device)
    for start in range(0, len(centers), chunk_size):
        distances = _distances_by_product(embeddings, centers[start : start + chunk_size], reference)
        here, index = distances.min(1)
        nearest = torch.where(here < least, index + start, nearest)
        least = torch.minimum(here, least)
    return nearest


def _reference(points: Tensor) -> Tensor:
    """Return the median (D,) of points (N, D): one of their coordinates, so that differences on a grid stay exact."""
    some = points[:256].detach()
    return some.topk((len(some) + 1) // 2, dim=0, largest=False).values[-1]  # median() has no ONNX form


def _distances_by_product(x: Tensor, y: Tensor, reference: Tensor) -> Tensor:
    """Return squared distances (N, M) by ||x||^2 + ||y||^2 - 2xy, many times faster than from differences.

    In float64, about a reference amid the points, this form loses no digit of float32, except between points that
    nearly coincide far from all others.
    """
    if x.device.type == "mps":  # has no float64
        return _distances_by_differences(x, y)
    x, y = x.double() - reference.double(), y.double() - reference.double()
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min(0)


def _distances_by_differences(x: Tensor, y: Tensor) -> Tensor:
    """Return squared distances (N, M) with every digit, for terms that weigh a pair by 1 / d2; no form for ONNX."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


@_full_precision
def standalone_center_loss(
    embeddings: Tensor,
    labels: Tensor,
    centers: Tensor,
    *,
    inter: PairTerm = "log1p",
    margin: float = 1.0,
    pairs: PairReduction = "sum",
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor]:
    """Compute the standalone center loss: a pull to the own center and a push between different classes.

    intra_i = ||x_i - c_{y_i}||^2 and inter_i = sum_{j: y_j != y_i} g(||x_i - x_j||^2); the loss to minimize is
    w_intra * intra - w_inter * inter. With d2 the squared distance, g is

    - `log1p`: log(1 + d2), as in the source's code; near pairs weigh most, at most 1;
    - `log`: log d2, as in its README; a pair weighs 1 / d2;
    - `margin`: min(d2, margin); only pairs nearer than the margin push;
    - `negative`: d2; unbounded, all pairs push equally.

    Args:
        embeddings: x, (B, D).
        labels: y, (B,).
        centers: c, (C, D).
        inter: Name of g.
        margin: Squared distance, for `inter="margin"`.
        pairs: `sum` over the ordered different-class pairs, divided by B as in the source, so that the term grows with
            the batch; or `mean` over these pairs.
        reduction: Reduction over the batch.

    Returns:
        intra and inter, each a scalar, or (B,) for `reduction="none"`.

    Raises:
        ValueError: The widths differ, or an option is unknown.
    """
    intra = center_offsets(embeddings, labels, centers).square().sum(1)
    different = labels[:, None] != labels[None, :]
    if inter == "log":
        distances = _distances_by_differences(embeddings, embeddings)
    else:
        distances = _distances_by_product(embeddings, embeddings, _reference(embeddings)).to(embeddings.dtype)
    if inter == "log1p":
        repulsion = torch.log1p(distances)
    elif inter == "log":
        repulsion = torch.log(distances.clamp_min(_MIN_SQUARED_DISTANCE))
    elif inter == "margin":
        repulsion = distances.clamp_max(margin)
    elif inter == "negative":
        repulsion = distances
    else:
        raise ValueError(f"inter is {inter!r}; it must be 'log1p', 'log', 'margin' or 'negative'")
    push = torch.where(different, repulsion, torch.zeros_like(repulsion)).sum(1)
    if pairs == "mean":
        push = push * (len(labels) / different.sum().clamp_min(1))
    elif pairs != "sum":
        raise ValueError(f"pairs is {pairs!r}; it must be 'sum' or 'mean'")
    return reduced(intra, reduction), reduced(push, reduction)


@_full_precision
def exponential_intra(
    embeddings: Tensor, labels: Tensor, centers: Tensor, scale: float = 1.0, reduction: Reduction = "mean"
) -> Tensor:
    """Compute exp(scale * ||x - c_y||^2), an alternative pull of the standalone center loss that its author tried.

    The exponent is clamped at 80, near the end of float32: farther embeddings have a finite loss and no gradient.

    Args:
        embeddings: x, (B, D).
        labels: y, (B,).
        centers: c, (C, D).
        scale: alpha.
        reduction: Reduction over the batch.

    Returns:
        A scalar, or (B,) for `reduction="none"`.
    """
    distances = center_offsets(embeddings, labels, centers).square().sum(1)
    return reduced(torch.exp((scale * distances).clamp_max(80.0)), reduction)


@_full_precision
def center_inter(centers: Tensor) -> Tensor:
    """Compute log distances between centers, (1 / C) sum_{i != j} log ||c_i - c_j||^2: the push of the exp pull.

    Args:
        centers: (C, D).

    Returns:
        A scalar; the loss to minimize subtracts it. 0 for a single class.
    """
    distances = _distances_by_differences(centers, centers)
    others = ~torch.eye(len(centers), dtype=torch.bool, device=centers.device)
    logs = torch.log(distances.clamp_min(_MIN_SQUARED_DISTANCE))
    return torch.where(others, logs, torch.zeros_like(logs)).sum() / len(centers)
