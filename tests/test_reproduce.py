"""docs/reproduce.md is true: each number has a command, commands run, hours follow from the FLOPs."""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from metricloss_pl import backbones, data
from metricloss_pl.class_embeddings import published
from metricloss_pl.cli import main
from metricloss_pl.data import Flowers102DataModule, ImageDataModule, ImageNetSubsetDataModule
from metricloss_pl.data.samples import Samples
from metricloss_pl.data.torchvision_sets import CIFAR10DataModule, CIFAR100DataModule, MNISTDataModule
from metricloss_pl.regimes import Classifier
from tests.built import build, keep_fit_only
from tests.helpers import make_cars, make_cub, make_flowers, make_imagenet, make_mit67, make_nab
from tests.reproduced import (
    DOCUMENT,
    FIGURES,
    FITS,
    HOURS,
    OURS,
    PROGRAM,
    PUBLISHED,
    ROOT,
    ROWS,
    blocks,
    configured,
    covering,
    files_of,
    options_of,
    settings,
    table_of,
)

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
SUSTAINED = 30e12  # FLOP/s
LAUNCH = 1e-4  # s per layer
CONFIGS = ROOT / "configs"
TRAINED_ELSEWHERE = {  # tests/test_configs.py
    "configs/data/cub.yaml",
    "configs/trainer/cub.yaml",
    "configs/model/softmax_resnet50.yaml",
    "configs/model/cosine_resnet50.yaml",
}
RESULTS = [
    result | {"command": result["command"].replace("metricloss fit --config ", f"{PROGRAM}fit --config configs/")}
    for file in sorted((ROOT / "results").glob("*.jsonl"))
    for result in map(json.loads, file.read_text().splitlines())
    if "metrics" in result
]
TRAINED = covering(FITS, blocks, TRAINED_ELSEWHERE)
PARSED = covering(
    [*FITS, *(result["command"] for result in RESULTS)], settings, {part for run in TRAINED for part in settings(run)}
)


def test_every_number_has_a_complete_command():
    for row in FIGURES:
        assert re.fullmatch(r"\d+\.\d+|curve|open", row.figure), row
        assert "<" not in row.command, row
        assert row.command.startswith("python cli.py fit --config "), row
        assert options_of(row.command), row


def test_no_number_of_a_table_is_lost():
    text = re.sub(r"^## Hours.*?(?=^## )", "", PUBLISHED, flags=re.MULTILINE | re.DOTALL)
    rows = [line for line in text.splitlines() if re.match(r"\| .*\d", line)]
    published = sum(len(re.findall(r"(?<=\| )\d+\.\d+(?= )", row)) for row in rows)
    assert published == sum(re.fullmatch(r"\d+\.\d+", row.figure) is not None for row in ROWS) > 60


def test_example_is_one_of_the_commands():
    example, _, _ = DOCUMENT.split("```bash\n", 1)[1].partition("\n```")
    assert [row.figure for row in FIGURES if row.command == example] == ["68.3"]


def test_our_figures_are_in_the_results():
    accuracies = [result["metrics"].get("test/accuracy", 0) for result in RESULTS]
    for ours in re.findall(r"\*\*(\d+\.\d+)\*\*", PUBLISHED):
        assert any(abs(float(ours) / factor - value) < 5e-5 for factor in (1, 100) for value in accuracies), ours


