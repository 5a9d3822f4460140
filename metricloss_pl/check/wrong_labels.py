"""Labels that are likely to be wrong, from probabilities of networks that were not trained on the images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metricloss_pl.compare.store import Store
from metricloss_pl.errors import UserError

__all__ = ["OutOfFold", "find_wrong_labels", "read_out_of_fold"]

_TRIVIAL = "trivial"  # kind of variants that do not look at the images, or hardly


def find_wrong_labels(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> NDArray[np.int64]:
    """Find labels that are likely to be wrong, by confident learning (Northcutt, Jiang & Chuang, JAIR 2021).

    The threshold of a class is the mean probability of the class over the images with its label. An image counts as
    confidently of a class where its probability reaches the threshold, and of the most probable one of several. The
    number of images that are confidently of another class than their label estimates the number of wrong labels; so
    many images with the lowest probability of their label are returned (the ranking by self-confidence of Kuan &
    Mueller 2022), without those whose label is a most probable class.

    Args:
        labels: (N,) in [0, C).
        probabilities: (N, C) of networks that were not trained on the image. Labels should be right for most images.

    Returns:
        Positions of the images, the least probable label first.
    """
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    sums = np.bincount(labels, weights=own, minlength=probabilities.shape[1])
    thresholds = np.divide(sums, counts, out=np.full(len(counts), np.inf), where=counts > 0)
    reached = np.where(probabilities >= thresholds - 1e-6, probabilities, -1.0)  # a mean may be rounded up
    confident = reached.max(axis=1, initial=-1.0) >= 0
    number = int((confident & (reached.argmax(axis=1) != labels)).sum())
    suspects = own.argsort(kind="stable")[:number]
    found: NDArray[np.int64] = suspects[probabilities[suspects].max(axis=1) > own[suspects]]
    return found


class OutOfFold(NamedTuple):
    """Predictions for images by networks that were trained on the other folds, averaged over seeds and splits."""

    variant: str
    class_names: list[str]
    predictions: Mapping[str, tuple[int, NDArray[np.floating]]]  # label and probabilities (C,) by the image's name


def read_out_of_fold(folder: str | Path) -> OutOfFold:
    """Return the predictions of the most accurate variant of a comparison with folds.

    If the comparison is unfinished, it is one of the variants that have predicted the most images, the most accurate on
    those that all of these have predicted.

    Raises:
        UserError: The folder holds no comparison, or one without folds or finished runs.
    """
    store = Store(folder)
    plan = store.plan()
    if not plan.get("folds"):
        raise UserError(
            f"--comparison {folder} has no folds, so its networks were trained on most of the images: run compare with "
            "--folds 5"
        )
    labels: dict[str, int] = {}
    rows: dict[str, dict[str, list[NDArray[np.floating]]]] = {}  # by variant and image
    for key, run in store.results().items():
        is_final = (run["kind"], run["size"], run["status"]) == ("final", plan["sizes"][-1], "ok")
        if is_final and plan["variants"][run["variant"]]["kind"] != _TRIVIAL:
            for name, label, row in zip(*store.predictions(key)[:3], strict=True):
                labels[str(name)] = int(label)
                rows.setdefault(run["variant"], {}).setdefault(str(name), []).append(row)
    if not rows:
        raise UserError(f"--comparison {folder} has no finished final run: run compare again to complete it")

    most = max(map(len, rows.values()))
    candidates = [variant for variant, of_variant in rows.items() if len(of_variant) == most]
    shared = set.intersection(*(set(rows[variant]) for variant in candidates))

    def hits(variant: str) -> float:
        return sum(float(np.mean([row.argmax() == labels[name] for row in rows[variant][name]])) for name in shared)

    variant = max(candidates, key=hits)
    means = {name: (labels[name], np.mean(found, axis=0)) for name, found in rows[variant].items()}
    return OutOfFold(variant, plan["data"]["class_names"], means)
