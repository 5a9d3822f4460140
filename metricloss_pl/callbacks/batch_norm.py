"""Running statistics of batch norms, recomputed from training images as evaluation sees them."""

from __future__ import annotations

import copy
import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from metricloss_pl.batch_norms import BatchNorm, updating_batch_norms
from metricloss_pl.callbacks.averaging import averaged_weights
from metricloss_pl.callbacks.evaluation import evaluation_mode
from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import UserError

__all__ = ["BatchNormStatistics"]


class BatchNormStatistics(Callback):
    """Computation of the running statistics of batch norms before each validation, from training images.

    In training they are moving averages over the last few batches, of images that are augmented and perhaps mixed. Here
    they are the means over all batches of up to `images` training images, not augmented, with the present weights
    ("precise batch norm", Wu and Johnson 2021, arXiv 2105.07576). Where the last epoch has no validation, they are
    computed at its end. All processes use the same images, so the statistics do not depend on their number.

    Batch norms that do not train, such as those of a frozen backbone, keep their statistics. With `CachedFeatures`, all
    do.

    Args:
        images: Most training images, at least 2, drawn at random once. They are decoded once if they fit into the
            `cache_gb` of the data.
        batch_size: Most images per batch, at least 2. The batches are of one size, or differ by one image.

    Raises:
        UserError: An argument is below 2, or the data are no `ImageDataModule`.
    """

    def __init__(self, images: int = 2000, batch_size: int = 250) -> None:
        for name, value in (("images", images), ("batch_size", batch_size)):
            if value < 2:
                raise UserError(f"{name} of BatchNormStatistics is {value}: at least 2 are needed")
        self.images = images
        self.batch_size = batch_size
        self._training: list[BatchNorm] | None = None  # batch norms that train in the present epoch
        self._step = -1  # the step of the latest computation
        self._kept: Tensor | None = None  # the decoded images, if the data do not keep those in memory

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not isinstance(getattr(trainer, "datamodule", None), ImageDataModule):
            raise UserError("BatchNormStatistics needs an ImageDataModule")
        self._training, self._step, self._kept = None, -1, None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._kept = None

    # Lightning puts all layers into evaluation mode before the hooks of validation.
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._training is None or batch_idx == 0:
            self._training = updating_batch_norms(pl_module)

    # Not at the start of the epoch, since a callback that puts averaged weights in place does so then.
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0 and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._recompute_statistics(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_last = trainer.current_epoch + 1 == trainer.max_epochs or 0 < trainer.max_steps <= trainer.global_step
        if (is_last or trainer.should_stop) and self._step != trainer.global_step:
            with averaged_weights(trainer, pl_module):
                self._recompute_statistics(trainer, pl_module)

    def _recompute_statistics(self, trainer: Trainer, module: LightningModule) -> None:
        self._step = trainer.global_step
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if data.features or not self._training:
            return
        images = data.training_sample(self.images) if self._kept is None else self._kept
        if not data.in_memory("train") and images.nbytes <= data.cache_gb * 1e9:
            self._kept = images
        before = [(norm.momentum, copy.deepcopy(norm.state_dict())) for norm in self._training]
        with evaluation_mode(trainer, module):
            for norm in self._training:
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative average
                norm.train()
            for batch in images.tensor_split(math.ceil(len(images) / self.batch_size)):
                module(batch.to(module.device))
        for norm, (momentum, state) in zip(self._training, before, strict=True):
            norm.momentum = momentum
            if not norm.num_batches_tracked:  # the class scores do not depend on it
                norm.load_state_dict(state)
