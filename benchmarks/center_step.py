"""Training step of the center loss alone, against other implementations, for up to a million classes.

A step is the loss, the gradient of the embeddings and the update of the centers. Each step uses another
batch of labels, so that its centers come from memory rather than from a cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as nnf
from _measure import Step, compare, peak_growth, quick_asked, report, report_ratio, too_large
from torch import Tensor, nn
from torch.optim import SGD

from metricloss_pl.losses import CenterLoss

ALPHA = 0.5
FLOAT_BYTES = 4


def batches(num_classes: int, batch_size: int, dim: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield embeddings (B, D) that require a gradient, and uniformly drawn labels (B,), endlessly."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(batch_size, dim, generator=generator, requires_grad=True)
    for labels in itertools.cycle(torch.randint(num_classes, (1000, batch_size), generator=generator)):
        embeddings.grad = None
        yield embeddings, labels


def ours(num_classes: int, batch_size: int, dim: int) -> Step:
    torch.manual_seed(0)
    criterion = CenterLoss(num_classes, dim)
    optimizer, drawn = SGD(criterion.parameters(), lr=ALPHA), batches(num_classes, batch_size, dim)

    def step() -> Tensor:
        loss = criterion(*next(drawn))
        loss.backward()
        criterion.assign_center_grad()
        optimizer.step()
        return loss

    return step


def autograd_step(loss_of: Callable[[Tensor, Tensor], Tensor], optimizer: SGD, drawn: Iterator[Any]) -> Step:
    def step() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(*next(drawn))
        loss.backward()
        optimizer.step()
        return loss

    return step


def distance_matrix(num_classes: int, batch_size: int, dim: int) -> Step:
    """Compute x^2 + c^2 - 2xc for all pairs and mask other centers; centers by autograd, as pytorch-center-loss."""
    torch.manual_seed(0)
    centers = nn.Parameter(torch.randn(num_classes, dim))

    def loss_of(embeddings: Tensor, labels: Tensor) -> Tensor:
        squares = embeddings.square().sum(1, keepdim=True) + centers.square().sum(1)
        distances = torch.addmm(squares, embeddings, centers.T, alpha=-2)
        return (distances * (labels[:, None] == torch.arange(num_classes))).clamp(1e-12, 1e12).sum() / batch_size

    return autograd_step(loss_of, SGD([centers], lr=ALPHA), batches(num_classes, batch_size, dim))


class CountNormalized(torch.autograd.Function):
    """Half mean squared distance whose backward gives Eq. 4's step to each of the C centers, present or not."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
        offsets = centers[labels] - embeddings
        ctx.save_for_backward(offsets, labels, centers)
        return offsets.square().sum() / 2 / len(labels)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor]:
        offsets, labels, centers = ctx.saved_tensors
        counts = torch.ones(len(centers)).scatter_add_(0, labels, torch.ones(len(labels)))
        sums = torch.zeros_like(centers).scatter_add_(0, labels[:, None].expand_as(offsets), offsets)
        return -offsets * (grads[0] / len(labels)), None, sums.div_(counts[:, None])


def dense_backward(num_classes: int, batch_size: int, dim: int) -> Step:
    torch.manual_seed(0)
    centers = nn.Parameter(torch.randn(num_classes, dim))
    drawn = batches(num_classes, batch_size, dim)
    return autograd_step(lambda x, y: CountNormalized.apply(x, y, centers), SGD([centers], lr=ALPHA), drawn)


def embedding(num_classes: int, batch_size: int, dim: int, sparse: bool) -> Step:
    """Look up centers in `nn.Embedding`; their gradient (c - x) / B is another, cheaper rule than Eq. 4."""
    torch.manual_seed(0)
    centers = nn.Embedding(num_classes, dim, sparse=sparse)
    optimizer, drawn = SGD(centers.parameters(), lr=ALPHA), batches(num_classes, batch_size, dim)
    return autograd_step(lambda x, y: (x - centers(y)).square().sum() / 2 / batch_size, optimizer, drawn)


def softmax_head(num_classes: int, batch_size: int, dim: int) -> Step:
    """Run a linear head, cross-entropy and SGD with momentum: the rest of a classifier with as many classes."""
    head = nn.Linear(dim, num_classes)
    optimizer = SGD(head.parameters(), lr=0.1, momentum=0.9)
    drawn = batches(num_classes, batch_size, dim)
    return autograd_step(lambda x, y: nnf.cross_entropy(head(x), y), optimizer, drawn)


