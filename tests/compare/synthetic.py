"""Folders as a comparison leaves them, with simulated runs of given accuracies, so that nothing is trained."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from metricloss_pl.compare.store import FORMAT, Predictions, Store

DIGITS = [str(digit) for digit in range(10)]
Size = int | None


def correctness(
    generator: np.random.Generator,
    accuracy: float,
    common: np.ndarray,
    own: np.ndarray,
    image_correlation: float,
    variant_correlation: float,
    training_std: float,
) -> np.ndarray:
    """Return which images (N,) a training classifies correctly, at an expected share of `accuracy`.

    Images have a difficulty `common` to all variants and one of this variant, `own`, each standard normal with a share
    of the variance (the correlations); `training_std` is that of the training's own effect, in probits.
    """
    rest = np.sqrt(1 - image_correlation - variant_correlation)
    latent = np.sqrt(image_correlation) * common + np.sqrt(variant_correlation) * own
    latent = latent + rest * generator.normal(size=len(common)) + training_std * generator.normal()
    return latent < norm.ppf(accuracy) * np.sqrt(1 + training_std**2)


def make_comparison(
    folder: Path,
    variants: Mapping[str, float | Mapping[Size, float]] | None = None,
    sizes: Sequence[Size] = (None,),
    seeds: Sequence[int] = (0, 1, 2),
    splits: int = 1,
    folds: int | None = None,
    trials: int = 0,
    images: int = 300,
    class_names: Sequence[str] = DIGITS,
    labels: Sequence[int] | None = None,
    image_correlation: float = 0.5,
    variant_correlation: float = 0.2,
    training_std: float = 0.1,
    epochs: int = 10,
    embedding_dim: int = 8,
    kinds: Mapping[str, str] | None = None,
    name_image: Callable[[int], str] = lambda number: f"test {number}",
    seed: int = 0,
    missing: Callable[[Mapping[str, Any]], bool] = lambda run: False,
    failing: Callable[[Mapping[str, Any]], bool] = lambda run: False,
    **plan: Any,
) -> Path:
    """Write plan.json, runs and predictions of a simulated comparison.

    Args:
        folder: Folder to write.
        variants: Expected accuracy of each variant, or one per size; the first is the baseline.
        trials: Trials per variant, size and fold, tuning a learning rate.
        labels: Labels of the test images. None: all classes in turn.
        kinds: Kinds of variants that are not regimes.
        name_image: Function from the number of a test image to its name.
        missing: Function that tells from the description of a run whether it has not been done.
        failing: Function that tells from the description of a run whether it has failed.
        plan: Entries of plan.json that replace the usual ones.
    """
    variants = {"softmax": 0.8, "cosine": 0.86, "center": 0.8} if variants is None else variants
    generator, store = np.random.default_rng(seed), Store(folder)
    truth = np.arange(images) % len(class_names) if labels is None else np.asarray(labels)
    in_fold = np.random.default_rng(1).permutation(len(truth)) % (folds or 1)
    common = generator.normal(size=len(truth))
    own = {name: generator.normal(size=len(truth)) for name in variants}
    means = 3 * generator.normal(size=(len(class_names), embedding_dim))
    every_fold: list[int | None] = [None] if folds is None else list(range(folds))
    runs: dict[str, dict[str, Any]] = {}
    written = []

    def planned(kind: str, variant: str, size: Size, split: int, fold: int | None, run_seed: int, trial: int | None):
        key = f"{kind}-{list(variants).index(variant)}-{size}-{split}-{fold}-{run_seed}-{trial}"
        runs[key] = {
            "kind": kind, "variant": variant, "size": size, "split": split, "seed": run_seed, "fold": fold,
            "trial": trial,
        }  # fmt: skip
        return key

    def accuracy_of(variant: str, size: Size) -> float:
        expected = variants[variant]
        return expected if isinstance(expected, float) else expected[size]

    place = itertools.product(sizes, range(trials), variants, range(splits if folds else 1), every_fold)
    for size, trial, variant, split, fold in place:
        key = planned("trial", variant, size, split, fold, seeds[0], trial)
        if missing(runs[key]):
            continue
        rate = float(10 ** generator.uniform(-3, 0))
        loss = 0.1 * (np.log10(rate) + 1.5) ** 2
        score = float(np.clip(accuracy_of(variant, size) - loss + generator.normal(0, 0.01), 0, 1))
        result = _result(key, runs[key], rate, epochs, score)
        pruned = loss > 0.2
        metrics = {"val/accuracy": score, "val/balanced_accuracy": score - 0.001, "val/nll": 2 - score}
        written.append((result | {"metrics": {} if pruned else metrics, "status": "pruned" if pruned else "ok"}, None))
    for run_seed, split, fold, size, variant in itertools.product(seeds, range(splits), every_fold, sizes, variants):
        key = planned("final", variant, size, split, fold, run_seed, None)
        if missing(runs[key]):
            continue
        result = _result(key, runs[key], 0.03, epochs)
        if failing(runs[key]):
            failure = {"status": "failed", "reason": "train/loss is not finite at step 12 <b>", "metrics": {}}
            written.append((result | failure | {"history": {}}, None))
            continue
        tested = np.arange(len(truth)) if fold is None else np.flatnonzero(in_fold == fold)
        right = correctness(
            generator, accuracy_of(variant, size), common[tested], own[variant][tested],
            image_correlation, variant_correlation, training_std,
        )  # fmt: skip
        wrong = (truth[tested] + generator.integers(1, len(class_names), len(tested))) % len(class_names)
        predicted = np.where(right, truth[tested], wrong)
        scores = generator.normal(0, 0.5, (len(tested), len(class_names)))
        scores[np.arange(len(tested)), predicted] = scores.max(axis=1) + generator.uniform(0.1, 3, len(tested))
        probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        first = (run_seed, split, fold or 0) == (seeds[0], 0, 0)
        points = means[predicted] + generator.normal(size=(len(tested), embedding_dim))
        recalls = [right[truth[tested] == label].mean() for label in np.unique(truth[tested])]
        result["metrics"] = {
            "test/accuracy": float(right.mean()),
            "test/balanced_accuracy": float(np.mean(recalls)),
            "test/nll": float(-np.log(probabilities[np.arange(len(tested)), truth[tested]]).mean()),
            "train/accuracy": min(1.0, float(right.mean()) + 0.1),
        }
        result["images"] = {"train": 10 * (size or 50), "val": 0, "test": len(tested)}
        predictions = Predictions(
            np.array([name_image(int(number)) for number in tested]),
            truth[tested].astype(np.int64),
            probabilities.astype(np.float32),
            points.astype(np.float16) if first else None,
        )
        written.append((result, predictions))
    space = {"model.optimizer.lr": {"low": 0.001, "high": 1.0, "log": True}} if trials else {}
    subsets = [
        {"kind": kind, "size": size, "split": split, "seed": seeds[0], "fold": fold,
         "train": (6 if kind == "trial" else 10) * (size or 50), "val": 4 * (size or 50) if kind == "trial" else 0,
         "test": len(truth) if fold is None else int((in_fold == fold).sum())}
        for kind in (("trial", "final") if trials else ("final",))
        for size, split, fold in itertools.product(sizes, range(splits), every_fold)
    ]  # fmt: skip
    store.write_plan(
        {
            "format": FORMAT, "name": "digits", "command": "metricloss compare --config digits.yaml",
            "baseline": next(iter(variants)), "metric": "accuracy",
            "variants": {
                name: {"kind": (kinds or {}).get(name, "regime"), "config": f"digits_{name}.yaml", "settings": {},
                       "space": space}
                for name in variants
            },
            "sizes": list(sizes), "seeds": list(seeds), "splits": splits, "folds": folds, "steps": None,
            "tuning": {"trials": trials, "val_fraction": 0.4, "pruner": "median", "n_startup_trials": 8,
                       "epochs": None},
            "data": {"name": "DigitsDataModule", "root": None, "class_names": list(class_names),
                     "n_images": len(truth) + 1000, "image_size": 8, "subsets": subsets},
            "warnings": [],
            "environment": {"python": "3.11.9", "torch": "2.14.1", "metricloss_pl": "0.1.0", "device": "CPU"},
            "runs": runs, **plan,
        }
    )  # fmt: skip
    for result, predictions in written:
        store.write_result(result, predictions)
    return folder


def _result(
    key: str, run: Mapping[str, Any], rate: float, epochs: int, validation: float | None = None
) -> dict[str, Any]:
    """Return the result of a run without metrics."""
    rise = 1 - np.exp(-np.arange(1, epochs + 1) / (epochs / 4))
    history = {"epoch": list(range(1, epochs + 1)), "train/loss": (2.3 * (1.02 - rise)).tolist()}
    if validation is not None:
        history["val/accuracy"] = (validation * rise).tolist()
    return {
        "key": key, **run, "status": "ok", "reason": None, "settings": {"model.optimizer.lr": rate}, "metrics": {},
        "history": history, "steps": 20 * epochs, "epochs": epochs, "seconds": 12.5,
        "images": {"train": 10 * (run["size"] or 50), "val": 0, "test": 0}, "folder": None, "checkpoint": None,
        "warnings": [],
    }  # fmt: skip
