"""Simulation of the statistics of a comparison: false claims, coverage and power of the candidate methods.

    python results/comparison_statistics.py

replaces results/comparison_statistics.jsonl (about 7 minutes on one core) and prints the tables of docs/comparison.md;
with `--tables` it prints the tables of the stored figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.random import Generator
from scipy import stats

from metricloss_pl.compare import statistics

RESULTS = Path(__file__).with_suffix(".jsonl")
SIMULATIONS = 2000
IMAGES = (20, 100, 500, 2000)
REPETITIONS = (2, 3, 5, 10)
# Shares of the variance of a latent score, above 0 where an image is classified correctly, that are due to the image,
# to the image and the variant, and to the training; the rest is due to the image and the training.
SCENARIOS = {
    "one loss twice": (0.6, 0.0, 0.003),
    "one loss twice, independent trainings": (0.0, 0.0, 0.003),
    "two losses": (0.5, 0.15, 0.003),
    "two losses, unstable trainings": (0.4, 0.15, 0.03),
    "two losses, nearly equal trainings": (0.6, 0.397, 0.003),
}
ACCURACIES = ((0.9, 0.9), (0.99, 0.99), (0.85, 0.9), (0.97, 0.99))
METHODS = {
    "shipped": "Obuchowski & Rockette, Cochran & Cox, added images (used)",
    "hillis": "Obuchowski & Rockette, Hillis",
    "bootstrap": "paired bootstrap over images and seeds",
    "student": "t test over seeds",
}
METHODS_OF_FOLDS = {
    "shipped": "Nadeau & Bengio (used)",
    "crossed": "Obuchowski & Rockette, Cochran & Cox, over seeds",
    "student": "t test over folds",
}
# Features of both learners, more features of the second one, whether both see the same features.
LEARNERS = {"one learner twice": (20, 0, True), "two learners": (20, 0, False), "a better learner": (20, 20, False)}

Interval = tuple[np.ndarray, np.ndarray]


def fixed_test_set(
    generator: Generator, count: int, images: int, repetitions: int, accuracies: tuple[float, float], scenario: str
) -> np.ndarray:
    """Return `count` simulated tables (images, repetitions) of differences -1, 0 and 1."""
    image, variant, training = SCENARIOS[scenario]

    def normal(share: float, *shape: int) -> np.ndarray:
        return np.float32(np.sqrt(share)) * generator.standard_normal((count, *shape), dtype=np.float32)

    difficulty, correct = normal(image, images, 1), []
    for accuracy in accuracies:
        latent = difficulty + normal(variant, images, 1) + normal(training, 1, repetitions)
        latent += normal(1 - image - variant - training, images, repetitions)
        correct.append(latent > -stats.norm.ppf(accuracy))
    return correct[1].astype(np.float32) - correct[0]


def shipped(tables: Iterable[np.ndarray], test_share: float = np.nan) -> tuple[Interval, np.ndarray]:
    """Return the intervals and the minimum detectable differences of the package."""
    found = [statistics.difference(table, test_share=test_share) for table in tables]
    low, high = np.array([one.interval for one in found]).T
    return (low, high), np.array([one.minimum_detectable() for one in found])


def hillis(tables: np.ndarray) -> Interval:
    """Return the intervals of Obuchowski & Rockette (1995) with the degrees of freedom of Hillis (2007)."""
    _, images, repetitions = tables.shape
    means = tables.mean(axis=1, dtype=np.float64)
    sums = tables.sum(axis=2, dtype=np.float64)
    pairs = repetitions * (repetitions - 1)
    products = ((sums**2).sum(axis=1) - (tables**2).sum(axis=(1, 2))) / pairs
    of_means = (means.sum(axis=1) ** 2 - (means**2).sum(axis=1)) / pairs
    common = np.maximum(products / images - of_means, 0) / (images - 1)
    training = means.var(axis=1, ddof=1) / repetitions
    variance = training + common
    degrees = (repetitions - 1) * (variance / np.maximum(training, 1e-12)) ** 2
    half = stats.t.isf(0.025, np.clip(degrees, 1, 1e6)) * np.sqrt(variance)
    return means.mean(axis=1) - half, means.mean(axis=1) + half


def bootstrap(generator: Generator, tables: np.ndarray, resamples: int = 500) -> Interval:
    """Return the percentile intervals of the paired bootstrap over images and repetitions."""
    count, images, repetitions = tables.shape
    of_images = generator.multinomial(images, np.full(images, 1 / images), resamples).astype(np.float32) / images
    of_repetitions = generator.multinomial(repetitions, np.full(repetitions, 1 / repetitions), resamples) / repetitions
    means = of_images @ tables.transpose(1, 0, 2).reshape(images, count * repetitions)
    drawn = np.einsum("bsu,bu->bs", means.reshape(resamples, count, repetitions), of_repetitions)
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    return low, high


def student(values: np.ndarray) -> Interval:
    """Return the intervals of Student's t test over the columns of `values`, one row per simulation."""
    mean, error = values.mean(axis=1), values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
    half = stats.t.isf(0.025, values.shape[1] - 1) * error
    return mean - half, mean + half


