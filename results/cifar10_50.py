"""CIFAR-10 with 50 images per class: five networks, their ensemble, and a network distilled from them.

    python results/cifar10_50.py data/cifar10.npz --draw 0

trains what is missing, tests each network once, and adds lines to results/cifar10_50.jsonl. Stop it at any time: a run
that has begun is resumed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from metricloss_pl.data import NpzDataModule
from runs import accuracies, last_checkpoint, operations, store, stored, train

RESULTS = Path(__file__).with_suffix(".jsonl")
RUNS = Path("runs/cifar10_50")
MEMBERS = 5


def main() -> None:
    """Train and test, unless the results of the draw are stored."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="CIFAR-10 as an .npz file with train_images, train_labels and the same for test")
    parser.add_argument("--draw", type=int, default=0, help="seed of the choice of training images; default: 0")
    given = parser.parse_args()
    if any(line["draw"] == given.draw for line in stored(RESULTS)):
        parser.exit(message=f"draw {given.draw} is in {RESULTS} already\n")
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
    found = accuracies([last_checkpoint(run) for run in runs], data.samples("test"), members=MEMBERS)
    single, flips = found["single_view"], found["with_flips"]
    lines = [
        {
            "network": run.parent.parent.name,
            "draw": given.draw,
            "test/accuracy": accuracy,
            "test/accuracy with flips": with_flips,
            "operations": operations(run, 32),
            **json.loads((run / "result.json").read_text()),
        }
        for run, accuracy, with_flips in zip(runs, single["each"], flips["each"], strict=True)
    ]
    lines.append(
        {
            "network": f"ensemble of {MEMBERS}",
            "draw": given.draw,
            "test/accuracy": single["ensemble"],
            "test/accuracy with flips": flips["ensemble"],
            "operations": sum(line["operations"] for line in lines[:MEMBERS]),
        }
    )
    store(RESULTS, lines)


if __name__ == "__main__":
    main()
