"""Model card in Markdown, from the files of a run and, if there is one, its comparison. Unknown facts are left out."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader

from metricloss_pl.callbacks.run_folder import CONFIG, model_digest
from metricloss_pl.checkpoints import read_model
from metricloss_pl.data.samples import SPLITS
from metricloss_pl.data.split_file import read_split
from metricloss_pl.errors import UserError, shell_command
from metricloss_pl.formatting import FILTERS, escape_markdown
from metricloss_pl.regimes import Classifier

__all__ = ["resizing_rule", "write_card"]

_BINS = 10  # of equal width, as in the report of a comparison
_MISTAKES = 10
_FEW = 10  # test images of a class, below which its recall says little
_LEVEL = 0.95
_APART = {  # settings of a regime that the recipe names by themselves, or that follow from them
    *("backbone", "num_features", "optimizer", "lr_scheduler", "lr_scheduler_interval", "decay_norm_and_bias"),
    *("class_weights", "batch_mixing", "distillation"),
}


def write_card(model: Classifier, checkpoint: Path, run: Path | None, command: str, comparison: Path | None) -> str:
    """Return the card of a model.

    Args:
        model: Trained regime.
        checkpoint: File that it was loaded from.
        run: Folder of the run that has written the checkpoint, if it is known.
        command: Command of the export.
        comparison: Folder of a comparison.

    Raises:
        UserError: The comparison cannot be read.
    """
    config = _settings(run)
    backbone = read_model(checkpoint)["hyper_parameters"].get("backbone", type(model.backbone).__name__)
    images, digest = _images(run), model_digest(checkpoint)
    results = {} if run is None else _results(run, digest, images.get("test", Counter()))
    tested = {name: scores for name, scores in results.get("classes", {}).items() if scores["images"]}
    facts = {
        "model": model,
        "network": _describe(backbone),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "images": images,
        "recipe": _recipe(config),
        "results": results,
        "test": _test(results.get("metrics", {}), tested),
        "classes": [
            (name, scores["images"], *_share(scores["recall"], scores["images"])) for name, scores in tested.items()
        ],
        "few": [name for name, scores in tested.items() if scores["images"] < _FEW],
        "predictions": None if run is None else _predictions(run, digest),
        "data": config.get("data", {}),
        "comparison": None if comparison is None else _comparison(comparison),
        "resizing": resizing_rule(model),
        "again": command,
    }
    environment = Environment(
        loader=PackageLoader("metricloss_pl.export"), autoescape=True, finalize=escape_markdown, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(FILTERS, short_name=_short_name)
    return environment.get_template("model_card.md.j2").render(facts)


def resizing_rule(model: Classifier) -> str:
    """Return how images are resized before a model sees them."""
    assert model.image_format is not None
    image_size = model.image_format["image_size"]
    resize = model.image_format["resize"] or image_size
    if resize is None:
        return "images as they are, all of one size"
    rule = f"shorter side resized to {resize} px (bilinear with antialiasing, by Pillow)"
    return rule if image_size is None else f"{rule}, then the {image_size} x {image_size} px at the center"


def _settings(run: Path | None) -> dict[str, Any]:
    """Return the config of a run."""
    try:
        found = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8")) if run is not None else None
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    return found if isinstance(found, dict) else {}


def _results(run: Path, digest: str, images: Counter[str]) -> dict[str, Any]:
    """Return the facts that `fit`, or else `test`, has noted about a checkpoint; the command is that of `fit`.

    A test on other images than those of the split, or with test-time augmentation, is left out.
    """
    fit, *tests = [_read_json(file) for file in (run / "result.json", *sorted(run.glob("test*.json")))]
    if "--resume" in str(fit.get("command")).split():  # which trains nothing from the start
        fit["command"] = shell_command("fit", "--config", str(run / CONFIG))
    for facts in (fit, *tests):
        tested = Counter({name: scores["images"] for name, scores in facts.get("classes", {}).items()})
        is_of_split = not images or tested == images
        if "test/accuracy" in facts.get("metrics", {}) and is_of_split and _is_of(facts, digest):
            tested_by = None if facts is fit else facts.get("command")
            return {**fit, "metrics": facts["metrics"], "classes": facts.get("classes", {}), "tested_by": tested_by}
    return {**fit, "metrics": {}, "classes": {}}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _images(run: Path | None) -> dict[str, Counter[str]]:
    """Return the images per class of the training, validation and test set."""
    if run is None or not (run / "split.csv").is_file():
        return {}
    rows = read_split(run / "split.csv")
    return {split: Counter(row.label for row in rows if row.split == split) for split in SPLITS}


def _share(value: float, images: int) -> tuple[float, float, float]:
    """Return a share of images and its Wilson interval."""
    from scipy.stats import binomtest

    interval = binomtest(round(value * images), images).proportion_ci(_LEVEL, method="wilson")
    return value, float(interval.low), float(interval.high)


def _test(metrics: Mapping[str, float], classes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return number of test images, accuracy with interval, and the other metrics of the test set."""
    images = sum(scores["images"] for scores in classes.values())
    if "test/accuracy" not in metrics or not images:
        return None
    others = {name.removeprefix("test/"): value for name, value in metrics.items() if name.startswith("test/")}
    return {"images": images, "accuracy": _share(others.pop("accuracy"), images), "others": others}


