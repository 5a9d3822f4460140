"""Checkpoints whose entries are of other types than `fit` writes: one line, whatever reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import metricloss_pl
from metricloss_pl.cli import main
from metricloss_pl.errors import UserError

CONFIG = Path(__file__).parent.parent / "configs" / "digits_softmax.yaml"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.callbacks=null"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    flags = [f"--config={CONFIG}", f"--runs_dir={runs}", "--trainer.max_epochs=1", "--test_after_fit=false"]
    main(["fit", *flags, "--data.samples_per_class=20", "--data.batch_size=16", "--trainer.logger=false", *QUIET])
    (best,) = runs.glob("digits_softmax/version_0/checkpoints/best.ckpt")
    return torch.load(best, weights_only=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("class_names", [1] * 10),
        ("callbacks", None),
        ("callbacks", {"RunFolder": 5}),
        ("images", {"image_size": "large"}),
        ("pytorch-lightning_version", 2),
        ("hyper_parameters", {"_class_path": 5}),
        ("state_dict", {"mean": 1}),
    ],
)
def test_one_line(checkpoint, key, value, tmp_path, capsys):
    torch.save({**checkpoint, key: value}, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=f"checkpoint {tmp_path / 'best.ckpt'} holds no regime"):
        metricloss_pl.load(tmp_path / "best.ckpt")
    (tmp_path / "new").mkdir()
    with pytest.raises(SystemExit) as caught:
        main(["predict", f"--ckpt_path={tmp_path / 'best.ckpt'}", f"--data.predict_dir={tmp_path / 'new'}", *QUIET])
    assert caught.value.code == 1
    assert "holds no regime" in capsys.readouterr().err
