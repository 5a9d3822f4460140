"""Augmentation where it is fastest: in the loader for a CPU, after the transfer of a batch for a GPU."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from metricloss_pl.data.dataset import Deferred, ImageDataset, UnfinishedBatch
from metricloss_pl.data.store import ImageStore


class DeviceAugmentation(LightningDataModule):
    """Data module whose training batches are finished on the device, if that is a GPU.

    Without a Trainer, and on a CPU, the loader itself yields finished batches. Both ways give the same images.
    """

    _training_set: Any = None  # of the latest `train_dataloader`

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Crop and augment a training batch that was transferred to a GPU.

        Lightning calls this hook of the data or of the model, not of both, so the model's is called here.
        """
        assert self.trainer is not None
        if isinstance(batch, UnfinishedBatch):
            assert isinstance(self._training_set, ImageDataset)
            batch = self.trainer.precision_plugin.convert_input(self._training_set.finish(batch))
        return self.trainer.lightning_module.on_after_batch_transfer(batch, dataloader_idx)

    def _deferrable_work(self, store: ImageStore, memory_gb: float) -> Deferred | None:
        """Return the work that is left to the device: all of it, if its memory holds the training images."""
        if not self._trains_on_gpu():
            return None
        if isinstance(store.images, Tensor) and store.images.nbytes <= memory_gb * 1e9:
            return "all"
        return "augmentation" if store.dtype == torch.uint8 else None  # Lightning rounds floats before the transfer

    def _trains_on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.training and self.trainer.strategy.root_device.type == "cuda"
