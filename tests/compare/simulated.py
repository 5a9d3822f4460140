"""Folders of results as a comparison leaves them, drawn by chance around accuracies that are planted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = [str(digit) for digit in range(10)]


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def correctness(
    generator: np.random.Generator,
    images: int,
    repetitions: int,
    difference: float = 0.0,
    training_spread: float = 0.3,
    level: float = 2.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong, two (N, U) of two variants whose logits differ by so much on average.

    Images are harder or easier for both and for each of them, and each training is better or worse.
    """
    common = generator.normal(0, 1.5, (images, 1))

    def variant(shift: float) -> np.ndarray:
        own, training = generator.normal(0, 0.7, (images, 1)), generator.normal(0, training_spread, (1, repetitions))
        return (generator.random((images, repetitions)) < sigmoid(level + shift + common + own + training)).astype(
            float
        )

    return variant(0.0), variant(difference)


def key_of(variant: str, size: int | None, split: int, fold: int | None, seed: int) -> str:
    return f"final-{variant}-{size}-{split}-{fold}-{seed}".replace("/", "_").replace("<", "_").replace(">", "_")


def make_results(
    folder: Path,
    variants: Mapping[str, float] | None = None,
    sizes: Sequence[int | None] = (10, 25, 50),
    seeds: Sequence[int] = (0, 1, 2),
    splits: int = 1,
    folds: int | None = None,
    trials: int = 12,
    class_names: Sequence[str] = DIGITS,
    images: int = 360,
    labels: Sequence[int] | None = None,
    epochs: int = 30,
    dim: int = 16,
    name_image: Callable[[int], str] = lambda k: f"test {k}",
    validation: bool = True,
    seed: int = 0,
    without: Callable[[dict[str, Any]], bool] = lambda run: False,
    failing: Callable[[dict[str, Any]], bool] = lambda run: False,
    **facts: Any,
) -> Path:
    """Writes plan.json, results.jsonl and predictions/.

    Args:
        variants: Name to the shift of its logits against the first.
        without: Of a planned run, whether its result is missing; `failing`: whether it failed.
    """
    generator = np.random.default_rng(seed)
    variants = {"softmax": 0.0, "cosine": 0.6, "center": 0.1, "standalone": -0.5} if variants is None else variants
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    num_classes = len(class_names)
    labels = np.arange(images) % num_classes if labels is None else np.array(labels)
    images = len(labels)
    hard = generator.normal(0, 1.5, images)
    means = generator.normal(size=(num_classes, dim))
    keys, lines = {}, []
    for shift, (variant, size, split, fold, run_seed) in (
        (variants[place[0]], place)
        for place in itertools.product(variants, sizes, range(splits), [None] if folds is None else range(folds), seeds)
    ):
        planned = {
            "kind": "final", "variant": variant, "samples_per_class": size, "split": split, "fold": fold,
            "seed": run_seed,
        }  # fmt: skip
        key = key_of(variant, size, split, fold, run_seed)
        keys[key] = planned
        if without(planned):
            continue
        if failing(planned):
            failed = {"status": "failed", "reason": "train/loss is nan at step 12 <b>"}
            lines.append({"key": key, **planned, **failed, "settings": {}, "metrics": {}, "history": {}})
            continue
        tested = np.arange(images) if folds is None else np.arange(images)[np.arange(images) % folds == fold]
        if splits > 1 and folds is None:
            tested = np.random.default_rng(split).permutation(images)[: images // 3]
        level = 1.2 + 0.9 * np.log2((size or 100) / 10) + shift + generator.normal(0, 0.15)
        sure = level + hard[tested] + generator.normal(0, 0.7, len(tested))
        right = generator.random(len(tested)) < sigmoid(sure)
        wrong = (labels[tested] + generator.integers(1, max(num_classes, 2), len(tested))) % num_classes
        predicted = np.where(right, labels[tested], wrong)
        scores = generator.normal(0, 0.5, (len(tested), num_classes))
        scores[np.arange(len(tested)), predicted] += 1.5 + np.clip(sure, 0, 5)
        probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        predicted = probabilities.argmax(1)
        embeddings = (1 + 0.3 * level) * means[predicted] + generator.normal(size=(len(tested), dim))
        np.savez(
            folder / "predictions" / f"{key}.npz",
            probabilities=probabilities.astype(np.float32),
            labels=labels[tested],
            names=np.array([name_image(k) for k in tested.tolist()]),
            embeddings=embeddings.astype(np.float16),
        )
        accuracy = float((predicted == labels[tested]).mean())
        lines.append(
            result(key, planned, epochs, accuracy, generator, validation=validation)
            | {"settings": {"model.optimizer.lr": 0.03, "model.optimizer.weight_decay": 1e-4}, "trial": 3}
            | {"predictions": f"predictions/{key}.npz"}
        )
    for variant, size, split in itertools.product(variants, sizes, range(splits)):
        for trial in range(trials):
            rate = float(10 ** generator.uniform(-4, 0))
            best = -1.2 if variant in ("cosine", "standalone") else -1.8
            width = 1.2 if variant == "cosine" else 0.7
            accuracy = 0.1 + 0.83 * np.exp(-(((np.log10(rate) - best) / width) ** 2)) + generator.normal(0, 0.02)
            planned = {
                "kind": "trial", "variant": variant, "samples_per_class": size, "split": split, "fold": None, "seed": 0,
            }  # fmt: skip
            key = f"trial-{variant}-{size}-{split}-{trial}"
            keys[key] = planned
            one = result(key, planned, epochs, float(np.clip(accuracy, 0, 1)), generator)
            one["metrics"] = {"val/accuracy": float(np.clip(accuracy, 0, 1))}
            lines.append(one | {"settings": {"model.optimizer.lr": rate}, "trial": trial, "predictions": None})
    plan = {
        "name": "digits", "variants": {name: {} for name in variants}, "baseline": next(iter(variants)),
        "samples_per_class": list(sizes), "seeds": list(seeds), "splits": splits, "folds": folds, "trials": trials,
        "class_names": list(class_names), "data": f"DigitsDataModule: {images} test images", "keys": keys,
        "command": "python cli.py compare --config configs/compare/digits.yaml", **facts,
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def result(
    key: str,
    planned: Mapping[str, Any],
    epochs: int,
    accuracy: float,
    generator: np.random.Generator,
    validation: bool = True,
) -> dict[str, Any]:
    """One line of results.jsonl, without settings and predictions."""
    rise = 1 - np.exp(-np.arange(1, epochs + 1) / (epochs / 6))
    train = np.clip((0.4 * accuracy + 0.6) * rise + generator.normal(0, 0.005, epochs), 0, 1)
    history = {
        "epoch": list(range(1, epochs + 1)),
        "train/loss": (2.3 * np.exp(-np.arange(epochs) / (epochs / 5))).tolist(),
        "train/accuracy": train.tolist(),
        "geometry/train_intra_variance": (5 * np.exp(-np.arange(epochs) / (epochs / 4)) + 0.3).tolist(),
        "geometry/train_mean_distance": (1 + 6 * rise * accuracy).tolist(),
        "geometry/train_intra_inter_ratio": (1 / (0.5 + 3 * rise * accuracy)).tolist(),
    }
    if validation:
        history["val/accuracy"] = np.clip(accuracy * rise + generator.normal(0, 0.01, epochs), 0, 1).tolist()
    return {
        "key": key, **planned, "status": "ok", "reason": None,
        "metrics": {
            "val/accuracy": accuracy, "test/accuracy": accuracy, "test/balanced_accuracy": accuracy - 0.002,
            "train/accuracy": float(train[-1]),
        },
        "history": history, "seconds": 12.0 + generator.normal(), "steps": 20 * epochs, "epochs": epochs,
        "versions": {"python": "3.11.7", "torch": "2.14.1", "lightning": "2.6.6", "metricloss_pl": "0.1.0"},
        "hardware": {"device": "CPU", "cores": 2}, "git": "ebfc3c5", "date": "2026-11-22T10:00:00+00:00",
    }  # fmt: skip
