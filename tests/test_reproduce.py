"""docs/reproduce.md is true: each number has a command or a stored result, and hours follow from the FLOPs."""

from __future__ import annotations

import csv
import functools
import json
import re
import shlex
import statistics
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from metricloss_pl import backbones, data
from metricloss_pl.cli import main
from metricloss_pl.data import ImageDataModule, ImageNetSubsetDataModule
from metricloss_pl.data.torchvision_sets import MNISTDataModule
from tests.reproduced import (
    FIGURES,
    HOURS,
    OURS,
    OWN,
    PUBLISHED,
    RESULTS,
    ROOT,
    ROWS,
    configured,
    options_of,
    table_of,
)

SUSTAINED = 30e12  # FLOP/s
LAUNCH = 1e-4  # s per layer


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
    example, _, _ = PUBLISHED.split("```bash\n", 1)[1].partition("\n```")
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


def test_table_of_the_comparison_is_that_of_the_results():
    with (ROOT / "results" / "digits_comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    stated = {cells[0].strip("`"): cells[1:] for cells in table_of(OWN) if cells[0].startswith("`")}
    assert len(stated) == 6
    for name, cells in stated.items():
        found = [row for row in rows if row["variant"] == name]
        assert [row["size"] for row in found] == ["5", "20", "100"]
        assert cells == [f"{100 * float(row['accuracy']):.1f} ± {100 * float(row['std']):.1f}" for row in found]
    least = min(float(row["p_adjusted"]) for row in rows if row["p_adjusted"])
    assert f"adjusted p-value is\n{least:.2f}" in OWN


def test_table_of_unknown_digits_is_that_of_the_results():
    lines = [json.loads(line) for line in (ROOT / "results" / "unknown_digits.jsonl").read_text().splitlines()]
    assert [line["left_out"] for line in lines[::4]] == [[7, 8, 9], [0, 1, 2], [3, 4, 5]]
    _, _, section = OWN.partition("\n## Digits of unknown classes\n")
    _, _, *rows = table_of(section.partition("\n## ")[0])
    for regime, (_, *cells) in zip(("softmax", "cosine", "center", "standalone"), rows, strict=True):
        found = [line for line in lines if line["regime"] == regime]
        assert cells[:2] == [
            ", ".join(f"{100 * line[name]:.1f}" for line in found) for name in ("rejected_test", "rejected_unknown")
        ]
        assert cells[2] == ", ".join(f"{line['roc_auc']:.3f}" for line in found)


def test_comparisons_are_named_by_their_files():
    named = re.findall(r"^python cli.py compare --config configs/compare/(\w+).yaml$", PUBLISHED, flags=re.MULTILINE)
    assert named == ["cub_samples", "cub_gem"]  # planned in tests/test_configs.py
    assert len(named) == len(re.findall(r"^python cli.py (?!fit|figure)", PUBLISHED, flags=re.MULTILINE))


def test_figure_command(tmp_path, monkeypatch):
    [command] = re.findall(r"^python cli.py figure .*", PUBLISHED, flags=re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    main(shlex.split(command)[2:])
    assert [file.suffix for file in tmp_path.iterdir()] == [".png"]


@functools.cache
def cost_of(class_path: str, side: int, channels: int, **arguments: Any) -> tuple[str, int, int, int]:
    """Return the name of a network, the side of its images, FLOPs of the forward pass of one, and number of layers."""
    with torch.device("meta"):
        network = getattr(backbones, class_path)(in_channels=channels, **arguments)
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, channels, side, side))
    name = f"`{arguments.get('name', class_path)}`" + (", full convolutions" * arguments.get("full_convolution", False))
    return name, side, counter.get_total_flops(), sum(not list(module.children()) for module in network.modules())


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
        flops, layers = cost[2:]
        batch_size = config["data.batch_size"]
        of_data = [config.get(f"data.{name}") for name in ("samples_per_class", "oversample_to")]
        steps = training_images(module, config.get("data.val_fraction", module.val_fraction), *of_data) // batch_size
        seconds = max(3 * flops * batch_size / SUSTAINED, LAUNCH * layers)
        hours = config["trainer.max_epochs"] * steps * seconds / 3600
        assert row.figure == (f"{hours:.1f}" if hours >= 1 else f"{hours:.2f}"), row
        costs.add(cost)
    section = PUBLISHED.split("## Hours", 1)[1].split("\n## ", 1)[0]
    stated = {tuple(cells) for cells in table_of(section)[2:]}
    assert stated == {(name, str(side), f"{flops / 1e9:.3g}", str(layers)) for name, side, flops, layers in costs}
    assert f"{SUSTAINED / 1e12:g} TFLOP/s" in section
    assert f"{LAUNCH * 1e3:g} ms" in section
