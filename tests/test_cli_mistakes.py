"""One line for every mistake on the command line, and nothing half-written."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from metricloss_pl.cli import main
from tests.command_line import CONFIGS, QUIET, ROOT, best, fit, load, refusal
from tests.helpers import make_folder
from tests.processes import run_groups
from tests.systems import needs_signals


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit("digits_cosine", tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        (["--model.init_args.center_wieght=1"], ["CenterSoftmaxClassifier", "'center_wieght'", "center_weight"]),
        (["--model.backbone.name=resnet18"], ["TinyConvNet", "'name'", "in_channels, width, dropout"]),
        (["--data.init_args.batchsize=1"], ["DigitsDataModule", "'batchsize'", "batch_size"]),
        (["--model=CosineClasifier"], ["CosineClasifier", "CosineClassifier"]),
        (["--model.backbone=NoSuchNet"], ["NoSuchNet"]),
        (["--data=NoSuchData"], ["NoSuchData"]),
        (["--trainer.max_epoch=3"], ["'max_epoch'", "max_epochs"]),
        (["--config=nowhere.yaml"], ["nowhere.yaml"]),
        (["--timeout_minutes=.inf"], ["--timeout_minutes", "inf"]),
        (["--save_every_n_steps=0"], ["--save_every_n_steps", "0"]),
        (["--model.num_classes=7"], ["model.num_classes"]),
        (["--trainer.accumulate_grad_batches=0"], ["trainer.accumulate_grad_batches", "0"]),
        (["--model.optimizer=torch.optim.SparseAdam"], ["SparseAdam"]),
        (["--model.optimizer=torch.optim.LBFGS"], ["LBFGS"]),
        (["--model.center_weight=much"], ["center_weight"]),
        (["--model.center_weight=-1"], ["center_weight", "-1.0"]),
        (["--model.batch_mixing=CutMix"], ["CutMix", "CenterSoftmaxClassifier", "same_class"]),
        (["--model.batch_mixing=CutMix", "--model.batch_mixing.alpha=0"], ["alpha", "CutMix", "0.0"]),
        (["--model.batch_mixing=Mixup"], ["Mixup", "MixUp"]),
        (["--trainer.callbacks=[{class_path: GeometryMonitr}]"], ["GeometryMonitr", "GeometryMonitor"]),
        (["--model.lr_scheduler=CosinDecay"], ["CosinDecay", "CosineDecay"]),
        (["--data.tta=mirror"], ["tta", "mirror", "'flip', 'crops', 'crops_and_flips'"]),
        (["--data.tta=[flip]"], ["tta"]),
        (["--model.center_optimizer=torch.optim.Adam"], ["center_optimizer", "Adam"]),
        (["--model.center_optimizer.momentum=0.9"], ["momentum", "0.9"]),
        (["--model.optimizer.lr=-1"], ["-1"]),
        (["--data.batch_size=0"], ["batch_size", "0"]),
        (["--data.val_fraction=1.5"], ["val_fraction", "1.5"]),
        (["--trainer.default_root_dir=elsewhere"], ["elsewhere", "--runs_dir"]),
        ([f"--runs_dir={__file__}"], ["--runs_dir", __file__]),
        (["--trainer.max_epochs=-1"], ["schedule"]),
        (["--ckpt_path=last"], ["--resume"]),
        (["--trainer.precision=8"], ["trainer.precision", "8"]),
        (["--model.embedding_dim=0"], ["embedding_dim", "0"]),
        (["--trainer.max_epochs=three"], ["trainer.max_epochs is three", "integer or null"]),
        (["--model.optimizer.lr=1e-3", "--data.batch_size=1.5"], ["data.batch_size is 1.5", "integer", "auto"]),
        (["--trainer.limit_train_batches=many"], ["trainer.limit_train_batches is many", "number or null"]),
    ],
    ids=lambda given: given[-1],
)
def test_mistakes_in_the_config(flags, values, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = ["fit", f"--config={CONFIGS / 'digits_center.yaml'}", "--trainer.callbacks=null"]
    line = refusal(capsys, *config, *flags)
    assert all(value in line for value in values), line
    assert list(tmp_path.iterdir()) == []  # nothing half-written


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        (["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/acc"], ["val/acc", "val/accuracy"]),
        (["--model.ce_weight=0", "--model.embedding_dim=2"], ["embedding_dim", "2", "10"]),
        (["--trainer.callbacks=null", "--data.batch_size=1"], ["data.batch_size"]),
    ],
)
def test_mistakes_that_training_finds(flags, values, tmp_path, capsys):
    line = refusal(capsys, "fit", f"--config={CONFIGS / 'digits_cosine.yaml'}", f"--runs_dir={tmp_path}", *flags)
    assert all(value in line for value in values), line


def test_mistakes_in_a_folder(tmp_path, capsys):
    def refused(root: Path, *flags: str) -> str:
        config = [f"--config={CONFIGS / 'folder_cosine.yaml'}", "--trainer.callbacks=null", "--data.image_size=16"]
        return refusal(capsys, "fit", *config, f"--data.root={root}", f"--runs_dir={tmp_path / 'runs'}", *flags)

    assert "nowhere" in refused(tmp_path / "nowhere")
    assert "1 class" in refused(make_folder(tmp_path / "one", classes=["cat"], images=10))
    root = make_folder(tmp_path / "images", images=10)
    (root / "owl").mkdir()
    assert "owl" in refused(root)
    (root / "owl").rmdir()
    (root / "cat" / "3.png").write_bytes(b"no image at all")
    assert "3.png" in refused(root)
    root = make_folder(tmp_path / "parts", images=4, parts=("train", "test"))
    of_test = root / "test" / "dog" / "0.png"
    of_test.write_bytes(of_test.read_bytes()[:400])
    assert str(of_test) in refused(root)
    assert not (tmp_path / "runs").exists()  # no training has begun
    shutil.copy(root / "train" / "dog" / "1.png", of_test)
    with pytest.warns(UserWarning, match=r"test/dog/0.png \(test\) = "):
        refused(root, "--data.batch_size=1")


def test_checkpoints_that_do_not_fit(digits_run, tmp_path, capsys):
    softmax = ["test", f"--config={CONFIGS / 'digits_softmax.yaml'}", f"--runs_dir={tmp_path}"]
    line = refusal(capsys, *softmax, best(digits_run))
    assert "CosineClassifier" in line
    assert "SoftmaxClassifier" in line
    torn = tmp_path / "torn.ckpt"
    cosine = ["test", f"--config={CONFIGS / 'digits_cosine.yaml'}", f"--runs_dir={tmp_path}", f"--ckpt_path={torn}"]
    whole = (digits_run / "checkpoints" / "best.ckpt").read_bytes()
    for content in (whole[: len(whole) // 2], b"junk"):
        torn.write_bytes(content)
        assert "torn.ckpt can't be read" in refusal(capsys, *cosine)
    torch.save({"weights": torch.ones(2)}, torn)
    assert "holds no regime" in refusal(capsys, *cosine)
    labels = np.arange(30) % 3
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", classes=np.array(["a", "b", "c"]), train_images=images, train_labels=labels)
    other = ["--data=NpzDataModule", f"--data.path={tmp_path / 'set.npz'}", "--trainer.callbacks=null"]
    flags = ["test", "--model=CosineClassifier", "--model.backbone=TinyConvNet", *other, f"--runs_dir={tmp_path}"]
    line = refusal(capsys, *flags, best(digits_run))
    assert "'0', '1', '2'" in line
    assert "'a', 'b', 'c'" in line


def test_a_checkpoint_that_carries_code_is_not_run(digits_run, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    evil = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": {"x": Evil()}}, evil)
    flags = ["test", f"--config={CONFIGS / 'digits_cosine.yaml'}", f"--ckpt_path={evil}"]
    assert "evil.ckpt can't be read" in refusal(capsys, *flags)
    assert not (tmp_path / "executed").exists()
    checkpoint = load(digits_run / "checkpoints" / "best.ckpt")
    checkpoint["hyper_parameters"]["backbone"] = {"class_path": "this_must_not_be_imported.Net"}
    torch.save(checkpoint, evil)
    line = refusal(capsys, "predict", f"--ckpt_path={evil}", f"--data.predict_dir={tmp_path}")
    assert "this_must_not_be_imported.Net, which is not trusted" in line


def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    """The learning rate is good for one epoch, then 1e30 times as large."""
    config = f"--config={CONFIGS / 'digits_softmax.yaml'}"
    schedule = ["--model.lr_scheduler=torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size=1"]
    flags = [config, f"--runs_dir={tmp_path}", "--trainer.callbacks=null", *schedule, "--model.lr_scheduler.gamma=1e30"]
    line = refusal(capsys, "fit", *flags)
    assert re.search(r"train/loss is (nan|inf) at step \d+ of epoch 1 \(learning rate 5e\+28\)", line)
    for name in ("best", "last"):
        checkpoint = load(tmp_path / "digits_softmax" / "version_0" / "checkpoints" / f"{name}.ckpt")
        assert checkpoint["global_step"] == 20
        assert all(torch.isfinite(tensor).all() for tensor in checkpoint["state_dict"].values())


@needs_signals
def test_sigterm_is_no_success(tmp_path):
    """As a scheduler ends jobs."""
    flags = [f"--config={CONFIGS / 'digits_softmax.yaml'}", "--trainer.callbacks=tests.interrupted_fit.Terminate"]
    with pytest.raises(ProcessExitedException) as caught:
        run_groups((1, main, ["fit", *flags, f"--runs_dir={tmp_path}", *QUIET]))
    assert caught.value.exit_code == 143


def test_what_is_missing_is_named(digits_run, tmp_path, capsys):
    away = shutil.copy(digits_run / "checkpoints" / "best.ckpt", tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed_everything: 0\n")
    for args, value in (
        (["fit"], "--config"),
        (["fit", "--data.root=my_images"], "--config"),
        (["test"], "--ckpt_path"),
        *(
            ([name, f"--config={digits_run / 'config.yaml'}"], "--ckpt_path")
            for name in ("validate", "test", "predict")
        ),
        (["test", f"--ckpt_path={tmp_path}"], f"{tmp_path} is a folder"),
        (["test", f"--ckpt_path={away}"], "--data"),
        (["test", f"--ckpt_path={tmp_path / 'bset.ckpt'}"], "bset.ckpt"),
        (["fit", f"--resume={tmp_path / 'nowhere'}"], "config.yaml is missing"),
        (["fit", f"--resume={run}"], "last.ckpt is missing"),
    ):
        assert value in refusal(capsys, *args)


@pytest.mark.slow
def test_status_and_screen_of_the_launcher():
    """As a shell sees it: one line on standard error, status 1."""
    command = [sys.executable, ROOT / "cli.py", "fit", "--config=nowhere.yaml"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.splitlines()) == 1
