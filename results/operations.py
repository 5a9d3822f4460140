"""Operations of a training: forward and backward passes, counted with torch.utils.flop_counter.

    python results/operations.py runs/cifar10_50_softmax-NpzDataModule/version_0 --image_size 32

prints a JSON line. A multiplication and an addition are two operations. Augmentation, the optimizer and evaluation are
not counted.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

import metricloss_pl


def operations_per_image(checkpoint: Path, image_size: int) -> float:
    """Return the operations of one training step, divided by its images."""
    model = metricloss_pl.load(checkpoint).train()
    channels = next(layer.in_channels for layer in model.modules() if isinstance(layer, torch.nn.Conv2d))
    images, labels = torch.rand(4, channels, image_size, image_size), torch.zeros(4, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model.losses(model.embed(images), labels)["loss"].backward()
    return counter.get_total_flops() / len(images)


def training_operations(run: Path, image_size: int) -> float:
    """Return the operations of a whole training from its run folder."""
    result = json.loads((run / "result.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    images = result["steps"] * config["data"]["init_args"]["batch_size"] * result["processes"]
    return images * operations_per_image(run / "checkpoints" / "last.ckpt", image_size)


def main() -> None:
    """Print the operations of each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--image_size", type=int, required=True, help="side of the images in px")
    given = parser.parse_args()
    for run in given.runs:
        print(json.dumps({"run": str(run), "operations": training_operations(run, given.image_size)}))


if __name__ == "__main__":
    main()
