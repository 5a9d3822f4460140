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
DRAWS = (1000, 1001, 1002)  # seeds of the choice of training and validation images
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


def run_of(data: str, name: str, draw: int) -> Path:
    """Return the folder of the run of a variant on a draw, which is trained unless it is done."""
    seed = MEMBERS.index(name) + 1 if name in MEMBERS else draw  # decides weights, order and augmentation
    flags = ["--config", "cifar10_50_softmax.yaml", "--data", "NpzDataModule", "--data.path", data]
    flags += ["--data.samples_per_class", str(TRAINING + VALIDATION)]
    flags += ["--data.val_fraction", f"{VALIDATION / (TRAINING + VALIDATION):.6f}", "--data.seed", str(draw)]
    flags += ["--seed_everything", str(seed), "--trainer.precision", "bf16-mixed", "--test_after_fit", "false"]
    flags += [*epochs(EPOCHS), *VARIANTS[name]]
    if name == "distilled from five":
        teachers = json.dumps([str(checkpoint) for checkpoint in ensemble(data, draw)])
        flags += ["--model.distillation", "Distillation", "--model.distillation.teachers", teachers]
    return train(RUNS / f"{name.replace(' ', '_')}-{draw}", flags)


def ensemble(data: str, draw: int) -> list[Path]:
    """Return the checkpoints of the recipe with five seeds, which are trained unless they are done."""
    return [last_checkpoint(run_of(data, name, draw)) for name in ("the recipe", *MEMBERS)]


def results(data: str, name: str, draw: int) -> list[dict]:
    """Return the lines of a variant on a draw, or those of TOGETHER, on the validation images."""
    if name not in TOGETHER:
        run = run_of(data, name, draw)
        result = json.loads((run / "result.json").read_text())
        return [{"variant": name, "draw": draw, "operations": operations(run, 32), **result}]
    fraction = VALIDATION / (TRAINING + VALIDATION)
    module = NpzDataModule(path=data, samples_per_class=TRAINING + VALIDATION, val_fraction=fraction, seed=draw)
    module.setup("fit")
    found = accuracies(ensemble(data, draw), module.samples("val"))
    values = (found["with_flips"]["each"][0], found["single_view"]["ensemble"], found["with_flips"]["ensemble"])
    return [
        {"variant": name, "draw": draw, "metrics": {"val/accuracy": value}}
        for name, value in zip(TOGETHER, values, strict=True)
    ]


def table(lines: list[dict]) -> str:
    """Return accuracies and their differences from the recipe in percentage points, as Markdown.

    Variants and draws are the two factors of a randomized block design without replication. The interval of a
    difference is t * sqrt(2 s^2 / draws), where s^2 is the residual mean square of the additive model and t has its
    degrees of freedom.
    """
    accuracy = {(line["variant"], line["draw"]): 100 * line["metrics"]["val/accuracy"] for line in lines}
    draws = [draw for draw in DRAWS if ("the recipe", draw) in accuracy]
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
    parser.add_argument("--variants", nargs="*", choices=[*VARIANTS, TOGETHER[0]], help="default: all")
    given = parser.parse_args()
    for draw in DRAWS:
        for name in given.variants or [*VARIANTS, TOGETHER[0]]:
            if all((line["variant"], line["draw"]) != (name, draw) for line in stored(RESULTS)):
                store(RESULTS, results(given.data, name, draw))
    print(table(stored(RESULTS)))


if __name__ == "__main__":
    main()
