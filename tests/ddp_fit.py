"""Fit every regime in some processes and save weights and metrics."""

import os
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import nn

from metricloss_pl.augment import ShiftCrop
from metricloss_pl.callbacks import ExponentialMovingAverage
from metricloss_pl.data import DigitsDataModule
from metricloss_pl.mixing import CutMix
from metricloss_pl.regimes import (
    CenterSoftmaxClassifier,
    CosineClassifier,
    MetricLearningClassifier,
    SoftmaxClassifier,
    StandaloneCenterClassifier,
)

GLOBAL_BATCH = 30  # divisible by 2 and 3


class Dense(nn.Module):
    """A network without batch norm, whose statistics would differ between processes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 10
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)


def cosine_with_frozen_norm(**options) -> CosineClassifier:
    """Return a regime with the paper's head, its batch norm in evaluation mode, where Lightning leaves it."""
    model = CosineClassifier(10, Dense(), head_weight_decay=1e-3, **options)
    model.criterion.head.norm.eval()
    return model


def standalone(**options):
    """Return a builder with a weight that suits the inter-class term."""
    return lambda **o: StandaloneCenterClassifier(10, Dense(), **{"inter_weight": 0.02, **options}, **o)


REGIMES = {
    "softmax": lambda **o: SoftmaxClassifier(10, Dense(), label_smoothing=0.1, smoothing_target="non_target", **o),
    "softmax_classes": lambda **o: SoftmaxClassifier(10, Dense(), decay_norm_and_bias=False, **o),
    "softmax_squared_error": lambda **o: SoftmaxClassifier(10, Dense(), loss="squared_error", **o),
    "cosine": cosine_with_frozen_norm,
    "cosine_blog": lambda **o: CosineClassifier(10, Dense(), head="none", **o),
    "cosine_alone": lambda **o: CosineClassifier(10, Dense(), class_embeddings="simplex", ce_weight=0, **o),
    "center": lambda **o: CenterSoftmaxClassifier(10, Dense(), center_weight=0.1, **o),
    "center_averaged": lambda **o: CenterSoftmaxClassifier(10, Dense(), center_weight=0.1, **o),
    "center_gradient": lambda **o: CenterSoftmaxClassifier(10, Dense(), center_rule="gradient", **o),
    "center_means": lambda **o: CenterSoftmaxClassifier(10, Dense(), center_init="class_means", **o),
    "arcface": lambda **o: MetricLearningClassifier(10, Dense(), loss_args={"scale": 16}, **o),
    "standalone": standalone(),
    "standalone_log": standalone(inter="log"),
    "standalone_margin": standalone(inter="margin", margin=20.0),
    "standalone_negative": standalone(inter="negative", inter_weight=1e-3, pairs="mean"),
    "standalone_mean": standalone(pairs="mean", inter_weight=0.5),
    "standalone_exp": standalone(intra="exp", intra_scale=0.01, inter="centers"),
    "standalone_softmax": standalone(inter="softmax", inter_weight=0.5),
}


def build_run(processes: int, *callbacks: Callback) -> tuple[Trainer, DigitsDataModule]:
    seed_everything(0)
    data = DigitsDataModule(
        batch_size=GLOBAL_BATCH // processes, samples_per_class=37, val_fraction=0.3, augment=[ShiftCrop(pixels=1)]
    )
    trainer = Trainer(
        max_epochs=3,  # 12 steps of two batches each
        num_sanity_val_steps=0,
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer, data


def fit(name: str, processes: int) -> dict[str, dict]:
    trainer, data = build_run(processes, *([ExponentialMovingAverage(decay=0.8)] if name == "center_averaged" else []))
    class_weights = "balanced"
    if name == "softmax_classes":  # batches of five images of each of six classes
        data.samples_per_class_in_batch, class_weights = 5, None
    model = REGIMES[name](optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), class_weights=class_weights)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    trainer.fit(model, data)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
    metrics.update(trainer.test(model, data, verbose=False)[0])
    trainer.strategy.barrier()
    after = model.state_dict()
    moved = max((after[key] - before[key]).abs().max().item() for key in before if key.startswith("backbone"))
    return {"state": after, "metrics": metrics, "steps": trainer.global_step, "moved": moved}


def fit_mixed(processes: int) -> dict[str, torch.Tensor]:
    """Return the shares that each process has drawn, and the weights that each ends with."""
    trainer, data = build_run(processes)
    model, shares = CosineClassifier(10, Dense(), batch_mixing=CutMix(probability=0.7)), []
    model.batch_mixing.register_forward_hook(lambda module, images, mixed: shares.append(mixed[2]))
    trainer.fit(model, data)
    return {
        "shares": trainer.strategy.all_gather(torch.tensor(shares)),
        "weights": trainer.strategy.all_gather(model.criterion.head.linear.weight.detach()),
    }


def fit_all(processes: int, file: Path) -> None:
    """Fit all in each of the processes; the first one saves."""
    ends = {name: fit(name, processes) for name in REGIMES}
    ends["mixed"] = fit_mixed(processes)
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save(ends, file)
