"""Weight averaging."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from metricloss_pl.callbacks.evaluation import EmbeddingClassifier, evaluation_mode
from metricloss_pl.errors import UserError

__all__ = ["ExponentialMovingAverage", "averaged_weights"]


class ExponentialMovingAverage(WeightAveraging):
    """Exponential moving average of the weights, which replaces the weights outside of training steps.

    After each step, average = d * average + (1 - d) * weights. The average is validated, saved and tested, and it is
    the model at the end. Checkpoints hold the weights as well, so that training can resume. Centers and the statistics
    of batch norms are averaged, too.

    The decay d warms up: t steps after the start it is min(decay, (1 + t) / (10 + t)), as in TensorFlow. The average
    therefore spans about a ninth of the steps so far, and at most 1 / (1 - decay) steps, so that a short training does
    not end with an average of its beginning. Until the start the average equals the weights.

    A warning at the end of training tells if the average classifies significantly fewer validation images correctly
    than the weights do (one-sided sign test, 5 %).

    Lightning's own `EMAWeightAveraging` has no such warm-up, and with a late start it validates, saves and keeps
    initial weights.

    Args:
        decay: Upper limit of d, in [0, 1). The default spans about 1,000 steps, which takes 9,000 steps to reach.
        start_step: Optimizer steps before the start, such as those of a learning-rate warm-up.
        start_epoch: Epochs before the start; the later of both counts.

    Raises:
        UserError: An argument is out of its range.
    """

    def __init__(self, decay: float = 0.999, start_step: int = 0, start_epoch: int = 0) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"decay of ExponentialMovingAverage is {decay}; it must be at least 0 and below 1")
        for name, value in (("start_step", start_step), ("start_epoch", start_epoch)):
            if value < 0:
                raise UserError(f"{name} of ExponentialMovingAverage is {value}; it must be at least 0")
        super().__init__(avg_fn=self._average)
        self.decay = decay
        self.start_step = start_step
        self.start_epoch = start_epoch
        self._first_step: int | None = None  # steps before the first averaged one
        self._averaged_steps = 0

    def _average(self, average: Tensor, current: Tensor, updates: Tensor | int) -> Tensor:
        """Return the new average of one parameter or buffer."""
        if not average.is_floating_point():  # the batches that a batch norm has counted
            return current
        steps = self._averaged_steps
        decay = min(self.decay, (1 + steps) / (10 + steps))
        # Exactly the current one where the decay is 0. The average of a network in half precision is in full.
        return torch.lerp(average, current.to(average.dtype), 1 - decay)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":  # the state of an earlier fit; that of a checkpoint is restored later
            super().load_state_dict({"latest_update_step": trainer.global_step})
            self._first_step = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._first_step is None:
            self._first_step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert self._first_step is not None
        if trainer.global_step < self.start_step or trainer.current_epoch < self.start_epoch:
            self._first_step = trainer.global_step + 1
        self._averaged_steps = trainer.global_step - self._first_step  # -1 before the start, which makes the decay 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._first_step is not None
        if trainer.global_step <= self._first_step:
            rank_zero_warn(
                f"ExponentialMovingAverage was to start after step {self.start_step} and epoch {self.start_epoch}, and "
                f"training ended after {trainer.global_step} steps: the weights are the network's own"
            )
        current = _correct_on_validation(trainer, pl_module)
        super().on_train_end(trainer, pl_module)
        averaged = _correct_on_validation(trainer, pl_module)
        if current is None or averaged is None:
            return
        only_current, only_averaged = current & ~averaged, ~current & averaged
        correct = [current, averaged, only_current, only_averaged]
        counts = torch.stack([images.sum() for images in correct]).float()
        size = torch.full_like(counts[:1], len(current))
        found = trainer.strategy.reduce(torch.cat([counts, size]), reduce_op="sum")
        own_correct, averaged_correct, lost, won, images = found.tolist()
        if lost > won and (lost - won) ** 2 > 1.645**2 * (lost + won):
            rank_zero_warn(
                "the averaged weights are worse than the network's own: validation accuracy "
                f"{averaged_correct / images:.4f} against {own_correct / images:.4f}. They are kept nevertheless: "
                f"lower the decay of ExponentialMovingAverage ({self.decay:g}), train for more than "
                f"{trainer.global_step} steps, or leave the average out"
            )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "first_step": self._first_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._first_step = state_dict["first_step"]


@contextmanager
def averaged_weights(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Put the weights that a validation would see in place: averaged ones, if a callback averages them."""
    averaging = [
        callback
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging)
    ]
    for callback in averaging:
        callback.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        for callback in reversed(averaging):
            callback.on_validation_epoch_end(trainer, module)


def _correct_on_validation(trainer: Trainer, module: LightningModule) -> Tensor | None:
    """Return whether each validation image of this process is classified correctly; None without a validation set."""
    loaders = trainer.val_dataloaders
    loader = next(iter(loaders), None) if isinstance(loaders, (list, tuple)) else loaders
    if not isinstance(loader, DataLoader) or not isinstance(module, EmbeddingClassifier):
        return None
    limit = trainer.num_val_batches[0]
    correct = [torch.zeros(0, dtype=torch.bool, device=module.device)]
    with evaluation_mode(trainer, module):
        for batch in islice(loader, limit if isinstance(limit, int) else None):
            images, labels = trainer.strategy.batch_to_device(batch, module.device)[:2]
            correct.append(module.class_scores(module.embed_views(images)).argmax(1) == labels)
    return torch.cat(correct)
