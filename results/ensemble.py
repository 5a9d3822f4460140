"""Test accuracy of an ensemble: the mean probabilities of several trained models.

    python results/ensemble.py data/cifar10.npz runs/*/version_*/checkpoints/last.ckpt

prints a JSON line with the accuracy of each model and of the ensemble, without and with the mirror images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import metricloss_pl
from metricloss_pl.data import NpzDataModule
from metricloss_pl.data.samples import Samples


@torch.inference_mode()
def probabilities(model: torch.nn.Module, images: Tensor, flip: bool) -> Tensor:
    """Return probabilities (N, C) of images (N, C, H, W), with `flip` their mean over both mirror images."""
    found = []
    for batch in images.split(500):
        views = [model(batch), model(batch.flip(-1))] if flip else [model(batch)]
        found.append(torch.stack([model.probabilities(scores) for scores in views]).mean(0))
    return torch.cat(found)


def accuracies(checkpoints: Sequence[Path], samples: Samples) -> dict[str, dict[str, Any]]:
    """Return the accuracy of each model and of their mean probabilities, without and with mirror images."""
    assert isinstance(samples.images, Tensor)
    found: dict[str, dict[str, Any]] = {}
    for name, flip in (("single_view", False), ("with_flips", True)):
        members = [probabilities(metricloss_pl.load(path), samples.images, flip) for path in checkpoints]
        correct = [(mean.argmax(1) == samples.labels).double() for mean in [*members, torch.stack(members).mean(0)]]
        *each, ensemble = [float(values.mean()) for values in correct]
        found[name] = {"each": each, "ensemble": ensemble}
    return found


def main() -> None:
    """Print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="an .npz file with test_images and test_labels")
    parser.add_argument("checkpoints", nargs="+", type=Path)
    given = parser.parse_args()
    data = NpzDataModule(path=given.data)
    data.setup("test")
    line = {
        "checkpoints": [str(path) for path in given.checkpoints],
        **accuracies(given.checkpoints, data.samples("test")),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
