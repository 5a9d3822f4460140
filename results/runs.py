"""Trainings of the scripts in this folder: started, resumed, and measured."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import metricloss_pl
from metricloss_pl.data.samples import Samples
from metricloss_pl.data.training_settings import batch_size_for


def train(folder: Path, flags: Sequence[str]) -> Path:
    """Return the folder of the run of `metricloss fit` below a folder; it is started, or resumed, unless it is done."""
    if not list(folder.glob("*/version_*/result.json")):
        begun = [file.parent.parent for file in folder.glob("*/version_*/checkpoints/last.ckpt")]
        given = ["--resume", str(begun[0])] if begun else [*flags, "--runs_dir", str(folder)]
        subprocess.run([sys.executable, "-m", "metricloss_pl", "fit", *given], check=True)
    (result,) = folder.glob("*/version_*/result.json")
    return result.parent


def stored(results: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of results, none if it does not exist."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def store(results: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Add lines to a file of results."""
    with results.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def last_checkpoint(run: Path) -> Path:
    """Return the checkpoint of the last epoch of a run."""
    return run / "checkpoints" / "last.ckpt"


def operations(run: Path, image_size: int) -> float:
    """Return the operations of a training, and of its teachers' trainings, counted with torch.utils.flop_counter.

    These are the forward and backward passes of all training images; a multiplication and an addition are two
    operations. Augmentation, the optimizer and evaluation are not counted.

    Args:
        run: Folder of the run.
        image_size: Side of the training images in px.
    """
    model = metricloss_pl.load(last_checkpoint(run)).train()
    channels = next(layer.in_channels for layer in model.modules() if isinstance(layer, torch.nn.Conv2d))
    images, labels = torch.rand(4, channels, image_size, image_size), torch.zeros(4, dtype=torch.int64)
    before = 0.0
    if model.distillation is not None:
        model.distillation.load(model)
        before = sum(operations(Path(path).parent.parent, image_size) for path in model.distillation.teachers)
    with FlopCounterMode(display=False) as counter:
        embeddings = model.embed(images)
        losses = model.losses(embeddings, labels)
        if model.distillation is not None:
            losses = model.distillation(losses, images, model.class_scores(embeddings))
        losses["loss"].backward()
    return before + counter.get_total_flops() / len(images) * _training_images(run)


def _training_images(run: Path) -> int:
    """Return the images of all steps of a run together."""
    result = json.loads((run / "result.json").read_text())
    batch_size = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["batch_size"]
    if batch_size == "auto":
        with (run / "split.csv").open(newline="") as file:
            return result["steps"] * batch_size_for(sum(row["split"] == "train" for row in csv.DictReader(file)))
    return result["steps"] * batch_size * result["processes"]


@torch.inference_mode()
def accuracies(checkpoints: Sequence[Path], samples: Samples, members: int | None = None) -> dict[str, dict[str, Any]]:
    """Return accuracies without and with mirror images: of each model, and of an ensemble of the first members.

    An ensemble predicts the mean of the probabilities. Without `members` it has all models.
    """
    assert isinstance(samples.images, Tensor)
    models = [metricloss_pl.load(path) for path in checkpoints]
    found: dict[str, dict[str, Any]] = {}
    for name, flip in (("single_view", False), ("with_flips", True)):
        probabilities = [_probabilities(model, samples.images, flip) for model in models]
        mean = torch.stack(probabilities[:members]).mean(0)
        correct = [(values.argmax(1) == samples.labels).double() for values in [*probabilities, mean]]
        *each, ensemble = [float(values.mean()) for values in correct]
        found[name] = {"each": each, "ensemble": ensemble}
    return found


def _probabilities(model: metricloss_pl.Classifier, images: Tensor, flip: bool) -> Tensor:
    """Return probabilities (N, C) of images (N, C, H, W), with `flip` their mean over both mirror images."""
    found = []
    for batch in images.split(500):
        views = [model(batch), model(batch.flip(-1))] if flip else [model(batch)]
        found.append(torch.stack([model.probabilities(scores) for scores in views]).mean(0))
    return torch.cat(found)
