"""Wrong labels planted into CIFAR-10, and the share of them that `metricloss check` finds.

    python results/check_labels.py data/cifar10.npz tf_efficientnet_lite0.pth

5 % of the labels of 5,000 training images, 500 per class, are replaced by another class, drawn at random. The
probabilities come from a linear probe in five folds, as in a comparison with `--pretrained`: logistic regression on the
normalized features of a frozen EfficientNet-Lite0 (ImageNet) of the images enlarged to 224 px. Its regularization and
its temperature are chosen on a fifth of the first fold's training images, which have wrong labels, too. Five draws of
wrong labels and folds are measured. The rule was chosen among the published ones of confident learning with a sixth
draw, and with images enlarged to 128 px. Features are stored in a folder that may be removed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.model_selection import StratifiedKFold, train_test_split
from torch.nn import functional

from metricloss_pl.backbones import TimmBackbone
from metricloss_pl.check.wrong_labels import find_wrong_labels
from metricloss_pl.metrics import Temperature
from metricloss_pl.regimes.linear_probe import fit_logistic_regression
from runs import store, stored

RESULTS = Path(__file__).with_suffix(".jsonl")
CLASSES, PER_CLASS = 10, 500
SIZE = 224  # px
SHARE = 0.05  # of wrong labels
DRAWS = range(1, 6)  # seeds of the wrong labels and of the folds
FOLDS = 5
GRID = tuple(10 ** (exponent / 2) for exponent in range(7))  # from 1 to 1,000


@torch.inference_mode()
def features(images: NDArray[np.uint8], weights: str) -> torch.Tensor:
    """Return features (N, F) of images (N, 32, 32, 3)."""
    backbone = TimmBackbone("tf_efficientnet_lite0", weights=weights).eval().to(memory_format=torch.channels_last)
    found = []
    for start in range(0, len(images), 50):
        enlarged = [
            Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            for image in images[start : start + 50]
        ]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in enlarged])).permute(0, 3, 1, 2)
        found.append(backbone((pixels / 255 - 0.5) / 0.5))
    return torch.cat(found)


def read_features(data: Path, weights: str, folder: Path, classes: list[int]) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Return features and labels, which are computed unless they are in the folder, one file per class."""
    arrays = np.load(data)
    every = arrays["train_labels"].reshape(-1)
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for label in classes:
        file = folder / f"features_{label}.npy"
        if not file.exists():
            chosen = np.flatnonzero(every == label)[:PER_CLASS]
            np.save(file, features(arrays["train_images"][chosen], weights).numpy())
        found.append(torch.from_numpy(np.load(file)))
    return torch.cat(found), np.repeat(np.array(classes), PER_CLASS)


def out_of_fold(points: torch.Tensor, labels: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    """Return probabilities (N, C) of a linear probe that was trained on the other folds."""
    targets = torch.from_numpy(labels)
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(points, labels))
    fitted, held = train_test_split(folds[0][0], test_size=0.2, stratify=labels[folds[0][0]], random_state=seed)
    best = (0.0, 0.0)
    for value in GRID:
        weight, bias = fit_logistic_regression(points[fitted], targets[fitted], CLASSES, value)
        scores = points[held] @ weight.T + bias
        accuracy = (scores.argmax(1) == targets[held]).float().mean().item()
        score = (accuracy, -functional.cross_entropy(scores, targets[held]).item())
        if value == GRID[0] or score > best:
            best, chosen = score, value
            temperature = Temperature()
            temperature.update(scores, targets[held])
    print(f"C {chosen:.3g}, temperature {temperature.compute().item():.3f}", flush=True)
    found = np.empty((len(labels), CLASSES), dtype=np.float32)
    for others, fold in folds:
        weight, bias = fit_logistic_regression(points[others], targets[others], CLASSES, chosen)
        found[fold] = torch.softmax((points[fold] @ weight.T + bias) / temperature.compute(), dim=1).numpy()
    return found


def measure(points: torch.Tensor, truth: NDArray[np.int64], draw: int) -> dict[str, float | int]:
    """Plant wrong labels, and return what is found."""
    generator = np.random.default_rng(draw)
    planted = generator.permutation(len(truth))[: round(SHARE * len(truth))]
    labels = truth.copy()
    labels[planted] = (truth[planted] + generator.integers(1, CLASSES, len(planted))) % CLASSES
    probabilities = out_of_fold(points, labels, draw)
    found = find_wrong_labels(labels, probabilities)
    right = len(np.intersect1d(found, planted))
    return {
        "draw": draw,
        "images": len(truth),
        "planted": len(planted),
        "found": len(found),
        "recall": right / len(planted),
        "precision": right / len(found),
        "accuracy": float((probabilities.argmax(1) == truth).mean()),
    }


def main() -> None:
    """Measure what is missing and print recall and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="CIFAR-10 as an .npz file with train_images and train_labels")
    parser.add_argument("weights", help="weights of timm's tf_efficientnet_lite0")
    parser.add_argument("--features", type=Path, default=Path("runs/check_labels"), help="folder of features")
    parser.add_argument("--classes", type=int, nargs="*", help="only compute the features of these classes")
    given = parser.parse_args()
    points, truth = read_features(given.data, given.weights, given.features, given.classes or list(range(CLASSES)))
    if given.classes:
        return
    for draw in DRAWS:
        if all(line["draw"] != draw for line in stored(RESULTS)):
            store(RESULTS, [measure(functional.normalize(points), truth, draw)])
    lines = stored(RESULTS)
    for name in ("recall", "precision", "accuracy"):
        values = [line[name] for line in lines]
        print(
            f"{name:<9}  {np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}, {min(values):.3f} to {max(values):.3f}"
        )


if __name__ == "__main__":
    main()
