"""Digits of which three classes are left out of training: the share of their images that the threshold rejects.

    python results/unknown_digits.py

trains each regime without the digits 7 to 9, 0 to 2 and 3 to 5, on the CPU, with `reject_quantile: 0.05` and the
shipped configs, and adds the missing lines to results/unknown_digits.jsonl. A training takes some 15 seconds.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

import metricloss_pl
from runs import store, stored, train

RESULTS = Path(__file__).with_suffix(".jsonl")
RUNS = Path("runs/unknown_digits")
REGIMES = ("softmax", "cosine", "center", "standalone")
LEFT_OUT = ((7, 8, 9), (0, 1, 2), (3, 4, 5))


def main() -> None:
    """Train and measure what is not stored."""
    done = {(line["regime"], tuple(line["left_out"])) for line in stored(RESULTS)}
    for left_out in LEFT_OUT:
        for regime in REGIMES:
            if (regime, left_out) not in done:
                store(RESULTS, [measure(regime, left_out)])


def measure(regime: str, left_out: tuple[int, ...]) -> dict[str, object]:
    """Return the shares of rejected images, and the ROC AUC of the distance to the nearest class."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    is_unknown = np.isin(digits.target, left_out)
    order = np.random.default_rng(0).permutation(np.flatnonzero(~is_unknown))
    sets = {"test": order[: len(order) // 5], "train": order[len(order) // 5 :]}
    folder = RUNS / ("without_" + "_".join(map(str, left_out)))
    folder.mkdir(parents=True, exist_ok=True)
    known = [str(digit) for digit in range(10) if digit not in left_out]
    labels = {split: [known.index(str(digit)) for digit in digits.target[index]] for split, index in sets.items()}
    arrays = {f"{split}_images": images[index] for split, index in sets.items()}
    arrays |= {f"{split}_labels": np.array(of_split) for split, of_split in labels.items()}
    np.savez(folder / "digits.npz", classes=np.array(known), **arrays)

    flags = ["--config", f"digits_{regime}.yaml", "--data", "NpzDataModule", "--data.path", str(folder / "digits.npz")]
    flags += ["--reject_quantile", "0.05", "--trainer.callbacks", "null", "--trainer.accelerator", "cpu"]
    run = train(folder / regime, flags)
    model = metricloss_pl.load(run / "checkpoints" / "best.ckpt")
    assert model.rejection is not None
    with torch.inference_mode():
        embeddings = {
            name: model.embed(torch.from_numpy(some)[:, None])
            for name, some in (("test", arrays["test_images"]), ("unknown", images[is_unknown]))
        }
        distances = {name: model.rejection.distances(model, values).numpy() for name, values in embeddings.items()}
        rejected = {name: model.rejects(values).double().mean().item() for name, values in embeddings.items()}
    result = json.loads((run / "result.json").read_text())
    assert abs(rejected["test"] - result["metrics"]["test/false_reject_rate"]) < 1e-6
    is_far = np.repeat([0, 1], [len(distances["test"]), len(distances["unknown"])])
    return {
        "regime": regime,
        "left_out": left_out,
        "images": {name: len(values) for name, values in distances.items()},
        "rejected_test": rejected["test"],
        "rejected_unknown": rejected["unknown"],
        "roc_auc": float(roc_auc_score(is_far, np.concatenate([distances["test"], distances["unknown"]]))),
        "test/accuracy": result["metrics"]["test/accuracy"],
        "versions": result["versions"],
        "hardware": result["hardware"],
    }


if __name__ == "__main__":
    main()
