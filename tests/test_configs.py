"""Shipped configs, published commands and stored commands: all instantiate; each block trains and tests."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import statistics
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torchvision import models

from metricloss_pl.class_embeddings import published
from metricloss_pl.cli import main
from metricloss_pl.data import Flowers102DataModule, ImageDataModule
from metricloss_pl.data.samples import Samples
from metricloss_pl.data.torchvision_sets import CIFAR10DataModule, CIFAR100DataModule, MNISTDataModule
from tests.built import build, keep_fit_only
from tests.helpers import make_cars, make_cub, make_flowers, make_folder, make_imagenet, make_mit67, make_nab
from tests.processes import run_groups
from tests.reproduced import FITS, PROGRAM, RESULTS, ROOT, blocks, configured, covering, files_of, settings

CONFIGS = ROOT / "configs"
RUN_FILES = sorted(CONFIGS.glob("*.yaml"))
REGIMES = ("softmax", "cosine", "center", "standalone")
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
SHIPPED = [
    *(f"{PROGRAM}fit --config configs/{file.name}" for file in RUN_FILES),
    # blocks that neither run files nor published commands name
    *(
        f"{PROGRAM}fit --config configs/cub_224_softmax.yaml --model configs/model/{regime}_resnet50_cosine_decay.yaml"
        for regime in ("center", "standalone")
    ),
    *(
        f"{PROGRAM}fit --config configs/folder_probe.yaml --data configs/data/flowers_224.yaml "
        f"--model configs/model/{regime}_probe.yaml"
        for regime in REGIMES
    ),
    *(
        f"{PROGRAM}fit --config configs/folder_fine_tuned.yaml --data configs/data/flowers_fine_tuned.yaml "
        f"--model configs/model/{regime}_fine_tuned.yaml"
        for regime in ("softmax", "cosine")
    ),
]
COMMANDS = [*SHIPPED, *covering([*FITS, *(result["command"] for result in RESULTS)], settings)]


def test_run_files_of_all_data_sets_and_regimes():
    expected = {f"{d}_{r}" for d in ("digits", "mnist", "fashion_mnist", "cifar10", "cub", "folder") for r in REGIMES}
    expected |= {"cifar10_semantic_cosine", "folder_semantic_cosine", "digits_arcface"}
    expected |= {"folder_probe", "folder_fine_tuned"}
    expected |= {
        "cifar10_50_softmax",
        "flowers64_softmax",
        "flowers64_cosine",
        "flowers128_softmax",
        "flowers128_cosine",
        "cub_224_softmax",
        "cub_224_cosine",
    }
    assert {file.stem for file in RUN_FILES} == expected


@pytest.mark.parametrize("file", RUN_FILES, ids=lambda file: file.stem)
def test_headers_give_commands_and_stored_results(file):
    text = file.read_text(encoding="utf-8")
    assert text.splitlines()[1].startswith(f"#   metricloss fit --config {file.name}")
    pattern = r"# Ours: (0\.\d{4})(?: ± (0\.\d{4}))? test accuracy \(([^)]*)(results/\w+\.jsonl)\)"
    quoted = re.search(pattern, text)
    if quoted is None:  # blank, or measured with other settings
        ours = re.search("# Ours:(.*)", text)
        assert file.stem.startswith("folder_") if ours is None else not ours[1] or "docs/results.md" in ours[1]
        return
    mean, deviation, conditions, artifact = quoted.groups()
    stored = [json.loads(line) for line in (ROOT / artifact).read_text().splitlines()]
    results = [result for result in stored if file.name in result["command"]]
    accuracies = [result["metrics"]["test/accuracy"] for result in results]
    seeds = {result["seed"] for result in results}
    assert len(accuracies) == len(seeds)
    assert f"{statistics.mean(accuracies):.4f}" == mean
    if deviation is None:
        assert [f"seed {seed}," in conditions for seed in seeds] == [True]
    else:
        assert f"{len(seeds)} seeds" in conditions
        assert f"{statistics.stdev(accuracies):.4f}" == deviation
    for flag in re.findall(r"--trainer\S+ [^\s;]+", conditions):
        assert all(flag in result["command"] for result in results)


def test_all_blocks_are_used():
    used = {value for command in [*SHIPPED, *FITS] for value in files_of(command).values()}
    shipped = {
        f"configs/{kind}/{file.name}" for kind in ("data", "model", "trainer") for file in (CONFIGS / kind).iterdir()
    }
    assert shipped == used


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Working folder for all commands, with miniatures of the data that they name."""
    place = tmp_path_factory.mktemp("commands")
    shutil.copytree(CONFIGS, place / "configs")
    make_folder(place / "my_images")
    (place / "my_images" / "hierarchy.txt").write_text("animal\n-- cat\n-- dog\n")
    data = place / "data"
    for make in (make_cub, make_nab, make_cars, make_mit67):
        make(data, size=48)
    make_flowers(data, Flowers102DataModule.classes, size=32)
    names = CIFAR10DataModule.classes
    labels = np.arange(600) % 10
    np.savez(data / "cifar10.npz", train_images=np.zeros((600, 32, 32, 3), "u1"), train_labels=labels, classes=names)
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
    return place


