"""Ablation of the recipe for few images: trainings on CIFAR-10 with 50 images per class, validated on 5,000 others.

    python results/ablation.py data/cifar10.npz

trains what results/ablation.jsonl lacks, one run after the other, and prints the table. Stop it at any time: finished
runs stay, and a run that has begun is resumed. The test set is not read.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
from ensemble import accuracies
from operations import training_operations
from scipy import stats

from metricloss_pl.data import NpzDataModule

RESULTS = Path(__file__).with_suffix(".jsonl")
RUNS = Path("runs/ablation")
TRAINING, VALIDATION = 50, 500  # images per class
SEEDS = (1000, 1001, 1002)  # draws of the training and validation images


def epochs(count: int) -> list[str]:
    """Return the flags of a training of that length, validated after the last epoch, as the recipe ends with it."""
    return ["--trainer.max_epochs", str(count), "--trainer.check_val_every_n_epoch", str(count)]


AUGMENT = "[{class_path: %s}, {class_path: ShiftCrop, init_args: {pixels: 4}}]"
VARIANTS: dict[str, list[str]] = {
    "the recipe": [],
    "half as long": epochs(20),
    "twice as long": epochs(80),
    "weight decay 5e-4": ["--model.optimizer.weight_decay", "5e-4"],
    "weight decay 1.5e-2": ["--model.optimizer.weight_decay", "1.5e-2"],
    "learning rate 0.05": ["--model.optimizer.lr", "0.05"],
    "learning rate 0.2": ["--model.optimizer.lr", "0.2"],
    "no policy": ["--data.augment", "[{class_path: ShiftCrop, init_args: {pixels: 4}}]"],
    "RandAugment": ["--data.augment", AUGMENT % "RandAugment"],
    "TrivialAugment": ["--data.augment", AUGMENT % "TrivialAugment"],
    "no CutMix": ["--model.batch_mixing", "null"],
    "CutMix always": ["--model.batch_mixing.probability", "1"],
    "no label smoothing": ["--model.label_smoothing", "0"],
    "averaged weights": ["--trainer.callbacks+", "ExponentialMovingAverage"],
    "harmonic filters": ["--model.backbone.harmonic", "true"],
    "twice as wide": ["--model.backbone.width", "128"],
    "three convolutions per stage": ["--model.backbone.depth", "3"],
    "batch norm as trained": ["--trainer.callbacks", "null"],
    "PreActResNet": ["--model.backbone", "PreActResNet"],
}
MEMBERS = [f"member {member}" for member in range(2, 6)]  # with the recipe itself an ensemble of five
VARIANTS |= {name: [] for name in MEMBERS}


def command(data: str, seed: int, member: int, flags: list[str], folder: Path) -> list[str]:
    """Return the command of one training."""
    return [
        *(sys.executable, "-m", "metricloss_pl", "fit", "--config", "cifar10_50_softmax.yaml"),
        *("--data", "NpzDataModule", "--data.path", data),
        *("--data.samples_per_class", str(TRAINING + VALIDATION)),
        *("--data.val_fraction", f"{VALIDATION / (TRAINING + VALIDATION):.6f}"),
        *("--data.seed", str(seed), "--seed_everything", str(member)),
        *("--trainer.precision", "bf16-mixed"),
        *(*epochs(40), "--test_after_fit", "false"),
        *("--runs_dir", str(folder)),
        *flags,
    ]


def folder_of(name: str, seed: int) -> Path:
    """Return the folder of the runs of a variant on a draw."""
    return RUNS / f"{name.replace(' ', '_')}-{seed}"


def stored() -> list[dict]:
    """Return the results so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def done() -> set[tuple[str, int]]:
    """Return variants and draws whose results are stored."""
    return {(line["variant"], line["draw"]) for line in stored()}


