"""Training on a GPU: each regime in each precision, equality with the CPU, speed and memory, within a few minutes.

A line of kind `check` compares two results: it `holds` if their `difference` is at most `tolerance`. Once the time is
used up, the other measurements are skipped. Without a GPU, those that need one are skipped and the rest uses the CPU.
The exit status is 1 if a measurement failed or a check does not hold.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from _measure import argument_parser, report, report_ratio
from _training import NoiseDataModule, bare_trainer
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import SGD
from trainer_overhead import TurnByTurn, hand_written, sgd

from metricloss_pl import augment, regimes
from metricloss_pl.augment.keys import image_keys, random_bytes, uniform
from metricloss_pl.backbones import TinyConvNet, WhitenedConvNet
from metricloss_pl.losses import CenterLoss

REGIMES: dict[str, Callable[..., Any]] = {
    "softmax": partial(regimes.SoftmaxClassifier, embedding_dim=128),
    "cosine": partial(regimes.CosineClassifier, ce_weight=0.1),
    "center": partial(regimes.CenterSoftmaxClassifier, embedding_dim=128),
    "standalone": partial(regimes.StandaloneCenterClassifier, embedding_dim=128),
    "metric learning": partial(regimes.MetricLearningClassifier, loss="ArcFaceLoss", embedding_dim=128),
}
TOLERANCES = {"32-true": 1e-4, "bf16-mixed": 1e-2, "16-mixed": 1e-2}  # of weights, relative
AUGMENTATIONS = [getattr(augment, name)() for name in augment.__all__ if name != "Augmentation"]
FLIP_AND_SHIFT = (augment.HorizontalFlip(), augment.ShiftCrop(4))
GOAL_SPEED = 0.9
GOAL_ACCURACY = 0.94


class Session(NamedTuple):
    """Device and sizes of all measurements."""

    device: torch.device
    quick: bool
    cifar10: Path | None = None
    end: float = float("inf")  # time.perf_counter() at which no other measurement begins


def check(subject: str, difference: float, tolerance: float, **facts: Any) -> bool:
    """Print a line of kind `check`, and return whether the check holds."""
    holds = difference <= tolerance  # not with nan
    report(subject, "check", holds=holds, difference=difference, tolerance=tolerance, **facts)
    return holds


def noise(steps: int, batch_size: int, side: int, operations: Iterable[Any], **settings: Any) -> NoiseDataModule:
    shape: dict[str, Any] = {"count": steps * batch_size, "batch_size": batch_size, "side": side, "in_channels": 3}
    data = NoiseDataModule(**shape, augment=list(operations), **settings)
    data.setup("fit")
    return data


def trainer_on(
    device: torch.device, *callbacks: Callback, precision: Any = "32-true", deterministic: Any = False, **settings: Any
) -> Trainer:
    """Return a Trainer; in `16-mixed`, its loss scaler changes often, and skips steps."""
    if precision == "16-mixed":  # with the name alone, Lightning takes bfloat16 on a CPU
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**20, growth_interval=3)
        settings["plugins"], precision = MixedPrecision("16-mixed", device.type, scaler), None
    settings |= {"precision": precision, "deterministic": deterministic, "callbacks": list(callbacks)}
    return bare_trainer(accelerator=device.type, devices=1, **settings)


# Training and resuming


class Watch(Callback):
    """Callback that saves a checkpoint after a step, and counts the steps that the loss scaler skips."""

    def __init__(self, save_after: int | None = None, file: Path | None = None) -> None:
        self.save_after, self.file = save_after, file
        self.scales: list[float] = []

    @property
    def skipped(self) -> int:
        """Number of steps after which the scale fell."""
        return sum(after < before for before, after in zip(self.scales, self.scales[1:], strict=False))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if (scaler := getattr(trainer.precision_plugin, "scaler", None)) is not None:
            self.scales.append(scaler.get_scale())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.on_train_start(trainer, pl_module)
        if trainer.global_step == self.save_after:
            trainer.save_checkpoint(self.file)


def train(session: Session, regime: str, steps: int, *callbacks: Callback, file: Any = None, **settings: Any) -> Any:
    """Return a regime with a small network and dropout, trained for two epochs, or from a checkpoint on."""
    torch.manual_seed(0)
    batch_size, side, width = (8, 8, 8) if session.quick else (64, 32, 32)
    data = noise(steps, batch_size, side, [augment.HorizontalFlip(), augment.ShiftCrop(2)])
    model = REGIMES[regime](10, TinyConvNet(3, width, dropout=0.1), optimizer=sgd)
    trainer = trainer_on(session.device, *callbacks, max_epochs=2, deterministic="warn", **settings)
    trainer.fit(model, data, ckpt_path=file, weights_only=True)
    torch.use_deterministic_algorithms(False)
    return model


def difference_of(first: nn.Module, second: nn.Module) -> float:
    """Return the largest difference of two states, each tensor's relative to its largest value."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    relative = [(one - other).abs().max() / other.abs().max().clamp_min(1e-3) for one, other in pairs]
    return float(torch.stack([value for value in relative if value.is_floating_point()]).max())