def _predictions(run: Path, digest: str) -> dict[str, Any] | None:
    """Return calibration error and most confident mistakes from a checkpoint's predictions for the whole test set."""
    files = sorted(run.glob("predictions_test*.csv"))
    files = [file for file in files if _is_of(_read_json(file.with_suffix(".json")), digest)]
    if not files or not (run / "split.csv").is_file():
        return None
    labels = {row.file: row.label for row in read_split(run / "split.csv") if row.split == "test"}
    with files[0].open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        rows = list(csv.DictReader(lines))
    try:  # the file may have been edited
        confidence = np.array([float(row["probability"]) for row in rows])
    except (KeyError, TypeError, ValueError):
        return None
    if not rows or {row.get("file") for row in rows} != set(labels):
        return None
    correct = np.array([row["class"] == labels[row["file"]] for row in rows])
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    error = sum(abs((confidence - correct)[bins == number].sum()) for number in range(_BINS)) / len(rows)
    wrong = sorted(
        (row for row, right in zip(rows, correct, strict=True) if not right), key=lambda r: -float(r["probability"])
    )
    mistakes = [(row["file"], labels[row["file"]], row["class"], float(row["probability"])) for row in wrong]
    return {"error": float(error), "confidence": float(confidence.mean()), "mistakes": mistakes[:_MISTAKES]}


def _is_of(facts: Mapping[str, Any], digest: str) -> bool:
    """Return whether results are those of a model, which sees one view of each image."""
    return facts.get("model_digest") == digest and facts.get("tta") is None


def _recipe(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a training that describe it."""
    model, data, trainer = (config.get(block) or {} for block in ("model", "data", "trainer"))
    model, data = model.get("init_args") or {}, data.get("init_args") or {}
    weights = ((model.get("backbone") or {}).get("init_args") or {}).get("weights")
    found = {
        "loss and head": {key: value for key, value in model.items() if key not in _APART},
        "pretrained weights": weights and _short_name(weights),
        "optimizer": model.get("optimizer"),
        "learning-rate schedule": model.get("lr_scheduler"),
        "epochs": trainer.get("max_epochs"),
        "batch size": data.get("batch_size"),
        "images per epoch": f"{data['repeat']} times each" if data.get("repeat") not in (None, 1) else None,
        "orientation": data.get("orientation"),
        "augmentation": data.get("augment"),
        "mixing": model.get("batch_mixing"),
        "distillation": model.get("distillation"),
        "class weights": model.get("class_weights"),
        "precision": trainer.get("precision"),
        "seed": config.get("seed_everything"),
    }
    return {name: _describe(value) for name, value in found.items() if value not in (None, {}, [], "")}


def _describe(value: Any) -> str:
    """Return a class with its settings, or several of them, as text; settings that are off are left out."""
    if isinstance(value, list):
        return ", ".join(map(_describe, value))
    if not isinstance(value, Mapping):
        return _short_name(value) if isinstance(value, str) and os.path.isabs(value) else str(value)
    settings = (value.get("init_args") or {}) if "class_path" in value else value
    given = ", ".join(f"{key} {_describe(item)}" for key, item in settings.items() if _is_on(key, item))
    if "class_path" not in value:
        return given
    return f"{_short_name(value['class_path'], '.')} ({given})" if given else _short_name(value["class_path"], ".")


def _is_on(key: str, value: Any) -> bool:
    """Return whether a setting is worth a word; a weight of 0 is."""
    return value is not None and value is not False and value not in ([], {}) and key != "last_epoch"


def _short_name(path: str, separator: str = "/") -> str:
    return path.replace("\\", separator).rstrip(separator).rpartition(separator)[2]


def _comparison(folder: Path) -> Any:
    """Return the tables of a comparison."""
    try:
        from metricloss_pl.compare.summary import Summary, rows
    except ImportError as error:
        raise UserError(
            f'--comparison needs {error.name}, which is not installed: pip install "metricloss_pl[compare]"'
        ) from error
    summary = Summary(folder)
    found = rows(summary.table, summary.variants)
    return {"name": summary.plan["name"], "metric": summary.metric, "baseline": summary.baseline, "rows": found}
