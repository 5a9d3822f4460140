"""Cosine loss to fixed class embeddings, alone or with cross-entropy (Barz & Denzler, WACV 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from metricloss_pl.backbones import Backbone
from metricloss_pl.class_embeddings import (
    HIERARCHIES,
    Hierarchy,
    are_embeddings,
    one_hot,
    open_hierarchy,
    semantic,
    simplex,
    stored,
)
from metricloss_pl.errors import UserError, check_choice, reason
from metricloss_pl.files import FilePath
from metricloss_pl.losses import CosineLoss
from metricloss_pl.losses import functional as F
from metricloss_pl.mixing import Mixing
from metricloss_pl.regimes._class_embeddings import ClassEmbeddings
from metricloss_pl.regimes.base import Classifier, ClassWeights, Decayed, Interval, sgd

__all__ = ["CosineClassifier"]

Head = Literal["bn_linear", "none"]
_NAMED = ("one_hot", "simplex")


class CosineHead(nn.Module):
    """The learned head of cosine + cross-entropy: Linear(BatchNorm(ReLU(x / ||x||))), (B, D) to logits (B, C)."""

    def __init__(self, embedding_dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(embedding_dim)
        self.linear = nn.Linear(embedding_dim, num_classes)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, D) to logits (B, C)."""
        directions = F.normalize(embeddings).to(self.linear.weight.dtype)
        logits: Tensor = self.linear(self.norm(directions.relu()))
        return logits


