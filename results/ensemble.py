"""Test accuracy of an ensemble: the mean probabilities of several trained models.

    python results/ensemble.py data/cifar10.npz runs/*/version_*/checkpoints/last.ckpt

prints a JSON line with the accuracy of each model and of the ensemble, without and with the mirror images.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor

import metricloss_pl
from metricloss_pl.data import NpzDataModule


@torch.inference_mode()
def probabilities(model: torch.nn.Module, images: Tensor, flip: bool) -> Tensor:
    """Return probabilities (N, C) of images (N, C, H, W), with `flip` their mean over both mirror images."""
    found = []
    for batch in images.split(500):
        views = [model(batch), model(batch.flip(-1))] if flip else [model(batch)]
        found.append(torch.stack([model.probabilities(scores) for scores in views]).mean(0))
    return torch.cat(found)


def main() -> None:
    """Print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="an .npz file with test_images and test_labels")
    parser.add_argument("checkpoints", nargs="+")
    given = parser.parse_args()
    data = NpzDataModule(path=given.data)
    data.setup("test")
    test = data.samples("test")
    line: dict[str, object] = {"checkpoints": given.checkpoints}
    for name, flip in (("single view", False), ("with flips", True)):
        members = [probabilities(metricloss_pl.load(path).eval(), test.images, flip) for path in given.checkpoints]

        def accuracy(mean: Tensor) -> float:
            return (mean.argmax(1) == test.labels).double().mean().item()

        line[name] = {
            "each": [accuracy(member) for member in members],
            "ensemble": accuracy(torch.stack(members).mean(0)),
        }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