@pytest.fixture
def in_folder(folder, monkeypatch) -> None:
    keep_fit_only(monkeypatch)
    monkeypatch.setenv("TORCH_HOME", str(folder))
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("in_folder")
def test_commands_instantiate(command, monkeypatch):
    if "TimmBackbone" in command:
        pytest.skip("needs timm and a file of its weights")
    get_model = models.get_model

    def without_weights(name, weights=None, **rest):
        with torch.device("cpu" if name == "resnet18" else "meta"):  # the small stem is initialized on the CPU
            return get_model(name, **rest)

    monkeypatch.setattr(models, "get_model", without_weights)
    trainer, model, data = build([*shlex.split(command.removeprefix(PROGRAM)), *QUIET], monkeypatch)
    expected = configured(command)

    def named(setting):
        return (expected.get(f"{setting}.class_path") or expected[setting]).rpartition(".")[2]

    assert type(data).__name__ == named("data")
    assert type(model).__name__ == named("model")
    assert model.class_names == data.class_names
    assert (trainer.max_epochs, data.batch_size) == (expected["trainer.max_epochs"], expected["data.batch_size"])
    augment = [entry if isinstance(entry, str) else entry["class_path"] for entry in expected.get("data.augment", [])]
    added = [expected[name] for name in ("data.augment+", "trainer.callbacks+") if name in expected]
    assert [type(entry).__name__ for entry in data.augment][: len(augment)] == augment
    assert {type(entry).__name__ for entry in [*data.augment, *trainer.callbacks]} >= {*added}
    if "model.optimizer.lr" not in expected:  # a head that is fitted otherwise
        return
    model.trainer = trainer
    optimizer = model.configure_optimizers()["optimizer"]
    assert type(model.lr_scheduler(optimizer)).__name__ == named("model.lr_scheduler")
    groups = optimizer.param_groups
    assert expected["model.optimizer.lr"] in {group.get("initial_lr", group["lr"]) for group in groups}
    decay = expected.get("model.optimizer.weight_decay", 0)
    decays = {group["weight_decay"] for group in groups}
    assert decay in decays
    assert not decay or (0 in decays) == (expected.get("model.decay_norm_and_bias") is False or "standalone" in command)


def noise(data: ImageDataModule, part: str) -> Samples | None:
    """Replace the images that torchvision would read."""
    count = max(510, 2 * data.num_classes)
    images = torch.randint(0, 256, (count, data.in_channels, 12, 12), dtype=torch.uint8)
    names = [str(index) for index in range(count)]
    return None if part == "val" else Samples(images=images, labels=torch.arange(count) % data.num_classes, names=names)


