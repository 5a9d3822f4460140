"""Pretrained backbones on the command line: their images are prepared as the weights ask, and heads use features."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torchvision import models

import metricloss_pl
from metricloss_pl.cli import main
from tests.command_line import QUIET, best, fit, load, result
from tests.helpers import make_folder


@pytest.mark.parametrize("model", ["linear_probe", "cosine_probe"])
def test_a_head_on_features_is_a_checkpoint_like_any_other(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "images", images=20)
    flags = [f"--data.root={root}", f"--model={model}.yaml", "--model.backbone=TinyConvNet"]
    run = fit("folder_probe", tmp_path / "runs", *flags, "--trainer.callbacks=CachedFeatures", "--test_after_fit=true")
    assert load(run / "checkpoints" / "best.ckpt")["image_format"] == {
        "in_channels": 3,
        "resize": 16,
        "image_size": 16,
    }
    assert (tmp_path / "runs" / "features").is_dir()
    capsys.readouterr()
    main(["test", best(run), *QUIET])
    assert result(run, "test")["metrics"]["test/accuracy"] == result(run)["metrics"]["test/accuracy"]
    main(["predict", best(run), f"--data.predict_dir={root}", *QUIET])
    with (run / "predictions.csv").open(newline="") as table:
        predicted = {row["file"]: row["class"] for row in csv.DictReader(table)}
    trained = metricloss_pl.load(run / "checkpoints" / "best.ckpt")
    assert trained.predict([root / file for file in predicted]).classes == list(predicted.values())


def test_images_are_prepared_as_in_the_training_of_the_weights(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Size and normalization are those of the file's network; a flag replaces each."""
    lines: list[str] = []
    monkeypatch.setattr("metricloss_pl.callbacks.dataset_facts.rank_zero_info", lines.append)
    root = make_folder(tmp_path / "images", images=10)
    name = "shufflenet_v2_x0_5"
    torch.save(models.get_model(name).state_dict(), tmp_path / "weights.pth")
    backbone = [f"--model.backbone.name={name}", f"--model.backbone.weights={tmp_path / 'weights.pth'}"]
    flags = [f"--data.root={root}", "--data.batch_size=4", *backbone]
    run = fit("folder_fine_tuned", tmp_path / "runs", *flags)
    assert [str(warning.message).partition(",")[0] for warning in recwarn if "enlarged" in str(warning.message)] == [
        "ImageFolderDataModule: 13 training images of less than 224 px will be enlarged to 224 px"
    ]
    (line,) = lines
    assert all(word in line for word in ("[0.485, 0.456, 0.406]", "weights.pth", "assumed"))
    checkpoint = load(run / "checkpoints" / "best.ckpt")
    assert checkpoint["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert checkpoint["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert checkpoint["image_format"] == {"in_channels": 3, "resize": 224, "image_size": 224}
    main(["test", best(run), *QUIET])  # with a config that leaves the size to the weights
    assert "test/accuracy" in capsys.readouterr().out

    recwarn.clear()
    own = ["--data.mean=[0.5, 0.5, 0.5]", "--data.image_size=16"]
    checkpoint = load(fit("folder_fine_tuned", tmp_path / "runs", *flags, *own) / "checkpoints" / "best.ckpt")
    assert checkpoint["mean"] == [0.5, 0.5, 0.5]
    assert checkpoint["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert checkpoint["image_format"]["image_size"] == 16
    assert not [warning for warning in recwarn if "enlarged" in str(warning.message)]