def write(lines: list[dict]) -> None:
    """Add lines to the results."""
    with RESULTS.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def train(data: str, name: str, seed: int) -> None:
    """Train one variant, or resume it, and add its result to the file."""
    folder = folder_of(name, seed)
    begun = list(folder.glob("*/version_*/checkpoints/last.ckpt"))
    if begun:
        run = max(begun, key=lambda file: file.stat().st_mtime).parent.parent
        arguments = [sys.executable, "-m", "metricloss_pl", "fit", "--resume", str(run)]
    else:
        member = MEMBERS.index(name) + 1 if name in MEMBERS else seed  # decides weights, order and augmentation
        arguments = command(data, seed, member, VARIANTS[name], folder)
    subprocess.run(arguments, check=True)
    run = max(folder.glob("*/version_*/result.json"), key=lambda file: file.stat().st_mtime)
    operations = training_operations(run.parent, 32)
    line = {"variant": name, "draw": seed, "operations": operations, **json.loads(run.read_text())}
    write([line])


def evaluate(data: str, seed: int) -> list[dict]:
    """Return the accuracies of the recipe with mirror images, and of an ensemble of five, on the validation images."""
    module = NpzDataModule(
        path=data, samples_per_class=TRAINING + VALIDATION, val_fraction=VALIDATION / (TRAINING + VALIDATION), seed=seed
    )
    module.setup("fit")
    checkpoints = [
        max(folder_of(name, seed).glob("*/version_*/checkpoints/last.ckpt"), key=lambda file: file.stat().st_mtime)
        for name in ("the recipe", *MEMBERS)
    ]
    found = accuracies(checkpoints, module.samples("val"))
    rows = {
        "mirror images at test time": found["with_flips"]["each"][0],
        "ensemble of five": found["single_view"]["ensemble"],
        "ensemble of five, mirror images": found["with_flips"]["ensemble"],
    }
    return [{"variant": name, "draw": seed, "metrics": {"val/accuracy": value}} for name, value in rows.items()]


def table(lines: list[dict]) -> str:
    """Return accuracies and their differences from the recipe in percentage points, as Markdown.

    Variants and draws are the two factors of a randomized block design without replication. The interval of a
    difference is t * sqrt(2 s^2 / draws), where s^2 is the residual mean square of the additive model and t has its
    degrees of freedom.
    """
    accuracy = {(line["variant"], line["draw"]): 100 * line["metrics"]["val/accuracy"] for line in lines}
    draws = [seed for seed in SEEDS if ("the recipe", seed) in accuracy]
    names = [name for name in dict.fromkeys(name for name, _ in accuracy) if name not in MEMBERS]
    complete = [name for name in names if all((name, draw) in accuracy for draw in draws)]
    block = np.array([[accuracy[name, draw] for draw in draws] for name in complete])
    residuals = block - block.mean(1, keepdims=True) - block.mean(0) + block.mean()
    freedom = (len(complete) - 1) * (len(draws) - 1)
    half = math.nan
    if freedom > 0:
        half = stats.t.ppf(0.975, freedom) * math.sqrt(2 * (residuals**2).sum() / freedom / len(draws))
    rows = ["| variant | val/accuracy | difference |", "|---|---|---|"]
    for name, values in zip(complete, block, strict=True):
        difference = (values - block[complete.index("the recipe")]).mean()
        interval = "" if name == "the recipe" else f"{difference:+.1f} ± {half:.1f}"
        rows.append(f"| {name} | {values.mean():.1f} | {interval} |")
    return "\n".join(rows)


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="CIFAR-10 as an .npz file with train_images and train_labels")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    given = parser.parse_args()
    for seed in SEEDS:
        for name in given.variants:
            if (name, seed) not in done():
                train(given.data, name, seed)
        if (
            all((name, seed) in done() for name in ("the recipe", *MEMBERS))
            and ("ensemble of five", seed) not in done()
        ):
            write(evaluate(given.data, seed))
    print(table(stored()))


if __name__ == "__main__":
    main()
