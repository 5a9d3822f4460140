"""Shipped configs: all parse and instantiate; those of the digits and CUB (a miniature) run."""

import json
import os
import re
import statistics
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
import yaml

from metricloss_pl.cli import main
from metricloss_pl.data import Flowers102DataModule, RandomErasing
from tests.built import build
from tests.helpers import make_cars, make_cub, make_flowers, make_folder, make_imagenet, make_mit67, make_nab
from tests.processes import run_groups
from tests.reproduced import FITS, files_of

CONFIGS = Path(__file__).parent.parent / "configs"
RUN_FILES = sorted(CONFIGS.glob("*.yaml"))
REGIMES = ("softmax", "cosine", "center", "standalone")
# Data blocks without run files of their own, used with those of CUB: `--data configs/data/nab.yaml`.
MINIATURES = {
    "nab": make_nab,
    "cars": make_cars,
    "flowers": lambda root: make_flowers(root, Flowers102DataModule.classes),
    "mit67": make_mit67,
    "imagenet_subset": lambda root: make_imagenet(root, root / "lists"),
    "cifar100": lambda root: None,
}
FOLDERS = ("data", "model", "trainer")
PAPER = ("nab", "cars", "flowers", "mit67")
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]

# Blocks (data, model, trainer) of published protocols without run files.
PROTOCOLS = [
    *(("cub_224", f"{regime}_resnet50_cosine_decay", "cub_224") for regime in ("center", "standalone")),
    *(("imagenet_subset", f"{regime}_resnet50_step_decay", "imagenet_subset") for regime in ("softmax", "cosine")),
    *(("cifar100", f"{regime}_resnet110", "cub") for regime in ("softmax", "cosine")),
]


def test_run_files_of_all_data_sets_and_regimes():
    expected = {f"{d}_{r}" for d in ("digits", "mnist", "fashion_mnist", "cifar10", "cub", "folder") for r in REGIMES}
    others = {"cifar10_semantic_cosine", "folder_semantic_cosine", "digits_arcface"}
    others |= {"flowers64_softmax", "flowers64_cosine", "cub_224_softmax", "cub_224_cosine"}
    assert {file.stem for file in RUN_FILES} == expected | others


@pytest.mark.parametrize("file", RUN_FILES, ids=lambda file: file.stem)
def test_headers_give_their_commands(file):
    header = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert header[1].startswith(f"#   metricloss fit --config {file.name}")


@pytest.mark.parametrize("file", RUN_FILES, ids=lambda file: file.stem)
def test_our_results_in_headers_are_stored(file):
    pattern = r"# Ours: (0\.\d{4})(?: ± (0\.\d{4}))? test accuracy \(([^)]*)(results/\w+\.jsonl)\)"
    text = file.read_text(encoding="utf-8")
    quoted = re.search(pattern, text)
    if quoted is None:  # blank, or measured with other settings
        ours = re.search("# Ours:(.*)", text)
        assert file.stem.startswith("folder_") if ours is None else not ours[1] or "docs/reproduce.md" in ours[1]
        return
    mean, deviation, conditions, artifact = quoted.groups()
    lines = (CONFIGS.parent / artifact).read_text().splitlines()
    results = [result for line in lines if file.name in (result := json.loads(line))["command"]]
    accuracies = [result["metrics"]["test/accuracy"] for result in results]
    seeds = {result["seed"] for result in results}
    assert len(accuracies) == len(seeds)
    assert f"{statistics.mean(accuracies):.4f}" == mean
    if deviation is None:
        assert f"seed {seeds.pop()}," in conditions
        assert not seeds
    else:
        assert f"{len(seeds)} seeds" in conditions
        assert f"{statistics.stdev(accuracies):.4f}" == deviation
    for flag in re.findall(r"--trainer\S+ [^\s;]+", conditions):
        assert all(flag in result["command"] for result in results)


