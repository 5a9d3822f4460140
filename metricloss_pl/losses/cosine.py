"""Cosine loss to fixed class embeddings, alone or with cross-entropy."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from metricloss_pl.losses import functional as F
from metricloss_pl.losses._full_precision import FullPrecisionModule

__all__ = ["CosineCrossEntropyLoss", "CosineHead", "CosineLoss", "Head"]

Head = Literal["bn_linear", "none"]


class CosineLoss(FullPrecisionModule):
    """Cosine loss 1 - <phi(y), psi(x)> (Barz & Denzler, WACV 2020), in [0, 2].

    Args:
        class_embeddings: phi, (C, D), rows of norm 1, kept as a buffer that never becomes half precision. None:
            one-hot, for which D is C.
        reduction: Reduction over the batch: `mean`, `sum` or `none`.

    Raises:
        TypeError: `class_embeddings` is not a tensor.
        ValueError: `class_embeddings` is not a matrix, or `reduction` is unknown.
    """

    class_embeddings: Tensor | None

    def __init__(self, class_embeddings: Tensor | None = None, reduction: F.Reduction = "mean") -> None:
        super().__init__()
        F.check_options(reduction=(reduction, F.Reduction))
        if class_embeddings is not None and not isinstance(class_embeddings, Tensor):
            raise TypeError(
                f"class_embeddings is {class_embeddings!r}; it must be a (C, D) tensor, or None for one-hot embeddings"
            )
        if class_embeddings is not None and class_embeddings.ndim != 2:
            raise ValueError(f"class_embeddings have shape {tuple(class_embeddings.shape)}; it must be (C, D)")
        self.reduction: F.Reduction = reduction
        self.register_buffer("class_embeddings", class_embeddings)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of embeddings (B, D) and labels (B,): a scalar, or (B,) for `reduction="none"`."""
        return F.cosine_loss(embeddings, labels, self.class_embeddings, self.reduction)

    def similarities(self, embeddings: Tensor) -> Tensor:
        """Return the cosines (B, C) of embeddings (B, D) to the class embeddings; the largest is the prediction."""
        return F.cosine_similarities(embeddings, self.class_embeddings)


class CosineHead(nn.Module):
    """Head of cosine + cross-entropy: Linear(BatchNorm(ReLU(x / ||x||))), embeddings (B, D) to logits (B, C)."""

    def __init__(self, embedding_dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(embedding_dim)
        self.linear = nn.Linear(embedding_dim, num_classes)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return logits (B, C) of embeddings (B, D)."""
        directions = F.normalize(embeddings).to(self.linear.weight.dtype)
        logits: Tensor = self.linear(self.norm(directions.relu()))
        return logits


class CosineCrossEntropyLoss(CosineLoss):
    """Cosine loss + ce_weight * cross-entropy (Barz & Denzler, WACV 2020).

    With `head="bn_linear"`, as in the authors' code, the cross-entropy is that of a learned head
    ReLU -> BatchNorm -> Linear on the normalized embedding. With `head="none"` it is that of the cosines themselves, as
    in the VIPriors form. A head whose weight is 0 is not built. In a plain PyTorch loop::

        criterion = CosineCrossEntropyLoss(num_classes)
        optimizer = torch.optim.SGD([*network.parameters(), *criterion.parameters()], lr=0.05, momentum=0.9)
        ...
        criterion(network(images), labels).backward()
        optimizer.step()
        predictions = criterion.scores(network(images)).argmax(1)

    Args:
        num_classes: Number of classes C.
        class_embeddings: phi, (C, D), rows of norm 1. None: one-hot, for which D is C.
        ce_weight: lambda, the weight of the cross-entropy, at least 0.
        head: `bn_linear` or `none`.
        reduction: Reduction over the batch: `mean`, `sum` or `none`.

    Raises:
        TypeError: `class_embeddings` is not a tensor.
        ValueError: `class_embeddings` has not C rows, `ce_weight` is negative, or an option is unknown.
    """

    def __init__(
        self,
        num_classes: int,
        class_embeddings: Tensor | None = None,
        ce_weight: float = 0.1,
        head: Head = "bn_linear",
        reduction: F.Reduction = "mean",
    ) -> None:
        super().__init__(class_embeddings, reduction)
        F.check_options(head=(head, Head))
        if not ce_weight >= 0:
            raise ValueError(f"ce_weight is {ce_weight}; it must be at least 0")
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; it must be at least 2")
        if class_embeddings is not None and len(class_embeddings) != num_classes:
            raise ValueError(
                f"class_embeddings have shape {tuple(class_embeddings.shape)}; it must be ({num_classes}, D)"
            )
        self.ce_weight = ce_weight
        self.embedding_dim = num_classes if class_embeddings is None else class_embeddings.shape[1]
        self.head = CosineHead(self.embedding_dim, num_classes) if ce_weight > 0 and head == "bn_linear" else None

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of embeddings (B, D) and labels (B,): a scalar, or (B,) for `reduction="none"`."""
        cosine, cross_entropy = self.parts(embeddings, labels)
        return cosine if cross_entropy is None else cosine + self.ce_weight * cross_entropy

    def parts(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the unweighted cosine loss and cross-entropy, which is None if its weight is 0.

        Args:
            embeddings: (B, D).
            labels: (B,).
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_dim:
            raise ValueError(f"embeddings have shape {tuple(embeddings.shape)}; it must be (B, {self.embedding_dim})")
        cosine = super().forward(embeddings, labels)
        if self.ce_weight == 0:
            return cosine, None
        if self.head is None:
            return cosine, F.cosine_cross_entropy(embeddings, labels, self.class_embeddings, self.reduction)
        return cosine, F.cross_entropy(self.head(embeddings), labels, reduction=self.reduction)

    def scores(self, embeddings: Tensor) -> Tensor:
        """Return class scores (B, C) of embeddings (B, D): logits of the head, or cosines without one."""
        if self.head is None:
            return self.similarities(embeddings)
        logits: Tensor = self.head(embeddings)
        return logits
