"""Severity of the test set's mistakes in a class hierarchy."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from metricloss_pl.callbacks.evaluation import check_model
from metricloss_pl.class_embeddings import open_hierarchy
from metricloss_pl.errors import UserError
from metricloss_pl.files import FilePath
from metricloss_pl.metrics import HierarchicalAccuracy, HierarchicalPrecision, MistakeSeverity

__all__ = ["HierarchyMetrics"]


class HierarchyMetrics(Callback):
    """Metrics of `test` that take a class hierarchy into account; exact under several processes.

    Logs `test/hierarchical_accuracy` and `test/mistake_severity` of the predictions. In retrieval each test image is a
    query among the others, which gives `test/hp_1`, `hp_10`, `hp_50`, `hp_100` and `test/mahp_250`. See
    `metricloss_pl.metrics.hierarchical`. A value that is not defined, such as the severity of no mistakes, is not
    logged.

    The command line adds this callback by itself.

    Args:
        hierarchy: File or name of a hierarchy, as for `metricloss_pl.class_embeddings.open_hierarchy`, with the classes
            as leaves. None: the hierarchy of the regime's class embeddings; without one nothing is measured.
        class_list: File of lines `<id> <class name>`, for leaves that are named otherwise than the classes.
        retrieval: Whether to measure retrieval, which takes N^2 D operations for N test images.

    Raises:
        UserError: The hierarchy is missing, not a tree, or lacks a class.
    """

    def __init__(
        self, hierarchy: FilePath | None = None, class_list: FilePath | None = None, retrieval: bool = True
    ) -> None:
        if hierarchy is None and class_list is not None:
            raise UserError(f"class_list is {str(class_list)!r}: it is for a hierarchy, and none is given")
        self.hierarchy = None if hierarchy is None else open_hierarchy(hierarchy, class_list)
        self.retrieval = retrieval
        self._measures = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        model = check_model(self, pl_module)
        if self.hierarchy is not None:  # before a training, not after it
            self.hierarchy.leaves_of(model.class_names)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = check_model(self, pl_module)
        tree = getattr(pl_module, "class_hierarchy", None) if self.hierarchy is None else self.hierarchy
        self._measures = tree is not None
        if tree is None:
            return
        leaves, device = tree.leaves_of(model.class_names), pl_module.device
        heights = torch.from_numpy(tree.lca_heights(leaves)).to(device)
        self._accuracy = HierarchicalAccuracy(heights, tree.height).to(device)
        self._severity = MistakeSeverity(heights).to(device)
        self._precision = HierarchicalPrecision(heights, tree.height).to(device)
        none = torch.zeros(0, model.embedding_dim, device=device)  # for a process without images
        self._precision.update(model.metric_embeddings(none), none[:, 0].long())

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self._measures:
            return
        predictions, labels = outputs["predictions"], outputs["labels"]
        self._accuracy.update(predictions, labels)
        self._severity.update(predictions, labels)
        if self.retrieval:
            self._precision.update(check_model(self, pl_module).metric_embeddings(outputs["embeddings"]), labels)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._measures:
            return
        values = {"hierarchical_accuracy": self._accuracy.compute(), "mistake_severity": self._severity.compute()}
        if self.retrieval:
            values |= self._precision.compute()
        defined = {f"test/{name}": value for name, value in values.items() if not value.isnan()}
        pl_module.log_dict(defined, sync_dist=True)  # equal on all processes already
        del self._accuracy, self._severity, self._precision
