"""Cosine loss to fixed class embeddings, alone or with cross-entropy (Barz & Denzler, WACV 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

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
from metricloss_pl.class_embeddings.argument import ClassEmbeddings
from metricloss_pl.errors import UserError, check_choice, reason, refusing
from metricloss_pl.files import FilePath
from metricloss_pl.losses import CosineCrossEntropyLoss
from metricloss_pl.losses import functional as F
from metricloss_pl.losses.cosine import Head
from metricloss_pl.regimes.base import Classifier

__all__ = ["CosineClassifier"]

_NAMED = ("one_hot", "simplex")


class CosineClassifier(Classifier):
    """Classifier with fixed class embeddings: 1 - <phi(y), psi(x)> + ce_weight * cross-entropy.

    The cross-entropy is that of a learned head ReLU -> BatchNorm -> Linear on the normalized embedding, as in the
    authors' code, or with `head="none"` that of the cosines. The prediction is the largest logit of the head, or the
    nearest class embedding where there is no head. No head is built if `ce_weight` is 0.

    Args:
        num_classes: Number of classes C; linked from the data on the command line.
        backbone: Network from images to features (B, F).
        class_names: Names in the order of the labels; linked from the data on the command line. None: "0", "1", ...
        embedding_dim: Width D of the linear layer. `auto`: that of the class embeddings. Embeddings of a hierarchy are
            approximated in as many dimensions as an integer says; others must have this width. None: the features are
            the embeddings.
        class_embeddings: phi, (C, D), rows of norm 1: `one_hot`; `simplex` (C directions with largest equal angles);
            `semantic`, from the class hierarchy of the data; the name of a published hierarchy (`cub_flat`,
            `cub_wikispecies`, `cub_deep`, `cifar100`, all downloaded once, or `cifar100_superclasses`); the file of a
            hierarchy, whose class similarities become the dot products; a file of embeddings (`.npz`) with
            arrays `embedding` (C, D) and `ind2label`; in Python also a tensor. Classes are matched by name. None: the
            embeddings of the checkpoint that is loaded.
        class_list: File of lines `<id> <class name>`, for files whose leaves or rows are named otherwise than the
            classes.
        hierarchy: File of the hierarchy of the data, for `semantic`; linked from the data on the command line.
        ce_weight: lambda, the weight of the cross-entropy, at least 0.
        head: `bn_linear`, the learned head; or `none`, cross-entropy of the cosines.
        head_weight_decay: Weight decay of the weight of the head's linear layer. None: that of the other parameters.
        kwargs: Arguments of `Classifier`.

    Raises:
        UserError: `ce_weight` is negative, `embedding_dim` is not the width of the class embeddings, or a hierarchy is
            missing, not a tree, or lacks a class.
    """

    anchor_name = "class embedding"

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        class_names: Sequence[str] | None = None,
        embedding_dim: Literal["auto"] | int | None = "auto",
        *,
        class_embeddings: ClassEmbeddings = "one_hot",
        class_list: FilePath | None = None,
        hierarchy: FilePath | None = None,
        ce_weight: float = 0.1,
        head: Head = "bn_linear",
        head_weight_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice("head", head, Head)
        dim = embedding_dim if isinstance(embedding_dim, int) else None
        if class_embeddings is None:
            if embedding_dim is None:
                dim = kwargs.get("num_features") or getattr(backbone, "num_features", None)
            targets: Tensor | None = torch.full((num_classes, max(1, dim or num_classes)), torch.nan)
            tree = None
        else:
            targets, tree = _class_embeddings(class_embeddings, num_classes, class_names, class_list, hierarchy, dim)
        width = num_classes if targets is None else targets.shape[1]
        layer_width = width if embedding_dim == "auto" else embedding_dim
        super().__init__(num_classes, backbone, class_names, layer_width, **kwargs)
        if self.embedding_dim != width:
            given = "the backbone's features" if embedding_dim is None else "embedding_dim"
            raise UserError(
                f"{given} are {self.embedding_dim} wide and the class embeddings {width}: "
                "set model.embedding_dim to auto"
            )
        with refusing("metricloss_pl.losses", ValueError):
            self.criterion = CosineCrossEntropyLoss(num_classes, targets, ce_weight, head, reduction="none")
        self.class_hierarchy = tree
        self.head_weight_decay = head_weight_decay

    def losses(self, embeddings: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the total loss, cosine loss and cross-entropy of embeddings (B, D) and labels (B,)."""
        cosine_values, cross_entropy_values = self.criterion.parts(embeddings, labels)
        cosine = self.reduce_loss(cosine_values, labels)
        if cross_entropy_values is None:
            return {"loss": cosine}
        cross_entropy = self.reduce_loss(cross_entropy_values, labels)
        loss = cosine + self.criterion.ce_weight * cross_entropy
        return {"loss": loss, "cosine_loss": cosine, "cross_entropy": cross_entropy}

    def class_scores(self, embeddings: Tensor) -> Tensor:
        """Return head logits, or cosines to the class embeddings: (B, C) of embeddings (B, D)."""
        return self.criterion.scores(embeddings)

    def metric_embeddings(self, embeddings: Tensor) -> Tensor:
        """Return embeddings (B, D) on the unit sphere, since the loss ignores their norm."""
        return F.normalize(embeddings)

    @property
    def class_anchors(self) -> Tensor:
        """Class embeddings (C, D)."""
        targets = self.criterion.class_embeddings
        return one_hot(self.num_classes).to(self.device) if targets is None else targets

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return all parameters, the weight of the head apart if it has a weight decay of its own."""
        if self.criterion.head is None or self.head_weight_decay is None:
            return super().parameter_groups()
        weight = self.criterion.head.linear.weight
        others = [p for p in self.parameters() if p.requires_grad and p is not weight]
        return [{"params": others}, {"params": [weight], "weight_decay": self.head_weight_decay}]

    def _check_class_embeddings(self) -> None:
        if (targets := self.criterion.class_embeddings) is not None and targets.isnan().any():
            raise UserError(
                "class_embeddings is null, and no checkpoint was loaded: it must be 'one_hot', 'simplex', 'semantic', "
                "or the name or file of a hierarchy"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        self._check_class_embeddings()
        return super().configure_optimizers()

    def on_validation_start(self) -> None:
        self._check_class_embeddings()

    on_test_start = on_predict_start = on_validation_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        settings, targets = checkpoint["hyper_parameters"], self.criterion.class_embeddings
        if "hierarchy" in settings:
            settings["hierarchy"] = None
        if targets is not None and settings.get("class_embeddings") not in _NAMED:
            # The state holds them, and their file may be gone when the checkpoint is loaded.
            settings |= {"class_embeddings": None, "class_list": None}
            if settings.get("embedding_dim", "auto") is not None:
                settings["embedding_dim"] = targets.shape[1]
        if (tree := self.class_hierarchy) is not None:
            plain = {"parents": dict(tree.parents), "names": dict(tree.names), "source": tree.source}
            checkpoint["class_hierarchy"] = plain

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if (plain := checkpoint.get("class_hierarchy")) is not None:
            try:
                self.class_hierarchy = Hierarchy(**plain)
            except (UserError, TypeError, ValueError, AttributeError, LookupError) as error:  # contents of a file
                raise UserError(f"the checkpoint's class hierarchy can't be read ({reason(error)})") from error


def _class_embeddings(
    given: FilePath | Tensor,
    num_classes: int,
    class_names: Sequence[str] | None,
    class_list: FilePath | None,
    hierarchy: FilePath | None,
    dim: int | None,
) -> tuple[Tensor | None, Hierarchy | None]:
    """Return phi (C, D) and the hierarchy that it is derived from.

    phi is None for one-hot embeddings, whose targets are an index: a dense identity would take C x C memory.
    """
    if isinstance(given, Tensor):
        return _check_norms(given, "class_embeddings"), None
    if given in _NAMED and class_list is not None:
        raise UserError(f"class_list is {str(class_list)!r}: it is for a hierarchy, and class_embeddings is {given!r}")
    if given == "one_hot":
        return None, None
    if given == "simplex":
        return simplex(num_classes), None
    if given == "semantic":
        if hierarchy is None:
            raise UserError(
                "class_embeddings is 'semantic', and the data have no hierarchy: name its file by "
                "--model.class_embeddings FILE"
            )
        given = hierarchy
    if str(given) not in HIERARCHIES and not Path(str(given)).is_file():
        names = ", ".join(map(repr, (*_NAMED, "semantic", *HIERARCHIES)))
        raise UserError(
            f"class_embeddings is {str(given)!r}, and there is no such file: it must be {names} or the file of a "
            "hierarchy or of embeddings"
        )
    labels = [str(label) for label in range(num_classes)] if class_names is None else class_names
    if are_embeddings(given):
        return _check_norms(stored(given, labels, class_list), f"embeddings {given}"), None
    tree = open_hierarchy(given, class_list)
    return semantic(tree, labels, dim).float(), tree


def _check_norms(embeddings: Tensor, source: str) -> Tensor:
    if embeddings.ndim == 2 and not (embeddings.float().norm(dim=1) - 1).abs().max() < 1e-4:
        raise UserError(f"{source} have rows whose norm is not 1: divide each by its norm")
    return embeddings.float()
