"""Training in two processes against one (weak scaling), and bytes that each regime sends and holds.

Measured: the time of a step with 64 images per process, under DDP over gloo with one thread per process, against a
single process (the ratio is the efficiency), and against two independent processes, which shows the loss of the machine
itself when both of its cores work. On a shared machine, processor time is more reliable than wall time. Arithmetic:
bytes per step and bytes held, from the sizes alone.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import mean, median
from typing import Any

import torch
from _measure import quick_asked, report, report_ratio
from _training import NoiseDataModule, bare_trainer
from lightning.pytorch import Callback

from metricloss_pl.backbones import PreActResNet, TinyConvNet
from metricloss_pl.regimes import CenterSoftmaxClassifier, SoftmaxClassifier, StandaloneCenterClassifier

SUBJECT = "scaling"
REGIMES = {
    "softmax": SoftmaxClassifier,
    "center": CenterSoftmaxClassifier,
    "standalone": StandaloneCenterClassifier,
}
BATCH_SIZE = 64  # per process
EMBEDDING_DIM = 32
WARM_UP = 5  # steps

FLOAT = 4  # bytes
RANKS = (1, 8, 64)
CLASSES = (1_000, 100_000, 1_000_000)
D, B = 128, 128  # for the arithmetic: embedding dimension, and images per process
P = sum(parameter.numel() for parameter in PreActResNet().parameters())
PAIR_MATRICES = 5  # peak number of float32 (WB, WB) matrices of the inter term

Seconds = dict[str, list[float]]  # wall and processor seconds per step of each regime


class StepTimer(Callback):
    """Wall and processor seconds per step, after the warm-up."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == WARM_UP:
            self.start = self.now()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        steps = trainer.num_training_batches - WARM_UP
        wall, processor = ((end - start) / steps for start, end in zip(self.start, self.now(), strict=True))
        pl_module.log_dict({"wall": wall, "processor": processor})

    def now(self) -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


def fit_all(processes: int, steps: int) -> Seconds:
    """Fit every regime, and return the seconds per step of the first process."""
    torch.set_num_threads(1)
    seconds = {}
    for name, regime in REGIMES.items():
        data = NoiseDataModule(
            side=28,
            count=(WARM_UP + steps) * BATCH_SIZE * processes,
            in_channels=1,
            batch_size=BATCH_SIZE,
            mean=[0.5],
            std=[0.3],
        )
        strategy = "ddp_fork" if processes > 1 else "auto"
        trainer = bare_trainer(
            max_epochs=1, accelerator="cpu", devices=processes, strategy=strategy, callbacks=StepTimer()
        )
        trainer.fit(regime(10, TinyConvNet(), embedding_dim=EMBEDDING_DIM), data)
        seconds[name] = [float(trainer.callback_metrics[kind]) for kind in ("wall", "processor")]
    return seconds


def run(steps: int, *processes: int) -> Seconds:
    """Run fits of so many processes each in parallel, and return the mean of their seconds per step."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["metricloss_pl.regimes"])
    with ProcessPoolExecutor(len(processes), mp_context=context) as pool:
        seen = list(pool.map(fit_all, processes, [steps] * len(processes)))
    return {name: [mean(kind) for kind in zip(*(seconds[name] for seconds in seen), strict=True)] for name in REGIMES}


def measure(quick: bool) -> None:
    turns, steps = (1, 2) if quick else (4, 30)
    sides = [[run(steps, *side) for side in ((2,), (1,), (1, 1))] for _ in range(turns)]
    for name, regime in REGIMES.items():
        wall, processor = (
            [median(seconds[name][kind] for seconds in side) for side in zip(*sides, strict=True)] for kind in (0, 1)
        )
        for against, which in (("1 process", 1), ("2 separate processes", 2)):
            report_ratio(
                SUBJECT,
                (f"{regime.__name__}, a step in 2 processes", wall[0]),
                (against, wall[which]),
                images_per_s=[round(2 * BATCH_SIZE / wall[0], 1), round(which * BATCH_SIZE / wall[which], 1)],
                processor_s_a_process=[round(processor[side], 5) for side in (0, which)],
                batch_size=BATCH_SIZE,
                threads_a_process=1,
                steps=steps,
                repetitions=turns,
            )


def traffic(regime: str, ranks: int, classes: int) -> dict[str, int]:
    """Return the bytes that each rank receives per step, by purpose.

    A ring all-reduce transfers 2 (W - 1) / W times its data, a gather the data of the other ranks. An int64 label
    counts as two floats. Of the buffers that DDP broadcasts, only class weights are counted, not those of batch norm.
    """
    ring, others = 2 * (ranks - 1) / ranks, ranks - 1
    parts = {"all_reduce_network": ring * P, "broadcast_class_weights": classes * (ranks > 1)}
    if regime != "standalone":
        parts["all_reduce_head"] = ring * classes * (D + 1)
    if regime != "softmax":
        parts["all_gather_embeddings_labels"] = others * B * (D + 2)
    if regime == "standalone":
        parts["reduce_scatter_embedding_gradients"] = others * B * D
        parts["all_reduce_centers"] = ring * classes * D
    return {name: round(FLOAT * numbers) for name, numbers in parts.items()}


def held(regime: str, ranks: int, classes: int) -> dict[str, int]:
    """Return the peak bytes of each rank in a step, besides activations, by purpose."""
    copies = 3 if ranks > 1 else 2  # the weights, their gradients, and DDP's buckets
    parts = {"network": (copies + 1) * P}  # and momentum
    if regime != "standalone":
        parts["head"] = (copies + 1) * classes * (D + 1)
        parts["logits"] = 3 * B * classes  # with their log-probabilities and gradients
    if regime == "center":
        parts["centers"] = classes * D  # their gradient is sparse
    if regime == "standalone":
        parts["centers"] = copies * classes * D
        parts["pairs"] = PAIR_MATRICES * (ranks * B) ** 2
    return {name: FLOAT * numbers for name, numbers in parts.items()}


def arithmetic() -> None:
    for regime in REGIMES:
        for ranks in RANKS:
            for classes in CLASSES:
                received, memory = traffic(regime, ranks, classes), held(regime, ranks, classes)
                report(
                    SUBJECT,
                    "arithmetic",
                    regime=regime,
                    ranks=ranks,
                    classes=classes,
                    received_bytes=sum(received.values()),
                    held_bytes=sum(memory.values()),
                    received=received,
                    held=memory,
                    embedding_dim=D,
                    batch_size=B,
                    network_parameters=P,
                )


if __name__ == "__main__":
    quick = quick_asked(__doc__)
    measure(quick)
    arithmetic()
