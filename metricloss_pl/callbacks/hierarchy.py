"""How wrong the mistakes of ``test`` are in a class hierarchy."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from metricloss_pl.class_embeddings import open_hierarchy
from metricloss_pl.errors import UserError
from metricloss_pl.files import FilePath
from metricloss_pl.metrics import HierarchicalAccuracy, HierarchicalPrecision, MistakeSeverity
from metricloss_pl.regimes import Classifier

__all__ = ["HierarchyMetrics"]


class HierarchyMetrics(Callback):
    """Measure ``test`` by a class hierarchy, for every regime; exact under several processes.

    Logged are ``test/hierarchical_accuracy`` and ``test/mistake_severity`` of the predictions and, of searching the
    test images for each other in the regime's space, ``test/hp_1``, ``_10``, ``_50``, ``_100`` and ``test/mahp_250``:
    see :mod:`metricloss_pl.metrics.hierarchical`. What is not defined, as the severity of no mistakes, is not logged.

    The command line adds this callback by itself.

    Args:
        hierarchy: File or name of the hierarchy, as of
            :func:`~metricloss_pl.class_embeddings.open_hierarchy`; the classes are leaves of it, found by their names.
            None: that of the regime's class embeddings; nothing is measured where they are of none.
        class_list: File of lines ``<id> <class name>``, where the leaves are not called as the classes.
        retrieval: Whether to search the test images, which takes N^2 D steps for N of them.

    Raises:
        UserError: The hierarchy is missing, no tree, or lacks a class.
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
        if not isinstance(pl_module, Classifier):
            raise UserError(f"HierarchyMetrics measures regimes of this package, not {type(pl_module).__name__}")
        if self.hierarchy is not None:  # before a training, not after it
            self.hierarchy.leaves_of(pl_module.class_names)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        tree = pl_module.class_hierarchy if self.hierarchy is None else self.hierarchy
        self._measures = tree is not None
        if tree is None:
            return
        leaves, device = tree.leaves_of(pl_module.class_names), pl_module.device
        heights = torch.from_numpy(tree.lca_heights(leaves)).to(device)
        self._accuracy = HierarchicalAccuracy(heights, tree.height).to(device)
        self._severity = MistakeSeverity(heights).to(device)
        self._precision = HierarchicalPrecision(heights, tree.height).to(device)
        none = torch.zeros(0, pl_module.embedding_dim, device=device)  # also where this process has no image
        self._precision.update(pl_module.metric_embeddings(none), none[:, 0].long())

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
        assert isinstance(pl_module, Classifier)
        predictions, labels = outputs["predictions"], outputs["labels"]
        self._accuracy.update(predictions, labels)
        self._severity.update(predictions, labels)
        if self.retrieval:
            self._precision.update(pl_module.metric_embeddings(outputs["embeddings"]), labels)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._measures:
            return
        values = {"hierarchical_accuracy": self._accuracy.compute(), "mistake_severity": self._severity.compute()}
        if self.retrieval:
            values |= self._precision.compute()
        defined = {f"test/{name}": value for name, value in values.items() if not value.isnan()}
        pl_module.log_dict(defined, sync_dist=True)  # equal on all processes already
        del self._accuracy, self._severity, self._precision