@pytest.mark.parametrize("row", OURS, ids=lambda row: row.place)
def test_figures_of_small_runs_are_those_of_the_results(row):
    def decisive(command: str) -> set[tuple[str, str]]:
        ignored = {"--data", "--data.path", "--trainer.enable_progress_bar", "--seed_everything", "--data.seed"}
        return {(name, value) for name, value in options_of(command) if name not in ignored}

    name = row.place.rpartition(", ")[2].replace("mAHP@250", "mahp_250").replace(" ", "_")
    scale = 1 if name == "mistake_severity" else 100
    found = [result for result in RESULTS if decisive(result["command"]) == decisive(row.command)]
    values = [scale * result["metrics"][f"test/{name}"] for result in found]
    assert len({result["seed"] for result in found}) == len(values) > 0
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    assert row.figure == f"{statistics.mean(values):.2f}{spread}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Working folder for the commands, with miniatures of the data that they name."""
    place = tmp_path_factory.mktemp("reproduce")
    shutil.copytree(ROOT / "configs", place / "configs")
    data = place / "data"
    make_cub(data, size=48)
    make_nab(data, size=48)
    make_cars(data, size=48)
    make_mit67(data, size=48)
    make_flowers(data, Flowers102DataModule.classes, size=32)
    trees = {"cub": "10 11\n10 12\n11 1\n11 2\n12 3\n12 4\n", "cifar": "".join(f"100 {i}\n" for i in range(100))}
    names = "".join(f"{label} {name}\n" for label, name in enumerate(CIFAR100DataModule.classes))
    for name, resources in published._FILES.items():
        hierarchy = place / "hub" / "metricloss_pl" / name
        hierarchy.mkdir(parents=True)
        for resource in resources:
            (hierarchy / resource.name).write_text(trees.get(re.split(r"[._]", resource.name)[0], names))
    lists = place / "vipriors-challenges-toolkit" / "image-classification"
    make_imagenet(data, lists, images_per_class=12)
    shutil.copytree(lists, place / "deic" / "datasets" / "imagenet")
    unpacked = data / "imagenet_vipriors"
    shutil.copytree(data / "work", unpacked / "train", ignore=shutil.ignore_patterns("train", "val", "ILSVRC*"))
    for name in ("val", "ILSVRC2012_devkit_t12"):
        shutil.copytree(data / "work" / name, unpacked / name)
    shutil.copytree(unpacked, data / "imagenet_deic")
    images = np.zeros((600, 32, 32, 3), dtype=np.uint8)
    names = CIFAR10DataModule.classes
    np.savez(data / "cifar10.npz", train_images=images, train_labels=np.arange(600) % 10, class_names=names)
    return place


@pytest.fixture
def at_folder(folder, monkeypatch) -> Path:
    """Change to that folder."""
    keep_fit_only(monkeypatch)
    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def instantiate(at_folder, monkeypatch) -> Callable[[str], tuple[Trainer, Classifier, ImageDataModule]]:
    """Build the objects of a command; networks of torchvision are on the meta device, to be fast."""
    get_model = models.get_model

    def without_weights(name, weights=None, **rest):
        with torch.device("cpu" if name == "resnet18" else "meta"):  # the small stem is initialized on the CPU
            return get_model(name, **rest)

    monkeypatch.setattr(models, "get_model", without_weights)
    return lambda command: build([*shlex.split(command)[2:], *QUIET], monkeypatch)


@pytest.mark.parametrize("command", PARSED)
def test_command_parses_and_instantiates(command, instantiate):
    trainer, model, data = instantiate(command)
    options = dict(options_of(command))
    regime = re.search(r"softmax|cosine|center|standalone|arcface", options.get("--model", options["--config"]))[0]
    assert type(model).__name__.lower().startswith(regime.replace("arcface", "metriclearning"))
    assert model.class_names == data.class_names
    optimizer = model.optimizer([torch.zeros(1)])
    assert optimizer.defaults["lr"] == float(options.get("--model.optimizer.lr", optimizer.defaults["lr"]))
    assert trainer.max_epochs == int(options.get("--trainer.max_epochs", trainer.max_epochs))
    assert "FreezeBackbone" not in command or {"FreezeBackbone", "EmbeddingPlot"} <= {
        type(callback).__name__ for callback in trainer.callbacks
    }


def test_comparisons_are_named_by_their_files():
    named = re.findall(r"^python cli.py compare --config configs/compare/(\w+).yaml$", DOCUMENT, flags=re.MULTILINE)
    assert named == ["cub_samples", "cub_gem"]  # planned in tests/test_configs.py
    assert len(named) == len(re.findall(r"^python cli.py (?!fit|figure)", DOCUMENT, flags=re.MULTILINE))


def test_figure_command(tmp_path, monkeypatch):
    [command] = re.findall(r"^python cli.py figure .*", DOCUMENT, flags=re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    main(shlex.split(command)[2:])
    assert [file.suffix for file in tmp_path.iterdir()] == [".png"]


class Cost(NamedTuple):
    """Cost of the forward pass of one image."""

    name: str
    side: int
    flops: int
    layers: int


@functools.cache
def cost_of(class_path: str, side: int, channels: int, **arguments: Any) -> Cost:
    with torch.device("meta"):
        network = getattr(backbones, class_path)(in_channels=channels, **arguments)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, channels, side, side))
    name = f"`{arguments.get('name', class_path)}`" + (", full convolutions" * arguments.get("full_convolution", False))
    return Cost(name, side, counter.get_total_flops(), sum(not list(module.children()) for module in network.modules()))