def rates(interval: Interval, truth: float) -> dict[str, float]:
    """Return the shares of intervals that exclude 0 and that hold the true difference."""
    low, high = interval
    holds = (low <= truth + 1e-9) & (truth - 1e-9 <= high)
    return {"claimed": float(((low > 0) | (high < 0)).mean()), "covered": float(holds.mean())}


def simulate_fixed(images: int, repetitions: int, accuracies: tuple[float, float], scenario: str) -> dict:
    """Return one line of the results for a fixed test set and repeated trainings."""
    generator = np.random.default_rng([images, repetitions])
    truth, found, detectable = accuracies[1] - accuracies[0], [], []
    parts = max(1, SIMULATIONS * images * repetitions // 20_000_000)
    for _ in range(parts):
        tables = fixed_test_set(generator, SIMULATIONS // parts, images, repetitions, accuracies, scenario)
        interval, least = shipped(tables)
        detectable.append(least)
        intervals = {
            "shipped": interval, "hillis": hillis(tables), "bootstrap": bootstrap(generator, tables),
            "student": student(tables.mean(axis=1, dtype=np.float64)),
        }  # fmt: skip
        found.append({name: rates(one, truth) for name, one in intervals.items()})
    means = {name: pd.DataFrame([part[name] for part in found]).mean().round(4).to_dict() for name in found[0]}
    return {
        "design": "fixed", "images": images, "repetitions": repetitions, "accuracies": accuracies,
        "scenario": scenario, "minimum_detectable": round(float(np.median(np.concatenate(detectable))), 4), **means,
    }  # fmt: skip


def folds(generator: Generator, images: int, number: int, seeds: int, learners: str) -> tuple[np.ndarray, np.ndarray]:
    """Return differences of ridge classifiers: (images, seeds), and means over seeds (images, folds), NaN if untested.

    Both classes are normal. The second learner sees the features of the first, or others, perhaps more of them; a seed
    draws the features that a learner uses.
    """
    features, more, same = LEARNERS[learners]
    labels = np.arange(images) % 2
    data = generator.standard_normal((images, 2 * features + more)) + np.where(labels, 0.2, -0.2)[:, None]
    seen = [np.arange(features), np.arange(features) if same else np.arange(features, 2 * features + more)]
    fold = generator.permutation(images) % number
    table = np.empty((images, seeds))
    for k, seed in itertools.product(range(number), range(seeds)):
        correct = []
        for columns in seen:
            drawn = generator.permutation(columns)[: len(columns) * 9 // 10]
            x, y = data[fold != k][:, drawn], 2 * labels[fold != k] - 1
            weights = np.linalg.solve(x.T @ x + 0.01 * np.eye(len(drawn)), x.T @ y)
            correct.append((data[fold == k][:, drawn] @ weights > 0) == labels[fold == k])
        table[fold == k, seed] = correct[1].astype(float) - correct[0]
    return table, np.where(fold[:, None] == np.arange(number), table.mean(axis=1, keepdims=True), np.nan)


def simulate_folds(images: int, number: int, seeds: int, learners: str) -> dict:
    """Return one line of the results for cross-validation."""
    generator = np.random.default_rng([images, number, seeds])
    found = [folds(generator, images, number, seeds, learners) for _ in range(SIMULATIONS)]
    means = np.array([np.nanmean(by_fold, axis=0) for _, by_fold in found])
    truth = float(means.mean()) if LEARNERS[learners][1] else 0.0  # the mean difference is without bias
    interval, least = shipped((by_fold for _, by_fold in found), test_share=1 / (number - 1))
    intervals = {"shipped": interval, "student": student(means)}
    if seeds > 1:
        intervals["crossed"] = shipped(table for table, _ in found)[0]
    rounded = {name: {k: round(v, 4) for k, v in rates(one, truth).items()} for name, one in intervals.items()}
    return {
        "design": "folds", "images": images, "folds": number, "seeds": seeds, "learners": learners,
        "difference": round(truth, 4), "minimum_detectable": round(float(np.median(least)), 4), **rounded,
    }  # fmt: skip


def simulate() -> list[dict]:
    """Return all lines of the results."""
    fixed = [simulate_fixed(*setting) for setting in itertools.product(IMAGES, REPETITIONS, ACCURACIES, SCENARIOS)]
    settings = itertools.product((100, 300), (5, 10), (1, 3), LEARNERS)
    return fixed + [simulate_folds(*setting) for setting in settings]


def percent(value: float) -> str:
    """Return a share in percent."""
    return f"{100 * value:.1f}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean_and_worst(lines: list[dict], method: str, ties: list[dict]) -> list[str]:
    """Return false claims of a method where there is no difference, and coverage: the mean (the worst)."""
    claims = [line[method]["claimed"] for line in ties]
    covered = [line[method]["covered"] for line in lines]
    return [
        f"{percent(np.mean(claims))} ({percent(max(claims))})",
        f"{percent(np.mean(covered))} ({percent(min(covered))})",
    ]


def tables(lines: list[dict]) -> list[str]:
    """Return the tables of docs/comparison.md."""
    fixed = [line for line in lines if line["design"] == "fixed"]
    typical = {
        (line["images"], line["repetitions"]): line
        for line in fixed
        if line["scenario"] == "two losses" and line["accuracies"] == [0.85, 0.9]
    }
    by_method, by_size, by_folds = [], [], []
    for method, repetitions in itertools.product(METHODS, REPETITIONS):
        own = [line for line in fixed if line["repetitions"] == repetitions]
        found = mean_and_worst(own, method, [line for line in own if len(set(line["accuracies"])) == 1])
        power = percent(typical[500, repetitions][method]["claimed"])
        by_method.append([METHODS[method], str(repetitions), *found, power])
    for images, repetitions in itertools.product(IMAGES, REPETITIONS):
        own = [line for line in fixed if (line["images"], line["repetitions"]) == (images, repetitions)]
        found = mean_and_worst(own, "shipped", [line for line in own if len(set(line["accuracies"])) == 1])
        line = typical[images, repetitions]
        further = [percent(line["shipped"]["claimed"]), percent(line["minimum_detectable"])]
        by_size.append([f"{images:,}", str(repetitions), *found, *further])
    for method, name in METHODS_OF_FOLDS.items():
        own = [line for line in lines if line["design"] == "folds" and method in line]
        found = mean_and_worst(own, method, [line for line in own if line["difference"] == 0])
        power = np.mean([line[method]["claimed"] for line in own if line["difference"] != 0 and line["seeds"] > 1])
        by_folds.append([name, *found, percent(float(power))])
    shares = ["false claims (worst)", "coverage (worst)"]
    return [
        markdown(["method", "seeds", *shares, "power"], by_method),
        markdown(["test images", "seeds", *shares, "power", "minimum detectable"], by_size),
        markdown(["method", *shares, "power"], by_folds),
    ]


def main() -> None:
    """Simulate, store the results and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="print the tables of the stored figures")
    if not parser.parse_args().tables:
        RESULTS.write_text("".join(json.dumps(line) + "\n" for line in simulate()))
    print("\n\n".join(tables([json.loads(line) for line in RESULTS.read_text().splitlines()])))


if __name__ == "__main__":
    main()
