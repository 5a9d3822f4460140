"""CIFAR-10 with 50 images per class: five networks, their ensemble, and a network distilled from them.

    python results/cifar10_50.py data/cifar10.npz --draw 0

trains what is missing, tests each network once, and adds lines to results/cifar10_50.jsonl. Stop it at any time: a run
that has begun is resumed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from runs import accuracies, last_checkpoint, operations, train

from metricloss_pl.data import NpzDataModule

RESULTS = Path(__file__).with_suffix(".jsonl")
RUNS = Path("runs/cifar10_50")
MEMBERS = 5


def main() -> None:
    """Train, test, and print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="CIFAR-10 as an .npz file with train_images, train_labels and the same for test")
    parser.add_argument("--draw", type=int, default=0, help="seed of the choice of training images; default: 0")
    given = parser.parse_args()
    folder = RUNS / f"draw_{given.draw}"
    flags = ["--config", "cifar10_50_softmax.yaml", "--data", "NpzDataModule", "--data.path", given.data]
    flags += ["--data.seed", str(given.draw), "--trainer.precision", "bf16-mixed", "--test_after_fit", "false"]
    members = [train(folder / f"member_{seed}", [*flags, "--seed_everything", str(seed)]) for seed in range(MEMBERS)]
    teachers = json.dumps([str(last_checkpoint(run)) for run in members])
    distillation = ["--model.distillation", "Distillation", "--model.distillation.teachers", teachers]
    distilled = train(folder / "distilled", [*flags, "--seed_everything", str(MEMBERS), *distillation])

    data = NpzDataModule(path=given.data)
    data.setup("test")
    runs = [*members, distilled]
    each = accuracies([last_checkpoint(run) for run in runs], data.samples("test"))
    together = accuracies([last_checkpoint(run) for run in members], data.samples("test"))
    lines = [
        {
            "network": run.parent.parent.name,
            "draw": given.draw,
            "test/accuracy": each["single_view"]["each"][position],
            "test/accuracy with flips": each["with_flips"]["each"][position],
            "operations": operations(run, 32),
            **json.loads((run / "result.json").read_text()),
        }
        for position, run in enumerate(runs)
    ]
    ensemble = {
        "network": f"ensemble of {MEMBERS}",
        "draw": given.draw,
        "test/accuracy": together["single_view"]["ensemble"],
        "test/accuracy with flips": together["with_flips"]["ensemble"],
        "operations": sum(line["operations"] for line in lines[:MEMBERS]),
    }
    with RESULTS.open("a") as file:
        for line in [*lines, ensemble]:
            print(json.dumps(line))
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
