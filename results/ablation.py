"""Ablation of the recipe for few images: trainings on CIFAR-10 with 50 images per class, validated on 5,000 others.

    python results/ablation.py data/cifar10.npz

trains what results/ablation.jsonl lacks, one run after the other, and prints the table. Stop it at any time: finished
runs stay, and a run that has begun is resumed. The test set is not read.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
from scipy import stats

from metricloss_pl.data import NpzDataModule
from runs import accuracies, last_checkpoint, operations, store, stored, train

RESULTS = Path(__file__).with_suffix(".jsonl")
RUNS = Path("runs/ablation")
TRAINING, VALIDATION = 50, 500  # images per class
DRAW = 1000  # seed of the choice of training and validation images
EPOCHS = 40


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
MEMBERS = [f"member {number}" for number in range(2, 6)]  # with the recipe itself an ensemble of five
VARIANTS |= {name: [] for name in MEMBERS} | {"distilled from five": []}
TOGETHER = ("mirror images at test time", "ensemble of five", "ensemble of five, mirror images")  # of trained networks


def run_of(data: str, name: str) -> Path:
    """Return the folder of the run of a variant, which is trained unless it is done."""
    seed = MEMBERS.index(name) + 1 if name in MEMBERS else DRAW  # decides weights, order and augmentation
    flags = ["--config", "cifar10_50_softmax.yaml", "--data", "NpzDataModule", "--data.path", data]
    flags += ["--data.samples_per_class", str(TRAINING + VALIDATION)]
    flags += ["--data.val_fraction", f"{VALIDATION / (TRAINING + VALIDATION):.6f}", "--data.seed", str(DRAW)]
    flags += ["--seed_everything", str(seed), "--trainer.precision", "bf16-mixed", "--test_after_fit", "false"]
    flags += [*epochs(EPOCHS), *VARIANTS[name]]
    if name == "distilled from five":
        teachers = json.dumps([str(checkpoint) for checkpoint in ensemble(data)])
        flags += ["--model.distillation", "Distillation", "--model.distillation.teachers", teachers]
    return train(RUNS / f"{name.replace(' ', '_')}-{DRAW}", flags)


def ensemble(data: str) -> list[Path]:
    """Return the checkpoints of the recipe with five seeds, which are trained unless they are done."""
    return [last_checkpoint(run_of(data, name)) for name in ("the recipe", *MEMBERS)]


def results(data: str, name: str) -> list[dict]:
    """Return the line of a variant, or those of TOGETHER, on the validation images."""
    if name not in TOGETHER:
        run = run_of(data, name)
        return [{"variant": name, "operations": operations(run, 32), **json.loads((run / "result.json").read_text())}]
    fraction = VALIDATION / (TRAINING + VALIDATION)
    module = NpzDataModule(path=data, samples_per_class=TRAINING + VALIDATION, val_fraction=fraction, seed=DRAW)
    module.setup("fit")
    found = accuracies(ensemble(data), module.samples("val"))
    single, flips = found["single_view"], found["with_flips"]
    gain = np.subtract(flips["each"], single["each"])  # paired
    half = stats.t.ppf(0.975, len(gain) - 1) * gain.std(ddof=1) / math.sqrt(len(gain))
    lines = [{"variant": TOGETHER[0], "metrics": {"val/accuracy": float(np.mean(flips["each"]))}, "interval": half}]
    for name, value in zip(TOGETHER[1:], (single["ensemble"], flips["ensemble"]), strict=True):
        lines.append({"variant": name, "metrics": {"val/accuracy": value}})
    return lines


def table(lines: list[dict]) -> str:
    """Return accuracies and their differences from the recipe in percentage points, as Markdown.

    The recipe has been trained with n = 5 seeds, whose mean is m and whose standard deviation is s, each variant with
    one of them. The interval of its difference from m is t * s * sqrt(1 + 1 / n), where t has n - 1 degrees of freedom.
    It takes for granted that the trainings of a variant vary as those of the recipe do, and holds for this draw of
    images. That of mirror images at test time is t * s' / sqrt(n), with the standard deviation s' of the five gains. An
    ensemble varies less than a single network, by an unknown amount, and has no interval.
    """
    accuracy = {line["variant"]: 100 * line["metrics"]["val/accuracy"] for line in lines}
    given = {line["variant"]: 100 * line["interval"] for line in lines if "interval" in line}
    seeds = [accuracy[name] for name in ("the recipe", *MEMBERS) if name in accuracy]
    mean, half = float(np.mean(seeds)), math.nan
    if len(seeds) > 1:
        t = stats.t.ppf(0.975, len(seeds) - 1)
        half = t * float(np.std(seeds, ddof=1)) * math.sqrt(1 + 1 / len(seeds))
    rows = ["| variant | val/accuracy | difference |", "|---|---|---|", f"| the recipe | {mean:.1f} | |"]
    for name, value in accuracy.items():
        if name not in ("the recipe", *MEMBERS):
            interval = "" if name in TOGETHER[1:] else f" ± {given.get(name, half):.1f}"
            rows.append(f"| {name} | {value:.1f} | {value - mean:+.1f}{interval} |")
    return "\n".join(rows)


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="CIFAR-10 as an .npz file with train_images and train_labels")
    parser.add_argument("--variants", nargs="*", choices=[*VARIANTS, TOGETHER[0]], help="default: all")
    given = parser.parse_args()
    for name in given.variants or [*VARIANTS, TOGETHER[0]]:
        if all(line["variant"] != name for line in stored(RESULTS)):
            store(RESULTS, results(given.data, name))
    print(table(stored(RESULTS)))


if __name__ == "__main__":
    main()
