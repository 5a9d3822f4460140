"""Epochs of `Trainer.fit` with a regime, against a hand-written loop over the same network, loader and optimizer.

Both take turns epoch by epoch within one `fit`; all time between two epochs of the Trainer counts as its own. The loop
keeps only a running loss. Both use our loader.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from _measure import quick_asked, report_ratio
from _training import NoiseDataModule, bare_trainer
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.nn import functional as nnf
from torch.optim import SGD

from metricloss_pl.augment import HorizontalFlip, ShiftCrop
from metricloss_pl.backbones import PreActResNet, TinyConvNet
from metricloss_pl.losses import CenterLoss
from metricloss_pl.regimes import CenterSoftmaxClassifier, SoftmaxClassifier

GOAL = 0.97
CENTER_WEIGHT = 0.01
ALPHA = 0.5

Regime = SoftmaxClassifier | CenterSoftmaxClassifier
Epoch = Callable[[int], object]


class Case(NamedTuple):
    """Training to be measured: regime, images and length."""

    regime: type[Regime]
    backbone: type[nn.Module]
    side: int
    batch_size: int
    steps: int  # an epoch
    epochs: int
    precision: Any = "32-true"


CASES = (
    Case(SoftmaxClassifier, PreActResNet, 28, 128, steps=8, epochs=9),
    Case(CenterSoftmaxClassifier, PreActResNet, 28, 128, steps=8, epochs=9),
    Case(SoftmaxClassifier, TinyConvNet, 28, 128, steps=16, epochs=11),
    Case(CenterSoftmaxClassifier, TinyConvNet, 28, 128, steps=16, epochs=11),
    Case(CenterSoftmaxClassifier, TinyConvNet, 28, 128, steps=16, epochs=11, precision="bf16-mixed"),
    # What the digits' configs train, the shortest steps of all: here the overhead itself can be seen.
    Case(SoftmaxClassifier, TinyConvNet, 8, 64, steps=20, epochs=61),
    Case(CenterSoftmaxClassifier, TinyConvNet, 8, 64, steps=20, epochs=61),
)


def build(case: Case) -> Regime:
    torch.manual_seed(0)
    embedding_dim = 128 if case.backbone is PreActResNet else 32  # as in the shipped configs
    options: dict[str, Any] = {"embedding_dim": embedding_dim, "optimizer": sgd}
    if case.regime is CenterSoftmaxClassifier:
        options |= {"center_weight": CENTER_WEIGHT, "center_optimizer": center_sgd}
    return case.regime(10, case.backbone(in_channels=1), **options)


def sgd(parameters: Any) -> SGD:
    return SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)


def center_sgd(parameters: Any) -> SGD:
    return SGD(parameters, lr=ALPHA)


def hand_written(
    model: Regime, loader: Any, normalization: Any, precision: str, device: torch.device, compiled: bool = False
) -> Epoch:
    """Return the loop that one would write without Lightning, on a copy of the regime's network."""
    network = nn.Sequential(model.backbone, model.embedding)
    network, head = copy.deepcopy(network).to(device), copy.deepcopy(model.head).to(device)
    if compiled:
        network[0].compile()
    optimizer = sgd([*network.parameters(), *head.parameters()])
    criterion, center_optimizer = None, None
    if isinstance(model, CenterSoftmaxClassifier):
        criterion = CenterLoss(model.num_classes, model.embedding_dim).to(device)
        criterion.load_state_dict(model.criterion.state_dict())
        center_optimizer = center_sgd(criterion.parameters())
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in normalization)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        images = ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            embeddings = network(images)
            loss = nnf.cross_entropy(head(embeddings), labels)
            return loss + CENTER_WEIGHT * criterion(embeddings, labels) if criterion else loss

    def epoch(number: int) -> float:
        loader.sampler.set_epoch(number)
        total = torch.zeros((), device=device)
        for batch in loader:
            images, labels = (part.to(device, non_blocking=True) for part in batch)
            loss = loss_of(images, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if criterion and center_optimizer:
                criterion.assign_center_grad()
                center_optimizer.step()
            total += loss.detach()
        return total.item() / len(loader)

    return epoch


class TurnByTurn(Callback):
    """Callback that runs an epoch of the loop after each epoch of the Trainer, and measures the seconds of both."""

    def __init__(self, prepare: Callable[[torch.device], Epoch]) -> None:
        self.prepare = prepare
        self.seconds: tuple[list[float], list[float]] = ([], [])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.device = pl_module.device
        self.epoch = self.prepare(self.device)
        self.last = self.now()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        for seconds in self.seconds:
            if seconds is self.seconds[1]:
                self.epoch(len(seconds))
            now = self.now()
            seconds.append(now - self.last)
            self.last = now

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def measure(case: Case, quick: bool) -> None:
    case = case._replace(batch_size=8, steps=2, epochs=2) if quick else case
    images = case.steps * case.batch_size
    data = NoiseDataModule(
        side=case.side,
        count=images,
        in_channels=1,
        batch_size=case.batch_size,
        augment=[HorizontalFlip(), ShiftCrop(pixels=4)],
    )
    model = build(case)
    data.setup("fit")
    loader = data.train_dataloader()
    turns = TurnByTurn(lambda device: hand_written(model, loader, data.normalization, case.precision, device))
    trainer = bare_trainer(max_epochs=case.epochs, precision=case.precision, callbacks=turns, devices=1)
    trainer.fit(model, data)
    ours, against = (median(seconds[1:]) for seconds in turns.seconds)  # the first epoch warms both up
    report_ratio(
        "trainer_overhead",
        (f"Trainer.fit of {case.regime.__name__}", ours),
        ("hand-written loop", against),
        goal=GOAL,
        network=case.backbone.__name__,
        side=case.side,
        batch_size=case.batch_size,
        precision=case.precision,
        device=turns.device.type,
        images_per_s=[round(images / seconds, 1) for seconds in (ours, against)],
        overhead_ms_a_step=round(1000 * (ours - against) / case.steps, 3),
        epochs=case.epochs - 1,
        steps_an_epoch=case.steps,
    )


if __name__ == "__main__":
    quick = quick_asked(__doc__)
    for case in CASES:
        measure(case, quick)