class Sizes(NamedTuple):
    """Number of classes C, batch size B and embedding dimension D."""

    num_classes: int
    batch_size: int
    dim: int


class Peer(NamedTuple):
    """Another implementation of the step, with its peak number of (C, D) tables and (B, C) matrices."""

    prepare: Callable[[int, int, int], Step]
    tables: int
    matrices: int

    def bytes_needed(self, sizes: Sizes) -> int:
        return FLOAT_BYTES * sizes.num_classes * (self.tables * sizes.dim + self.matrices * sizes.batch_size)


PEERS = {
    "distance_matrix": Peer(distance_matrix, tables=4, matrices=3),
    "dense_backward": Peer(dense_backward, tables=2, matrices=0),
    "embedding_dense": Peer(partial(embedding, sparse=False), tables=2, matrices=0),
    "embedding_sparse": Peer(partial(embedding, sparse=True), tables=1, matrices=0),
}
OURS = Peer(ours, tables=1, matrices=0)
HEAD = Peer(softmax_head, tables=3, matrices=1)


def against_peers(sizes: Sizes, quick: bool) -> dict[str, tuple[float, float]]:
    """Print a line for each peer, and return the medians of ours and theirs by name, if they fit into memory."""
    step, medians, facts = ours(*sizes), {}, sizes._asdict()
    for name, peer in PEERS.items():
        if reason := too_large(peer.bytes_needed(sizes)):
            report("center step", "skipped", against=name, **reason, **facts)
        else:
            medians[name] = compare("center step", ("ours", step), (name, peer.prepare(*sizes)), quick=quick, **facts)
    return medians


def best_dense(medians: dict[str, tuple[float, float]], sizes: Sizes) -> None:
    """Print a line for the best peer with a dense gradient, which also names the fastest of all."""
    relative = {"ours": 1.0} | {name: theirs / own for name, (own, theirs) in medians.items()}
    best = min(medians.keys() - {"embedding_sparse"}, key=relative.__getitem__, default=None)
    if best is not None:
        own, theirs = medians[best]
        facts = {"fastest_of_all": min(relative, key=relative.__getitem__), "goal": 500, **sizes._asdict()}
        report_ratio("center step, best dense peer", ("ours", own), (best, theirs), **facts)


def beside_the_head(sizes: Sizes, quick: bool) -> None:
    """Print a line against the softmax head; if it does not fit, its bytes and a line with a tenth of the classes."""
    subject, facts = "center step beside the softmax head", sizes._asdict()
    if reason := too_large(HEAD.bytes_needed(sizes)):
        table, logits = (FLOAT_BYTES * sizes.num_classes * width for width in (sizes.dim, sizes.batch_size))
        parts = {"weight_bytes": table, "gradient_bytes": table, "momentum_bytes": table, "logits_bytes": logits}
        report(subject, "arithmetic", **parts, **reason, **facts)
        beside_the_head(sizes._replace(num_classes=sizes.num_classes // 10), quick)
    else:
        compare(subject, ("ours", ours(*sizes)), ("softmax_head", softmax_head(*sizes)), quick=quick, **facts)


def many_classes(many: Sizes, few: Sizes, quick: bool) -> None:
    """Print our peak memory beyond the centers and our time with many classes, against those with few."""
    subject, names = "center step, many classes", [f"ours at C = {sizes.num_classes}" for sizes in (many, few)]
    shape = {"batch_size": many.batch_size, "dim": many.dim}
    grown = [peak_growth(ours, *sizes, small=(10, 8, 16)) for sizes in (many, few)]
    if grown[0] is not None and grown[1] is not None:
        report_ratio(f"{subject}, peak memory", (names[0], grown[0]), (names[1], grown[1]), unit="bytes", **shape)
    compare(subject, (names[0], ours(*many)), (names[1], ours(*few)), quick=quick, goal=0.5, **shape)


def main() -> None:
    quick = quick_asked(__doc__)
    shape = (32, 16) if quick else (256, 512)
    cases = [Sizes(count, *shape) for count in ((10, 100) if quick else (10, 1000, 100_000, 1_000_000))]
    cases = [sizes for sizes in cases if not too_large(OURS.bytes_needed(sizes))]
    many_classes(cases[-1], cases[0 if quick else 1], quick)
    for sizes in cases:
        medians = against_peers(sizes, quick)
    best_dense(medians, cases[-1])
    beside_the_head(cases[-1], quick)


if __name__ == "__main__":
    main()