class CosineClassifier(Classifier):
    """Embeddings turned towards fixed class embeddings: 1 - <phi(y), psi(x)> + ce_weight * cross-entropy.

    The cross-entropy is that of a learned head ReLU -> BatchNorm -> Linear on the normalised embedding, from which the
    prediction then comes, as in the authors' code; or, with ``head="none"``, of the bare cosines. Without cross-entropy
    (``ce_weight=0``) no head is built. The nearest class embedding is the prediction where there is no head.

    Args:
        num_classes: C; linked from the data on the command line.
        backbone: Network from images to features, with an attribute ``num_features``.
        class_names: Names in the labels' order; linked from the data on the command line.
        class_embeddings: phi: ``one_hot``, ``simplex`` (C directions of largest equal angles), or the file of a class
            hierarchy, whose similarities of classes become the dot products, or the name of one: ``cub_flat``,
            ``cub_wikispecies``, ``cub_deep``, ``cifar100`` (all downloaded once), ``cifar100_superclasses``; for
            ImageNet give the file ``ILSVRC/wordnet.parent-child.mintree.txt`` of cvjena/semantic-embeddings. Or
            ``semantic``: of the hierarchy that comes with the data. Or a file of embeddings themselves, ``.npz`` or
            ``.pickle``, with arrays ``embedding`` (C, D) and ``ind2label``; in Python also any (C, D) tensor. Rows are
            of norm 1. The classes are leaves of the hierarchy or rows of the file, found by their names.
            ``checkpoint``: those that a checkpoint brings, ``embedding_dim`` wide, which is its own setting, since it
            needs no file.
        class_list: File of lines ``<id> <class name>``, where the file does not call its leaves or rows as the classes.
        hierarchy: File of the hierarchy that comes with the data, for ``semantic``; linked from the data on the command
            line.
        embedding_dim: ``auto``: a linear layer as wide as the class embeddings. An integer or None (the features as
            they are) must agree with them; those of a hierarchy are approximated in so many dimensions as an integer
            says.
        ce_weight: lambda, the weight of the cross-entropy.
        head: ``bn_linear``: the learned head; ``none``: cross-entropy of the bare cosines.
        head_weight_decay: Weight decay of the head's Linear weight alone, added to the optimizer as a group of its own;
            None: as all other parameters.
        optimizer: From parameters to an optimizer.
        lr_scheduler: From an optimizer to a learning-rate schedule.
        lr_scheduler_interval: Whether the schedule steps each ``epoch`` or each ``step``.
        class_weights: ``balanced``: an image's loss weighs N / (C * N_class), counts of the training part. None: 1.
        batch_mixing: ``CutMix`` or ``MixUp`` of the training images, each process within its own batch. None: no
            mixing.
        weight_decay_on: What the optimizer's weight decay acts on: ``all`` parameters, or ``weights`` of convolutions
            and dense layers alone, not biases and the parameters of norms.

    Raises:
        UserError: A negative weight, an embedding_dim that is not the class embeddings' width, or a hierarchy that is
            missing, not a tree, or lacks a class.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        class_names: Sequence[str] | None = None,
        class_embeddings: ClassEmbeddings = "one_hot",
        class_list: FilePath | None = None,
        hierarchy: FilePath | None = None,
        embedding_dim: Literal["auto"] | int | None = "auto",
        ce_weight: float = 0.1,
        head: Head = "bn_linear",
        head_weight_decay: float | None = None,
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Interval = "epoch",
        class_weights: ClassWeights | None = None,
        batch_mixing: Mixing | None = None,
        weight_decay_on: Decayed = "all",
    ) -> None:
        dim = embedding_dim if isinstance(embedding_dim, int) else None
        tree = None
        named = class_embeddings if isinstance(class_embeddings, str) else None
        if named == "checkpoint":
            auto = getattr(backbone, "num_features", num_classes) if embedding_dim is None else num_classes
            targets: Tensor | None = torch.full((num_classes, max(1, auto if dim is None else dim)), torch.nan)
        else:
            given = _of_data(hierarchy) if named == "semantic" else class_embeddings
            targets, tree = _class_embeddings(given, num_classes, class_names, class_list, dim)
        width = num_classes if targets is None else targets.shape[1]
        super().__init__(
            num_classes=num_classes,
            backbone=backbone,
            class_names=class_names,
            embedding_dim=width if embedding_dim == "auto" else embedding_dim,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_scheduler_interval=lr_scheduler_interval,
            class_weights=class_weights,
            batch_mixing=batch_mixing,
            weight_decay_on=weight_decay_on,
        )
        check_choice("head", head, Head)
        if ce_weight < 0:
            raise UserError(f"ce_weight is {ce_weight}; it must be at least 0")
        if self.embedding_dim != width:
            given = "the backbone's features" if embedding_dim is None else "embedding_dim"
            raise UserError(
                f"{given} are {self.embedding_dim} wide and the class embeddings {width}: "
                "set model.embedding_dim to auto"
            )
        self.criterion = CosineLoss(targets, reduction="none")
        self.class_hierarchy = tree
        self.ce_weight = ce_weight
        self.head_weight_decay = head_weight_decay
        self.head = CosineHead(self.embedding_dim, num_classes) if ce_weight > 0 and head == "bn_linear" else None

    def losses(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cosine loss and cross-entropy of a batch: embeddings (B, D), labels (B,)."""
        cosine = self.reduce_loss(self.criterion(embeddings, labels), labels)
        if self.ce_weight == 0:
            return {"loss": cosine}
        if self.head is None:
            values = F.cosine_cross_entropy(embeddings, labels, self.criterion.class_embeddings, "none")
        else:
            values = F.cross_entropy(self.head(embeddings), labels, reduction="none")
        cross_entropy = self.reduce_loss(values, labels)
        loss = cosine + self.ce_weight * cross_entropy
        return {"loss": loss, "cosine_loss": cosine, "cross_entropy": cross_entropy}

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Head logits, or cosines to the class embeddings: (B, C) of embeddings (B, D)."""
        if self.head is None:
            return self.criterion.similarities(embeddings)
        logits: Tensor = self.head(embeddings)
        return logits

    def metric_embeddings(self, embeddings: Tensor) -> Tensor:
        """Directions (B, D): embeddings on the unit sphere, since the loss is blind to their norm."""
        return F.normalize(embeddings)

    anchor_name = "class embedding"
    kept_in_checkpoint = ("class_embeddings", "class_list")

    @property
    def class_anchors(self) -> Tensor:
        """The class embeddings (C, D)."""
        targets = self.criterion.class_embeddings
        return one_hot(self.num_classes).to(self.device) if targets is None else targets

    def on_train_start(self) -> None:
        super().on_train_start()
        if (targets := self.criterion.class_embeddings) is not None and targets.isnan().any():
            raise UserError(
                "class_embeddings is 'checkpoint', and no checkpoint was loaded: it must be 'one_hot', 'simplex', "
                "'semantic', the file of a hierarchy or a (C, D) tensor"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        settings, targets = checkpoint["hyper_parameters"], self.criterion.class_embeddings
        if "hierarchy" in settings:
            settings["hierarchy"] = None
        if targets is not None and settings.get("class_embeddings") not in _NAMED:
            # They are in the state by now, and the file that they come from may be gone.
            settings |= {"class_embeddings": "checkpoint", "class_list": None}
            if settings.get("embedding_dim") is not None:
                settings["embedding_dim"] = targets.shape[1]
        if (tree := self.class_hierarchy) is not None:
            plain = {"parents": dict(tree.parents), "names": dict(tree.names), "source": tree.source}
            checkpoint["class_hierarchy"] = plain

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if (plain := checkpoint.get("class_hierarchy")) is not None:
            try:
                self.class_hierarchy = Hierarchy(**plain)
            except (UserError, TypeError, ValueError, AttributeError, LookupError) as error:  # of what stands in a file
                raise UserError(f"the checkpoint's class hierarchy can't be read ({reason(error)})") from error

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters, with the head's Linear weight apart where it has a weight decay of its own."""
        if self.head is None or self.head_weight_decay is None:
            return super().parameter_groups()
        weight = self.head.linear.weight
        others = [p for p in self.parameters() if p.requires_grad and p is not weight]
        return [{"params": others}, {"params": [weight], "weight_decay": self.head_weight_decay}]