def training_images(module: type[ImageDataModule], val_fraction: float, per_class: int | None, up_to: int) -> int:
    """Return the images per epoch of the whole set, or of `per_class` images per class, repeated."""
    if per_class is not None:
        return per_class * module.statistics.classes * max(1, up_to // per_class)
    if module is ImageNetSubsetDataModule:
        return 50_000  # without the official validation set
    images = module.statistics.train if module.statistics else 60_000 if issubclass(module, MNISTDataModule) else 50_000
    return round(images * (1 - val_fraction))


def test_hours_follow_from_the_networks():
    costs = set()
    for row in HOURS:
        config = configured(row.command)
        module = getattr(data, config["data.class_path"])
        channels, side = (1, 28) if issubclass(module, MNISTDataModule) else (3, 32)
        of_backbone = {name.rpartition(".")[2]: value for name, value in config.items() if "model.backbone." in name}
        of_backbone["side"] = config.get("data.image_size") or module.image_size or side
        cost = cost_of(channels=channels, **of_backbone)
        batch_size = config["data.batch_size"]
        of_data = [config.get(f"data.{name}") for name in ("samples_per_class", "oversample_to")]
        steps = training_images(module, config.get("data.val_fraction", module.val_fraction), *of_data) // batch_size
        seconds = max(3 * cost.flops * batch_size / SUSTAINED, LAUNCH * cost.layers)
        hours = config["trainer.max_epochs"] * steps * seconds / 3600
        assert row.figure == (f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"), row
        costs.add(cost)
    section = DOCUMENT.split("## Hours", 1)[1].split("\n## ", 1)[0]
    stated = {tuple(cells) for cells in table_of(section)[2:]}
    assert stated == {(name, str(side), f"{flops / 1e9:.3g}", str(layers)) for name, side, flops, layers in costs}
    assert f"{SUSTAINED / 1e12:g} TFLOP/s" in section
    assert f"{LAUNCH * 1e3:g} ms" in section


def test_hours_of_comparisons_are_those_of_their_runs():
    text = " ".join(DOCUMENT.split())
    samples, gem = (
        yaml.safe_load((CONFIGS / "compare" / f"{name}.yaml").read_text()) for name in ("cub_samples", "cub_gem")
    )
    by_size = [float(row.figure) for row in HOURS if row.place.startswith("Figure 2")]
    assert len(by_size) == len(samples["samples_per_class"])
    runs = len(samples["variants"]) * len(samples["seeds"])
    assert f"Its {runs * len(by_size)} runs take about {runs * sum(by_size):.0f} hours" in text
    by_method = [float(row.figure) for row in HOURS if row.place.startswith("Every method") and "(2022)" in row.place]
    assert len(by_method) == len(gem["variants"])
    share = 1 - configured("python cli.py fit --config configs/cub_224_softmax.yaml")["data.val_fraction"]
    most = (gem["tuning"]["trials"] * share + len(gem["seeds"])) * sum(by_method)
    assert f"at most {most:.0f} hours" in text


def noise(data: ImageDataModule, part: str) -> Samples | None:
    """Replace the images that torchvision would read."""
    count = max(200, 2 * data.num_classes)
    images = torch.randint(0, 256, (count, data.in_channels, 12, 12), dtype=torch.uint8)
    names = [str(index) for index in range(count)]
    return None if part == "val" else Samples(images=images, labels=torch.arange(count) % data.num_classes, names=names)


@pytest.mark.slow
@pytest.mark.parametrize("command", TRAINED)
@pytest.mark.usefixtures("miniatures", "at_folder")
def test_blocks_train_and_test(command, tmp_path, monkeypatch, capsys):
    """Train for two steps on small images, and test."""
    for module in (MNISTDataModule, CIFAR10DataModule):
        monkeypatch.setattr(module, "prepare_data", lambda self: None)
        monkeypatch.setattr(module, "read", noise)
    get_model = models.get_model
    monkeypatch.setattr(models, "get_model", lambda name, weights=None, **rest: get_model(name, **rest))
    flags = ["--data.batch_size=4", f"--runs_dir={tmp_path}", "--trainer.max_epochs=1", "--trainer.precision=32-true"]
    if "--trainer.callbacks+" not in blocks(command):
        flags.append("--trainer.callbacks=null")
    files = files_of(command)
    if not any(name in files["data"] for name in ("mnist", "cifar")):
        flags += ["--data.resize=40", "--data.image_size=32", "--data.num_workers=0"]
    if any(name in files["data"] for name in ("cub_224", "imagenet")):
        flags.append("--data.train_resize=48")
    if "resnet50" in files["model"] and "--model.backbone.name" not in command:
        flags.append("--model.backbone.name=resnet18")
    limits = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
    main([*shlex.split(command)[2:], *flags, *limits, *QUIET])
    screen = capsys.readouterr().out
    assert "1 epochs, 2 steps" in screen
    assert re.search(r"^test/accuracy +[01]\.\d{4}$", screen, flags=re.MULTILINE)