@pytest.mark.parametrize("file", RUN_FILES, ids=lambda file: file.stem)
def test_run_files_instantiate(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = []
    if file.stem.startswith("cub"):
        make_cub(tmp_path)
        flags = [f"--data.root={tmp_path}"]
    elif file.stem.startswith("folder"):
        flags = [f"--data.root={make_folder(tmp_path / 'my_images')}"]
        (tmp_path / "my_images" / "hierarchy.txt").write_text("animal\n-- cat\n-- dog\n")
    trainer, model, _ = build(["fit", f"--config={file}", *flags, *QUIET], monkeypatch)
    stem = file.stem.rpartition("_")[2]
    assert type(model).__name__.lower().startswith({"arcface": "metriclearning"}.get(stem, stem))
    assert len(model.class_names) == model.num_classes
    assert {type(callback).__name__ for callback in trainer.callbacks} >= {"GeometryMonitor", "EmbeddingPlot"}


def test_all_blocks_are_used():
    used = {f"data/{name}.yaml" for name in MINIATURES}
    for file in RUN_FILES:
        used |= {block for block in yaml.safe_load(file.read_text()).values() if isinstance(block, str)}
    for protocol in PROTOCOLS:
        used |= {f"{folder}/{name}.yaml" for folder, name in zip(FOLDERS, protocol, strict=True)}
    for command in FITS:
        used |= {value.removeprefix("configs/") for value in files_of(command).values()}
    for folder in FOLDERS:
        for block in (CONFIGS / folder).glob("*.yaml"):
            assert f"{folder}/{block.name}" in used, block


@pytest.mark.parametrize("name", MINIATURES)
def test_data_blocks_instantiate(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    MINIATURES[name](tmp_path)
    flags = [f"--data={CONFIGS / 'data' / f'{name}.yaml'}", f"--data.root={tmp_path}"]
    flags += ["--data.lists=lists"] if name == "imagenet_subset" else []
    _, model, data = build(["fit", f"--config={CONFIGS / 'cub_cosine.yaml'}", *flags, *QUIET], monkeypatch)
    block = yaml.safe_load((CONFIGS / "data" / f"{name}.yaml").read_text())
    assert type(data).__name__ == block["class_path"]
    assert data.batch_size == block["init_args"]["batch_size"]
    assert len(data.augment) == len(block["init_args"]["augment"])
    assert model.class_names == data.class_names
    assert any(isinstance(augmentation, RandomErasing) for augmentation in data.augment) == (name in PAPER)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol[1])
def test_protocols_instantiate(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    {**MINIATURES, "cub_224": make_cub}[protocol[0]](tmp_path)
    blocks = {folder: CONFIGS / folder / f"{name}.yaml" for folder, name in zip(FOLDERS, protocol, strict=True)}
    flags = [f"--{folder}={block}" for folder, block in blocks.items()] + [f"--data.root={tmp_path}"]
    flags += ["--data.lists=lists"] if protocol[0] == "imagenet_subset" else []
    trainer, model, data = build(["fit", f"--config={CONFIGS / 'digits_softmax.yaml'}", *flags, *QUIET], monkeypatch)
    settings = {folder: yaml.safe_load(block.read_text()) for folder, block in blocks.items()}
    assert type(data).__name__ == settings["data"]["class_path"]
    assert type(model).__name__ == settings["model"]["class_path"]
    assert trainer.max_epochs == settings["trainer"]["max_epochs"]
    plan = settings["model"]["init_args"]
    model.trainer = trainer
    optimizer = model.configure_optimizers()["optimizer"]
    decays = {group["weight_decay"] for group in optimizer.param_groups}
    assert plan["optimizer"]["init_args"]["weight_decay"] in decays
    assert (0 in decays) == (plan.get("weight_decay_on") == "weights" or protocol[1].startswith("standalone"))
    assert type(model.lr_scheduler(optimizer)).__name__ == plan["lr_scheduler"]


@pytest.mark.usefixtures("miniatures")
def test_protocol_runs_on_a_miniature(tmp_path, monkeypatch, capsys):
    """Train with random resized crops from larger images than in evaluation, and a schedule by steps."""
    make_cub(tmp_path, classes=4, images_per_class=12, size=48)
    monkeypatch.chdir(tmp_path)
    flags = [f"--data.root={tmp_path}", "--data.resize=32", "--data.train_resize=40", "--data.image_size=32"]
    small = ["--data.batch_size=8", "--data.num_workers=0", "--model.backbone.name=resnet18", "--trainer.max_epochs=2"]
    main(["fit", f"--config={CONFIGS / 'cub_224_softmax.yaml'}", *flags, *small, *QUIET, "--trainer.callbacks=null"])
    assert "test/accuracy" in capsys.readouterr().out
    [checkpoint] = (tmp_path / "runs").glob("*/version_0/checkpoints/last.ckpt")
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["images"] == {"in_channels": 3, "resize": 32, "image_size": 32}
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "runs", "trials", "flags"),
    [
        ("cub_samples", "3", "none", ["--only=[cosine]", "--baseline=cosine", "--samples_per_class=[2]"]),
        pytest.param(
            *("cub_gem", "6", "200: 100 for each of 2", ["--only=[cosine, full_convolution]", "--baseline=cosine"]),
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
    main(["compare", "--config=plan.yaml", "--dry_run=true", *flags])
    screen = capsys.readouterr().out
    assert re.search(rf"^final runs +{runs}, tested once each$", screen, flags=re.MULTILINE)
    assert re.search(rf"^trials +{trials}", screen, flags=re.MULTILINE)


DIGITS = (*REGIMES, "arcface")


def fit_in_turn(folder: Path, *regimes: str) -> None:
    """Fit the shipped configs, and write their output to files."""
    os.chdir(folder)
    for regime in regimes:
        with open(f"{regime}.txt", "w") as screen, redirect_stdout(screen):
            main(["fit", f"--config={CONFIGS / f'digits_{regime}.yaml'}", *QUIET])


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
    assert (run / "figures" / "embeddings" / "epoch_0040.png").is_file()
    assert (run / "figures" / "embeddings.gif").is_file()
    assert json.loads((run / "result.json").read_text())["metrics"]["test/accuracy"] > 0.5  # chance is 0.1
    assert (run / "figures" / "confusion_matrix.png").is_file()
    checkpoint = run / "checkpoints" / "best.ckpt"
    main(["test", f"--config={CONFIGS / f'digits_{regime}.yaml'}", f"--ckpt_path={checkpoint}", *QUIET])
    assert "test/balanced_accuracy" in capsys.readouterr().out
    main(["predict", f"--config={CONFIGS / f'digits_{regime}.yaml'}", f"--ckpt_path={checkpoint}", *QUIET])
    assert len((run / "predictions_test.csv").read_text().splitlines()) == 1 + 359


@pytest.mark.slow
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.usefixtures("miniatures")
def test_cub_fit_test_predict_on_a_miniature(regime, tmp_path, monkeypatch):
    make_cub(tmp_path, classes=4, images_per_class=12, size=48)
    monkeypatch.chdir(tmp_path)
    flags = [f"--data.root={tmp_path}", "--data.resize=40", "--data.image_size=32", "--model.backbone.name=resnet18"]
    flags += ["--trainer.max_epochs=1", f"--data.num_workers={2 if regime == 'softmax' else 0}"]
    main(["fit", f"--config={CONFIGS / f'cub_{regime}.yaml'}", *flags, *QUIET])
    run = tmp_path / "runs" / f"cub_{regime}" / "version_0"
    checkpoint = run / "checkpoints" / "last.ckpt"
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["images"] == {"in_channels": 3, "resize": 40, "image_size": 32}
    assert saved["class_names"] == [f"{i:03d}.Bird_{i}" for i in range(1, 5)]
    main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    main(["predict", f"--ckpt_path={checkpoint}", f"--data.predict_dir={tmp_path / 'CUB_200_2011'}", *QUIET])
    assert len((run / "predictions.csv").read_text().splitlines()) == 1 + 48