def resume(session: Session, subject: str, regime: str, precision: str) -> bool:
    """Compare a training with one that continues from its checkpoint in the middle of the second epoch."""
    steps = 6 if session.quick else 20
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "middle.ckpt"
        first, second = Watch(3 * steps // 2, file), Watch()
        whole = train(session, regime, steps, first, precision=precision)
        resumed = train(session, regime, steps, second, file=file, precision=precision)
    facts = {"steps": 2 * steps, "steps_resumed": steps // 2}
    if first.scales:
        facts |= {"skipped_steps": first.skipped, "loss_scale": first.scales[-1]}
    difference = difference_of(resumed, whole) if first.scales[-1:] == second.scales[-1:] else float("inf")
    return check(subject, difference, TOLERANCES[precision], **facts)


def group_of_one(session: Session, subject: str) -> bool:
    """Compare a training in a process group of one process, and what it gathers there, with one without."""
    steps, backend = 4 if session.quick else 20, "nccl" if session.device.type == "cuda" else "gloo"
    plain = train(session, "center", steps)
    try:
        grouped = train(session, "center", steps, strategy=DDPStrategy(process_group_backend=backend))
        rows = torch.arange(6.0, device=session.device).view(3, 2).requires_grad_()
        gathered = grouped.trainer.strategy.all_gather(rows, sync_grads=True)[0]
        gathered.square().sum().backward()
        backend = dist.get_backend()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    gathers = torch.equal(gathered, rows) and rows.grad is not None and torch.equal(rows.grad, 2 * rows)
    difference = difference_of(grouped, plain) if gathers else float("inf")
    return check(subject, difference, TOLERANCES["32-true"], backend=backend, steps=2 * steps)


# Equality with the CPU


def center_step(session: Session, subject: str, rule: Any) -> bool:
    """Compare losses, gradients and centers of the center loss over some steps."""
    classes, dim, batch_size = (20, 4, 16) if session.quick else (1000, 512, 256)
    torch.manual_seed(0)
    batches = [(torch.randn(batch_size, dim), torch.randint(classes, (batch_size,))) for _ in range(5)]
    sides: tuple[list[Tensor], list[Tensor]] = [], []
    for seen, device in zip(sides, (session.device, "cpu"), strict=True):
        torch.manual_seed(1)
        criterion = CenterLoss(classes, dim, rule).to(device)
        optimizer = SGD(criterion.parameters(), lr=0.5)
        for embeddings, labels in batches:
            rows = embeddings.to(device, copy=True).requires_grad_()
            loss = criterion(rows, labels.to(device))
            loss.backward()
            criterion.assign_center_grad()
            optimizer.step()
            seen += [value.detach().to("cpu", copy=True) for value in (loss, rows.grad, criterion.centers)]
    difference = max(float((one - other).abs().max() / other.abs().max()) for one, other in zip(*sides, strict=True))
    return check(subject, difference, 1e-5, classes=classes, dim=dim, batch_size=batch_size)


def draws(session: Session, subject: str) -> bool:
    """Compare the numbers, bytes and operations that augmentations draw."""
    keys = image_keys(0, [3] * 4096, range(4096))

    def drawn(keys: Tensor) -> list[Tensor]:
        choices = [policy.draw(keys, 32, 32) for policy in AUGMENTATIONS if hasattr(policy, "draw")]
        return [uniform(keys, 8), random_bytes(keys, 8), *(part for choice in choices for part in choice)]

    pairs = zip(drawn(keys.to(session.device)), drawn(keys), strict=True)
    unequal = sum(int((one.cpu() != other).sum()) for one, other in pairs)
    return check(subject, unequal, 0, images=len(keys))


def pixels(session: Session, subject: str, augmentation: augment.Augmentation) -> bool:
    """Compare the share of pixels that differ by more than one level, in noise and in smooth images."""
    torch.manual_seed(0)
    count = 8 if session.quick else 512
    smooth = nn.functional.interpolate(60 + 120 * torch.rand(count, 3, 5, 5), size=32, mode="bilinear")
    images = torch.cat([torch.randint(256, (count, 3, 32, 32)), smooth]).to(torch.uint8)
    keys = image_keys(0, [3] * len(images), range(len(images)))
    found = augmentation(images.to(session.device), keys.to(session.device)).cpu()
    levels = (found.int() - augmentation(images, keys).int()).abs()
    # A second operation may enlarge a difference of one level.
    tolerance = 1e-3 if isinstance(augmentation, (augment.RandAugment, augment.AutoAugment)) else 0.0
    facts = {"most_levels": int(levels.max()), "images": len(images)}
    return check(subject, float((levels > 1).double().mean()), tolerance, **facts)


class KeepBatches(Callback):
    """Callback that keeps the training batches as they come into the step."""

    def __init__(self) -> None:
        self.batches: list[list[Tensor]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append([part.cpu() for part in batch])


def routes(session: Session, subject: str, cache_gb: float) -> bool:
    """Compare batches that are cropped and augmented after the transfer with those of the loader, in levels."""
    steps, batch_size = (2, 8) if session.quick else (8, 64)
    operations = (*FLIP_AND_SHIFT, augment.Rotation(20), augment.RandomErasing())
    data = noise(steps, batch_size, 12, operations, image_size=8, cache_gb=cache_gb)
    wanted, keep = list(data.train_dataloader()), KeepBatches()  # finished by the loader, as there is no Trainer
    trainer = trainer_on(session.device, keep, max_epochs=1)
    trainer.fit(REGIMES["softmax"](10, TinyConvNet(3), optimizer=sgd), data)
    pairs = [(one.int(), other.int()) for got, want in zip(keep.batches, wanted, strict=True)
             for one, other in zip(got, want, strict=True)]  # fmt: skip
    on_device = trainer.train_dataloader.dataset.defer
    difference = max(int((one - other).abs().max()) for one, other in pairs)
    return check(subject, difference, 1, on_device=on_device, images=steps * batch_size)


# Speed and memory


class OnDevice:
    """Loader of a bare loop: images are kept on the device, and mirrored and shifted there batch by batch."""

    def __init__(self, data: NoiseDataModule, device: torch.device) -> None:
        samples = data.samples("train")
        self.labels = samples.labels.to(device)
        self.images = nn.functional.pad(samples.images.to(device), (4, 4, 4, 4)).permute(0, 2, 3, 1).contiguous()
        self.batch_size, self.side = data.resolved_batch_size, data.side
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Leave the order to torch's generator."""

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, S, S) and labels (B,) in a random order."""
        device = self.labels.device
        window = torch.arange(self.side, device=device)
        order = torch.randperm(len(self.labels), device=device)[: len(self) * self.batch_size]
        for rows in order.view(-1, self.batch_size):
            top, left = torch.randint(9, (2, len(rows), 1), device=device)
            mirrored = torch.rand(len(rows), 1, device=device) < 0.5
            columns = torch.where(mirrored, window.flip(0), window) + left
            images = self.images[rows[:, None, None], (window + top)[:, :, None], columns[:, None, :]]
            yield images.permute(0, 3, 1, 2), self.labels[rows]


def both_sides(session: Session, regime: str, batch_size: int, compiled: bool = False) -> Any:
    """Return a regime, its data, and a function that prepares the bare loop on a device."""
    torch.manual_seed(0)
    steps, batch_size, side, width = (2, 8, 12, 4) if session.quick else (49_152 // batch_size, batch_size, 32, 64)
    data = noise(steps, batch_size, side, FLIP_AND_SHIFT)
    model = REGIMES[regime](10, WhitenedConvNet(width=width), optimizer=sgd)

    def prepare(device: torch.device) -> Callable[[int], object]:
        return hand_written(model, OnDevice(data, device), data.normalization, "bf16-mixed", device, compiled)

    return model, data, prepare


def speed(session: Session, subject: str, batch_size: int, compiled: bool) -> None:
    """Compare `fit` with a bare loop in images per second."""
    model, data, prepare = both_sides(session, "softmax", batch_size, compiled)
    turns = TurnByTurn(prepare)
    if compiled:  # as --compile does
        model.backbone.compile()
    trainer_on(session.device, turns, precision="bf16-mixed", max_epochs=3 if session.quick else 6).fit(model, data)
    ours, against = (median(seconds[1:]) for seconds in turns.seconds)  # the first epoch warms both up
    facts = {"images_per_s": [round(data.count / seconds) for seconds in (ours, against)], "goal": GOAL_SPEED}
    facts |= {"network": type(model.backbone).__name__, "precision": "bf16-mixed", "batch_size": data.batch_size}
    report_ratio(subject, ("fit", ours), ("bare loop, images on the device", against), **facts)


def peak_bytes(step: Callable[[], object]) -> int:
    """Return the peak memory of the GPU during a step, beyond what is allocated before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def memory(session: Session, subject: str, regime: str) -> None:
    """Compare the peak memory of `fit` and of a bare loop, with the images of the set, which the loop keeps padded."""
    model, data, prepare = both_sides(session, regime, 512)
    trainer = trainer_on(session.device, precision="bf16-mixed", max_epochs=1)
    ours = peak_bytes(lambda: trainer.fit(model, data))
    against = peak_bytes(lambda: prepare(session.device)(0))
    names, facts = (
        ("fit", "bare loop, images on the device"),
        {"batch_size": data.batch_size, "precision": "bf16-mixed"},
    )
    report_ratio(subject, (names[0], ours), (names[1], against), unit="bytes", **facts)


def cifar10(session: Session, subject: str) -> None:
    """Train by the shipped run file for CIFAR-10; report the test accuracy and the seconds of training."""
    assert session.cifar10 is not None
    config, left = "cifar10_softmax.yaml", session.end - time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "metricloss_pl", "fit", "--config", config, "--runs_dir", folder]
        command += ["--data", "NpzDataModule", "--data.path", str(session.cifar10.resolve())]
        command += ["--trainer.precision", "bf16-mixed", "--trainer.callbacks", "null"]
        command += ["--trainer.max_epochs", "1"] if session.quick else []
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=min(max(1, left), 3600))
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        [file] = Path(folder).rglob("result.json")
        result = json.loads(file.read_text(encoding="utf-8"))
    accuracy = result["metrics"]["test/accuracy"]
    facts = {"accuracy": accuracy, "goal": GOAL_ACCURACY, "reached": accuracy >= GOAL_ACCURACY, "config": config}
    facts |= {name: result[name] for name in ("seconds", "epochs", "steps", "precision")}
    report(subject, "accuracy", **facts)