@pytest.mark.slow
@pytest.mark.parametrize("command", covering([*FITS, *SHIPPED], blocks))
@pytest.mark.usefixtures("miniatures", "in_folder")
def test_blocks_train_and_test(command, tmp_path, monkeypatch, capsys):
    """Train for two steps on small images, and test."""
    for module in (MNISTDataModule, CIFAR10DataModule):
        monkeypatch.setattr(module, "prepare_data", lambda self: None)
        monkeypatch.setattr(module, "read", noise)
    get_model = models.get_model
    monkeypatch.setattr(models, "get_model", lambda name, weights=None, **rest: get_model(name, **rest))
    flags = ["--data.batch_size=4", f"--runs_dir={tmp_path}", "--trainer.max_epochs=1", "--trainer.precision=32-true"]
    flags += ["--test_after_fit=true"]
    if "--trainer.callbacks+" not in blocks(command) and "probe" not in command:  # which trains on cached features
        flags.append("--trainer.callbacks=null")
    files = files_of(command)
    if not any(name in files["data"] for name in ("mnist", "cifar", "digits")):
        flags += ["--data.resize=40", "--data.image_size=32", "--data.num_workers=0"]
    if any(name in files["data"] for name in ("cub_224", "imagenet")):
        flags.append("--data.train_resize=48")
    if "resnet50" in files["model"] and "--model.backbone.name" not in command:
        flags.append("--model.backbone.name=resnet18")
    limits = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
    main([*shlex.split(command.removeprefix(PROGRAM)), *flags, *limits, *QUIET])
    screen = capsys.readouterr().out
    assert "1 epochs, 2 steps" in screen
    assert re.search(r"^test/accuracy +[01]\.\d{4}$", screen, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "runs", "trials", "flags"),
    [
        ("cub_samples", "3", "none", ["--include=[cosine]", "--baseline=cosine", "--sizes=[2]", "--trivial=false"]),
        pytest.param(
            *(
                "cub_gem",
                "6",
                "200: 100 for each",
                ["--include=[cosine, full_convolution]", "--baseline=cosine", "--trivial=false"],
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.usefixtures("miniatures")
def test_comparisons_of_papers_are_planned(name, runs, trials, flags, tmp_path, monkeypatch, capsys):
    make_cub(tmp_path, classes=3, images_per_class=8, size=20)
    monkeypatch.chdir(tmp_path)
    file = CONFIGS / "compare" / f"{name}.yaml"
    assert file.read_text().splitlines()[1] == f"#   metricloss compare --config {file.name}"
    plan = yaml.safe_load(file.read_text())
    for variant in plan["variants"].values():
        variant["config"] = str(file.parent.joinpath(variant["config"]).resolve(strict=True))
    sizes = {"data.resize": 16, "data.image_size": 16, "data.batch_size": 2, "data.num_workers": 0}
    if name == "cub_gem":
        sizes["data.train_resize"] = 20
        plan["tuning"]["space"] = {"data.batch_size": {"choices": [sizes.pop("data.batch_size")]}}
    trainer = {"trainer.precision": "32-true", "trainer.accelerator": "cpu"}
    plan["overrides"] = {**sizes, **trainer, "model.backbone.name": "resnet18", "data.root": str(tmp_path)}
    Path("plan.yaml").write_text(yaml.safe_dump(plan))
    main(["compare", "--config=plan.yaml", "--dry_run=true", "--trivial=false", *flags])
    screen = capsys.readouterr().out
    assert re.search(rf"^final runs +{runs}, tested once each$", screen, flags=re.MULTILINE)
    assert re.search(rf"^trials +{trials}", screen, flags=re.MULTILINE)


DIGITS = (*REGIMES, "arcface")


def fit_in_turn(folder: Path, *regimes: str) -> None:
    """Fit the shipped configs for ten epochs, and write their output to files."""
    os.chdir(folder)
    for regime in regimes:
        with open(f"{regime}.txt", "w") as screen, redirect_stdout(screen):
            main(["fit", f"--config={CONFIGS / f'digits_{regime}.yaml'}", "--trainer.max_epochs=10", *QUIET])


@pytest.fixture(scope="module")
def fitted_digits(tmp_path_factory):
    """Folder with a run of each regime, fitted in two processes."""
    folder = tmp_path_factory.mktemp("digits")
    run_groups(*((1, fit_in_turn, folder, *half) for half in (DIGITS[::2], DIGITS[1::2])))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("regime", DIGITS)
def test_digits_fit_test_predict(regime, fitted_digits, monkeypatch, capsys):
    monkeypatch.chdir(fitted_digits)
    run = fitted_digits / "runs" / f"digits_{regime}" / "version_0"
    screen = (fitted_digits / f"{regime}.txt").read_text()
    assert "test/accuracy" in screen
    assert "figures" in screen
    for figure in ("embeddings/epoch_0010.png", "embeddings.gif", "confusion_matrix.png"):
        assert (run / "figures" / figure).is_file()
    assert json.loads((run / "result.json").read_text())["metrics"]["test/accuracy"] > 0.5  # chance is 0.1
    checkpoint = run / "checkpoints" / "best.ckpt"
    main(["test", f"--config={CONFIGS / f'digits_{regime}.yaml'}", f"--ckpt_path={checkpoint}", *QUIET])
    assert "test/balanced_accuracy" in capsys.readouterr().out
    main(["predict", f"--config={CONFIGS / f'digits_{regime}.yaml'}", f"--ckpt_path={checkpoint}", *QUIET])
    assert len((run / "predictions_test.csv").read_text().splitlines()) == 1 + 359
