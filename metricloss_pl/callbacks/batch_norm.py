"""Running statistics of batch norms, recomputed from training images as evaluation sees them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn.modules.batchnorm import _BatchNorm

from metricloss_pl.callbacks.evaluation import evaluation_mode, is_due
from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import UserError

__all__ = ["BatchNormStatistics"]


class BatchNormStatistics(Callback):
    """Computation of the running statistics of batch norms before each validation, from training images.

    In training they are moving averages over the last few batches, of images that are augmented and perhaps mixed. Here
    they are the means over all batches of up to `images` training images, not augmented, with the present weights
    ("precise batch norm", Wu and Johnson 2021, arXiv 2105.07576). Without a validation set, they are computed at the
    end of the last epoch. All processes use the same images, so the statistics do not depend on their number.

    Args:
        images: Most training images, at least 2, drawn at random once.
        batch_size: Images per batch, at least 2.

    Raises:
        UserError: An argument is below 2, or the data are no `ImageDataModule`.
    """

    def __init__(self, images: int = 2000, batch_size: int = 250) -> None:
        for name, value in (("images", images), ("batch_size", batch_size)):
            if value < 2:
                raise UserError(f"{name} of BatchNormStatistics is {value}: at least 2 are needed")
        self.images = images
        self.batch_size = batch_size

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not isinstance(getattr(trainer, "datamodule", None), ImageDataModule):
            raise UserError("BatchNormStatistics needs an ImageDataModule")

    # Not at the start of the epoch, since a callback that puts averaged weights in place does so then.
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0 and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._recompute(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not sum(trainer.num_val_batches) and is_due(trainer, trainer.max_epochs or 1):
            self._recompute(trainer, pl_module)

    def _recompute(self, trainer: Trainer, module: LightningModule) -> None:
        norms = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
        images = trainer.datamodule.training_sample(self.images)  # type: ignore[attr-defined]
        momenta = [norm.momentum for norm in norms]
        with evaluation_mode(trainer, module):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative average
                norm.train()
            for batch in images.split(self.batch_size):
                if len(batch) > 1:
                    module.embed(batch.to(module.device))  # type: ignore[operator]
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
