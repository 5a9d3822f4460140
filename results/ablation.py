"""Ablation of the recipe for few images: trainings on CIFAR-10 with 50 images per class, validated on 5,000 others.

    python results/ablation.py data/cifar10.npz

trains what results/ablation.jsonl lacks, one run after the other, and prints the table. Stop it at any time: finished
runs stay, and a run that has begun is resumed. The test set is not read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from scipy import stats

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


def command(data: str, seed: int, flags: list[str], folder: Path) -> list[str]:
    """Return the command of one training."""
    return [
        *(sys.executable, "-m", "metricloss_pl", "fit", "--config", "cifar10_50_softmax.yaml"),
        *("--data", "NpzDataModule", "--data.path", data),
        *("--data.samples_per_class", str(TRAINING + VALIDATION)),
        *("--data.val_fraction", f"{VALIDATION / (TRAINING + VALIDATION):.6f}"),
        *("--data.seed", str(seed), "--seed_everything", str(seed)),
        *(*epochs(40), "--test_after_fit", "false"),
        *("--runs_dir", str(folder)),
        *flags,
    ]


def train(data: str, name: str, seed: int) -> None:
    """Train one variant, or resume it, and add its result to the file."""
    folder = RUNS / f"{name.replace(' ', '_')}-{seed}"
    begun = list(folder.glob("*/version_*/checkpoints/last.ckpt"))
    if begun:
        run = max(begun, key=lambda file: file.stat().st_mtime).parent.parent
        arguments = [sys.executable, "-m", "metricloss_pl", "fit", "--resume", str(run)]
    else:
        arguments = command(data, seed, VARIANTS[name], folder)
    subprocess.run(arguments, check=True)
    run = max(folder.glob("*/version_*/result.json"), key=lambda file: file.stat().st_mtime)
    line = {"variant": name, "draw": seed, **json.loads(run.read_text())}
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def table(lines: list[dict]) -> str:
    """Return accuracies and their differences from the recipe in percentage points, as Markdown.

    The interval of a difference is Student's, over the draws; it needs at least two.
    """
    accuracy = {(line["variant"], line["draw"]): 100 * line["metrics"]["val/accuracy"] for line in lines}
    rows = ["| variant | val/accuracy | difference |", "|---|---|---|"]
    base = {draw: value for (name, draw), value in accuracy.items() if name == "the recipe"}
    for name in VARIANTS:
        own = {draw: value for (variant, draw), value in accuracy.items() if variant == name}
        if not own:
            continue
        mean = sum(own.values()) / len(own)
        shared = [own[draw] - base[draw] for draw in own if draw in base and name != "the recipe"]
        difference = ""
        if len(shared) > 1:
            low, high = stats.t.interval(0.95, len(shared) - 1, statistics.mean(shared), stats.sem(shared))
            difference = f"{statistics.mean(shared):+.1f} [{low:+.1f}, {high:+.1f}]"
        rows.append(f"| {name} | {mean:.1f} | {difference} |")
    return "\n".join(rows)


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="CIFAR-10 as an .npz file with train_images and train_labels")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    given = parser.parse_args()
    for seed in SEEDS:
        for name in given.variants:
            lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
            if not any((line["variant"], line["draw"]) == (name, seed) for line in lines):
                train(given.data, name, seed)
    print(table([json.loads(line) for line in RESULTS.read_text().splitlines()]))


if __name__ == "__main__":
    main()