# All of them

Measurement = tuple[str, str, Callable[[Session, str], bool | None]]  # in the middle what it needs, if anything
GPU, CIFAR10 = "a GPU", "--cifar10"


def measurements() -> Iterator[Measurement]:
    """Yield all measurements in the order of their importance."""
    for precision in TOLERANCES:
        for regime in REGIMES:
            yield f"resume, {regime}, {precision}", "", partial(resume, regime=regime, precision=precision)
    yield "process group of one", "", group_of_one
    for rule in ("wen", "gradient"):
        yield f"center step, {rule}", GPU, partial(center_step, rule=rule)
    yield "draws of augmentations", GPU, draws
    for one in AUGMENTATIONS:
        yield f"pixels of {type(one).__name__}", GPU, partial(pixels, augmentation=one)
    for where, cache_gb in (("with images on the device", 2.0), ("without", 0.0)):
        yield f"augmentation after the transfer, {where}", GPU, partial(routes, cache_gb=cache_gb)
    for size in (128, 512):
        yield f"an epoch, batch size {size}", "", partial(speed, batch_size=size, compiled=False)
    for regime in ("softmax", "center"):
        yield f"peak memory, {regime}", GPU, partial(memory, regime=regime)
    yield "CIFAR-10, softmax", CIFAR10, cifar10
    for size in (128, 512):
        yield f"an epoch, batch size {size}, compiled", GPU, partial(speed, batch_size=size, compiled=True)


def run(session: Session, asked: Iterable[Measurement]) -> bool:
    """Run measurements, each for itself; return whether all is well."""
    good = True
    missing = {GPU: session.device.type != "cuda", CIFAR10: session.cifar10 is None}
    for name, needs, measure in asked:
        subject = f"gpu, {name}"
        if missing.get(needs) or time.perf_counter() >= session.end:
            report(subject, "skipped", reason=f"it needs {needs}" if missing.get(needs) else "the time is used up")
            continue
        try:
            good &= measure(session, subject) is not False
        except Exception as error:  # the others can still be measured
            report(subject, "error", error=f"{type(error).__name__}: {error}")
            good = False
    return good


if __name__ == "__main__":
    start = time.perf_counter()
    parser = argument_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="time after which no other measurement begins")
    parser.add_argument("--cifar10", type=Path, help=".npz file with train_ and test_, each with images and labels")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sys.exit(not run(Session(device, given.quick, given.cifar10, start + 60 * given.minutes), measurements()))