def _of_data(hierarchy: FilePath | None) -> FilePath:
    """The hierarchy that comes with the data."""
    if hierarchy is None:
        missing = "the data bring no hierarchy: name its file"
    elif not Path(hierarchy).is_file():
        missing = f"there is no {hierarchy}: write the hierarchy there, or name another file"
    else:
        return hierarchy
    raise UserError(f"class_embeddings is 'semantic', and {missing} by --model.class_embeddings FILE")


def _class_embeddings(
    given: FilePath | Tensor,
    num_classes: int,
    class_names: Sequence[str] | None,
    class_list: FilePath | None,
    dim: int | None,
) -> tuple[Tensor | None, Hierarchy | None]:
    """The (C, D) phi, and the hierarchy that they are of.

    None for one-hot, whose targets are an index: the identity as a dense matrix would cost C x C.
    """
    if isinstance(given, Tensor):
        if given.ndim != 2 or len(given) != num_classes:
            raise UserError(f"class_embeddings have shape {tuple(given.shape)}; they must be ({num_classes}, D)")
        return _checked(given, "class_embeddings"), None
    if given in _NAMED and class_list is not None:
        raise UserError(f"class_list is {str(class_list)!r}: it is for a hierarchy, and class_embeddings is {given!r}")
    if given == "one_hot":
        return None, None
    if given == "simplex":
        return simplex(num_classes), None
    if str(given) not in HIERARCHIES and not Path(str(given)).is_file():
        names = ", ".join(map(repr, (*_NAMED, "semantic", *HIERARCHIES)))
        raise UserError(
            f"class_embeddings is {str(given)!r}: it must be {names} or the file of a hierarchy or of embeddings, and "
            "there is no such file; where it lies elsewhere, name its path"
        )
    called = [str(label) for label in range(num_classes)] if class_names is None else class_names
    if are_embeddings(given):
        return _checked(stored(given, called, class_list), f"embeddings {given}"), None
    tree = open_hierarchy(given, class_list)
    return semantic(tree, called, dim).float(), tree


def _checked(embeddings: Tensor, source: str) -> Tensor:
    if not (embeddings.float().norm(dim=1) - 1).abs().max() < 1e-4:
        raise UserError(f"{source} have rows whose norm is not 1: divide each by its norm")
    return embeddings.float()
