"""Milliseconds per image of exported models (onnxruntime) beside eager PyTorch, on one core.

Both take uint8 images and give calibrated probabilities. Networks have random weights; their time is that of trained
ones. With `OMP_NUM_THREADS=1`, both use one thread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import onnxruntime
import torch
from _measure import Step, compare, quick_asked, report
from torch import Tensor, nn

from metricloss_pl.backbones import CifarResNet, TinyConvNet, TorchvisionBackbone, WhitenedConvNet
from metricloss_pl.export.graphs import write_graph
from metricloss_pl.regimes import CosineClassifier

GOAL = 1.5  # at batch size 1
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "TinyConvNet, 8 px": (lambda: TinyConvNet(in_channels=3), 8),
    "CifarResNet-20, 32 px": (CifarResNet, 32),
    "WhitenedConvNet, 32 px": (WhitenedConvNet, 32),
    "ResNet-18, 224 px": (lambda: TorchvisionBackbone("resnet18"), 224),
    "EfficientNet-B0, 224 px": (lambda: TorchvisionBackbone("efficientnet_b0"), 224),
}
QUICK = ("TinyConvNet, 8 px",)


def build(name: str) -> tuple[CosineClassifier, int]:
    """Return a regime with a network, and the side of its images in px."""
    torch.manual_seed(0)
    backbone, side = NETWORKS[name]
    model = CosineClassifier(10, backbone()).eval()
    model.image_format = {"in_channels": 3, "resize": None, "image_size": side}
    return model, side


def session(file: Path) -> Callable[[Tensor], Tensor]:
    """Return an exported graph as a function, with as many threads as PyTorch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    opened = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(opened.run(None, {"images": images.numpy()})[0])


def cpu_ms(step: Step) -> float:
    """Return the CPU time of a step, which other processes change less than its duration."""
    start = time.process_time()
    step()
    return 1e3 * (time.process_time() - start)


def measure(name: str, quick: bool, folder: Path) -> None:
    model, side = build(name)
    difference = write_graph(model, folder / "model.onnx", metadata={})
    report(f"export, {name}", "difference", difference=difference, bytes=(folder / "model.onnx").stat().st_size)
    graph = session(folder / "model.onnx")
    with torch.inference_mode():
        for batch_size in (1, 32):
            images = torch.randint(0, 256, (batch_size, 3, side, side), dtype=torch.uint8)
            goal = {"goal": GOAL} if batch_size == 1 else {}
            subject = f"probabilities of {batch_size} uint8 images, {name}"
            ours: Step = lambda images=images: graph(images)  # noqa: E731
            eager: Step = lambda images=images: model.probabilities(model(images))  # noqa: E731
            compare(
                subject, ("onnxruntime", ours), ("eager PyTorch", eager), quick=quick, batch_size=batch_size, **goal
            )
            times = [(cpu_ms(ours), cpu_ms(eager)) for _ in range(2 if quick else 30)]
            graph_ms, eager_ms = (median(of_step) / batch_size for of_step in zip(*times, strict=True))
            facts = {"onnxruntime_ms": graph_ms, "pytorch_ms": eager_ms, "ratio": eager_ms / graph_ms}
            report(f"CPU time per image, {name}", "cpu_time", batch_size=batch_size, **facts)


def main() -> None:
    quick = quick_asked(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        for name in QUICK if quick else NETWORKS:
            measure(name, quick, Path(folder))


if __name__ == "__main__":
    main()
