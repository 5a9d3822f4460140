"""The command line as a user meets it: one folder per run, resume, predict, and the meaning of configs."""

import csv
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.cli import main
from metricloss_pl.regimes import MetricLearningClassifier
from tests.command_line import CONFIGS, QUIET, SMALL, best, checkpoint_names, fit, load, refusal, result
from tests.helpers import make_folder


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit("digits_cosine", tmp_path_factory.mktemp("runs"), "--trainer.max_epochs=8")


# ----------------------------------------------------------------------------------------------------------- one run


def test_a_run_is_in_one_folder(tmp_path, capsys):
    run = fit("digits_softmax", tmp_path, "--test_after_fit=true")
    assert run == tmp_path / "digits_softmax" / "version_0"
    assert {"config.yaml", "checkpoints", "result.json"} <= {p.name for p in run.iterdir()}
    assert checkpoint_names(run) == {"best.ckpt", "last.ckpt"}
    assert list(run.glob("events.out.tfevents.*"))
    screen = capsys.readouterr().out
    for row in (
        r"1294 training, 144 validation and 359 test images of 10 classes \(125 to 131 training",
        r"TinyConvNet, 67,594 parameters",
        r"20 steps of 64 images, 20 per epoch; few",
        r"time +\d+ s, 1 epochs, 20 steps",
        r"best epoch +1 of 1, by val/accuracy on 144 images$",
        r"best val/accuracy +0\.\d{4}",
        r"test/accuracy +0\.\d{4}",
    ):
        assert re.search(row, screen, flags=re.MULTILINE), row
    assert str(run / "checkpoints" / "best.ckpt") in screen
    assert "validation  " not in screen
    assert "imbalance" not in screen
    assert fit("digits_softmax", tmp_path, "--data.val_fraction=0.02").name == "version_1"
    screen = capsys.readouterr().out
    assert re.search(
        r"^validation +29 images; few: .* 3 percentage points of val/accuracy$", screen, flags=re.MULTILINE
    )
    assert re.search(r"best epoch .* 29 images; few: .* 3 percentage points$", screen, flags=re.MULTILINE)


def test_facts_of_the_data_reach_the_model(digits_run):
    settings = load(digits_run / "checkpoints" / "best.ckpt")["hyper_parameters"]
    assert settings["num_classes"] == 10
    assert settings["class_names"] == [str(digit) for digit in range(10)]
    assert settings["backbone"]["init_args"]["in_channels"] == 1


def test_a_saved_config_starts_a_new_run_like_it(digits_run, tmp_path):
    main(["fit", f"--config={digits_run / 'config.yaml'}", f"--runs_dir={tmp_path}", *QUIET, "--trainer.max_epochs=1"])
    assert (tmp_path / "digits_cosine" / "version_0" / "checkpoints" / "best.ckpt").is_file()


def test_an_evaluation_needs_only_the_checkpoint_and_leaves_the_config(digits_run, tmp_path, capsys):
    run = shutil.copytree(digits_run, tmp_path / "digits_cosine" / "version_0")
    before = (run / "config.yaml").read_bytes()
    for subcommand, metric in (("validate", "val/accuracy"), ("test", "test/accuracy")):
        for _ in range(2):  # the same command writes to the same place
            main([subcommand, best(run), *QUIET])
        found = result(run, subcommand)
        assert f"{metric}           {found['metrics'][metric]:.4f}\n" in capsys.readouterr().out
        assert found["checkpoint"].endswith("best.ckpt")
        assert len(list(run.glob(f"{subcommand}*.json"))) == 1
    main(["test", best(run), "--data.tta=flip", *QUIET])
    assert result(run, "test_2")["metrics"] != result(run, "test")["metrics"]
    # Lightning's way: what a checkpoint was trained with is what is tested.
    main(["test", f"--config={CONFIGS / 'digits_cosine.yaml'}", "--model.ce_weight=0", best(run), *QUIET])
    assert "test/cross_entropy" in result(run, "test_3")["metrics"]
    assert (run / "config.yaml").read_bytes() == before


def test_a_resumed_run_trains_for_longer(tmp_path, capsys):
    """From the last epoch, although an earlier one was better; the schedule grows with the training."""
    run = fit("digits_softmax", tmp_path, "--trainer.max_epochs=4", "--model.lr_scheduler.warmup=0")
    assert load(run / "checkpoints" / "last.ckpt")["global_step"] == 80
    before = result(run)["seconds"]
    with warnings.catch_warnings(record=True) as caught:
        main(["fit", f"--resume={run}", *QUIET, "--trainer.max_epochs=8"])
    assert not caught
    last = load(run / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 160
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["trainer"]["max_epochs"], config["resume"], config["ckpt_path"]) == (8, None, None)
    after = result(run)
    assert after["seconds"] > before  # both stretches
    assert after["seconds"] == pytest.approx(last["callbacks"]["RunRecord"]["seconds"], rel=0.3, abs=0.2)
    assert f"fit --resume={run}" in after["command"]
    assert "--ckpt_path" not in after["command"]
    files = {path: path.read_bytes() for path in run.rglob("*") if path.suffix in (".ckpt", ".yaml", ".json")}
    assert "nothing is left to train" in refusal(capsys, "fit", f"--resume={run}")
    for flag in ("--model.optimizer.lr=1", "--data.seed=3", "--config=digits_softmax.yaml"):
        assert flag.partition("=")[0] in refusal(capsys, "fit", f"--resume={run}", "--trainer.max_epochs=9", flag)
    assert {path: path.read_bytes() for path in files} == files
    last["state_dict"]["head.bias"] = torch.zeros(3)
    torch.save(last, run / "checkpoints" / "last.ckpt")
    line = refusal(capsys, "fit", f"--resume={run}", "--trainer.max_epochs=9")
    assert "head.bias of shape (3,)" in line
    assert "(10,)" in line
    assert load(run / "checkpoints" / "last.ckpt")["state_dict"]["head.bias"].shape == (3,)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        (["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"], 2),
        (["--trainer.max_steps=5", "--trainer.max_epochs=-1"], 5),
        (["--trainer.val_check_interval=0.5", "--trainer.log_every_n_steps=0"], 20),
        (["--trainer.gradient_clip_val=1", "--trainer.accumulate_grad_batches=3"], 7),
    ],
)
def test_trainer_flags_keep_their_meaning(flags, steps, tmp_path):
    run = fit("digits_center", tmp_path, *flags)
    assert load(run / "checkpoints" / "last.ckpt")["global_step"] == result(run)["steps"] == steps


def test_without_checkpoints_and_log_the_last_weights_are_tested(tmp_path, capsys):
    off = ["--trainer.enable_checkpointing=false", "--trainer.logger=false", "--test_after_fit=true"]
    run = fit("digits_center", tmp_path, *off)
    assert {path.name for path in run.iterdir()} == {".metricloss_run", "config.yaml", "result.json", "split.csv"}
    assert "test/accuracy" in result(run)["metrics"]
    assert "--ckpt_path" not in capsys.readouterr().out


def test_without_validation_images_the_last_checkpoint_is_the_result(tmp_path, capsys):
    """A callback of the user's own that watches another metric stays as it is."""
    own = ["--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint", f"--trainer.callbacks.dirpath={tmp_path}"]
    own += ["--trainer.callbacks.monitor=train/loss", "--trainer.callbacks.filename=mine"]
    flags = ["--data.val_fraction=0", "--trainer.max_epochs=2", "--test_after_fit=true"]
    run = fit("digits_softmax", tmp_path / "runs", *own, *flags)
    assert (tmp_path / "mine.ckpt").is_file()
    assert checkpoint_names(run) == {"last.ckpt"}
    assert result(run)["checkpoint"] == str(run / "checkpoints" / "last.ckpt")
    assert {name.partition("/")[0] for name in result(run)["metrics"]} == {"test"}
    main(["fit", f"--resume={run}", "--trainer.max_epochs=3", *QUIET])
    assert result(run)["epochs"] == 3


def test_a_limit_of_time(tmp_path):
    run = fit("digits_softmax", tmp_path, "--trainer.max_time=00:00:00:01", "--trainer.max_epochs=5000")
    assert result(run)["seconds"] < 30


@pytest.mark.slow
def test_the_file_of_initial_weights_is_needed_once(tmp_path):
    """The checkpoint has the weights; the saved config still names the file."""
    from metricloss_pl.backbones import TorchvisionBackbone

    weights = tmp_path / "weights.pth"
    torch.save(TorchvisionBackbone("resnet18", in_channels=1, small_stem=True).state_dict(), weights)
    settings = {"name": "resnet18", "small_stem": "true", "weights": weights}
    flags = ["--model.backbone=TorchvisionBackbone"]
    flags += [f"--model.backbone.{name}={value}" for name, value in settings.items()]
    run = fit("digits_softmax", tmp_path / "runs", *flags, "--trainer.limit_train_batches=2", *SMALL)
    weights.unlink()
    main(["test", best(run), *QUIET])
    main(["predict", best(run), *QUIET])
    main(["fit", f"--resume={run}", "--trainer.max_epochs=2", *QUIET])
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["backbone"]["init_args"]["weights"] == str(weights)


def test_compile_is_that_of_the_backbone(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(TinyConvNet, "compile", lambda network: compiled.append(network))
    fit("digits_softmax", tmp_path, *SMALL, "--compile=true")
    fit("digits_softmax", tmp_path, *SMALL)
    assert len(compiled) == 1


def test_fast_dev_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["fit", f"--config={CONFIGS / 'digits_center.yaml'}", *QUIET, "--trainer.fast_dev_run=true"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("digits_center", []),
        ("digits_standalone", []),
        (
            "digits_softmax",
            ["--model.lr_scheduler=WarmRestarts", "--model.lr_scheduler.T_0=1", "--data.samples_per_class_in_batch=8"],
        ),
    ],
)
def test_a_resumed_run_ends_as_the_uninterrupted_one(name, extra, tmp_path):
    flags = ["--trainer.max_epochs=3", "--checkpoint.save_top_k=-1", "--checkpoint.filename={epoch}", *extra]
    run = fit(name, tmp_path, *flags)
    broken = shutil.copytree(run, tmp_path / name / "version_7")
    shutil.copy(run / "checkpoints" / "epoch=0.ckpt", broken / "checkpoints" / "last.ckpt")
    main(["fit", f"--resume={broken}", *QUIET])
    whole, resumed = (load(folder / "checkpoints" / "last.ckpt") for folder in (run, broken))
    assert whole["global_step"] == resumed["global_step"] == 60
    for key, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][key]), key
    assert whole.get("center_optimizer_state") == resumed.get("center_optimizer_state")
    assert not (tmp_path / name / "version_8").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mixing", ["CutMix", {"class_path": "MixUp", "init_args": {"alpha": 0.4}}])
def test_mixing_from_a_file_and_with_the_checkpoint_alone(mixing, tmp_path):
    """A model block names it; the checkpoint holds it, for a test in the run and a prediction far from it."""
    block = yaml.safe_load((CONFIGS / "model" / "cosine_tiny.yaml").read_text())
    block["init_args"]["batch_mixing"] = mixing
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(block))
    run = fit("digits_cosine", tmp_path, f"--model={tmp_path / 'mixed.yaml'}", "--trainer.limit_train_batches=3")
    saved = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["batch_mixing"]
    name, alpha = ("CutMix", 1.0) if mixing == "CutMix" else ("MixUp", 0.4)
    settings = {"alpha": alpha, "probability": 1.0, "same_class": False}
    assert saved == {"class_path": f"metricloss_pl.mixing.{name}", "init_args": settings}
    main(["test", best(run), *QUIET])
    away = shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "model.ckpt")
    flags = [f"--data.predict_dir={make_folder(tmp_path / 'new', images=2)}", "--data.tta=flip"]
    main(["predict", f"--ckpt_path={away}", f"--predictions.path={tmp_path / 'out.csv'}", *flags, *QUIET])
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + 4


def test_predict_takes_any_folder_with_the_checkpoint_alone(digits_run, tmp_path, monkeypatch):
    """Names, size, channels and normalization come from the checkpoint: a copy far from its run is enough."""
    from sklearn.datasets import load_digits

    monkeypatch.chdir(tmp_path)
    shutil.copy(digits_run / "checkpoints" / "best.ckpt", "model.ckpt")
    digits = load_digits()
    Path("new").mkdir()
    for i in range(30):
        image = Image.fromarray((digits.images[i] * 255 / 16).astype(np.uint8))
        image.convert("RGB" if i % 2 else "L").save(f"new/{i:02d}.png")
    flags = ["--predictions.path=out.csv", "--predictions.embeddings=true"]
    main(["predict", "--ckpt_path=model.ckpt", "--data.predict_dir=new", *flags, *QUIET])
    with open("out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"{i:02d}.png" for i in range(30)]
    assert np.mean([int(row["class"]) == y for row, y in zip(rows, digits.target, strict=False)]) > 0.5  # chance is 0.1
    assert all(float(row["probability"]) >= float(row["runner_up_probability"]) for row in rows)
    assert np.load("out.npz")["embeddings"].shape == (30, 10)
    assert {path.name for path in Path().iterdir()} == {"model.ckpt", "new", "out.csv", "out.npz"}


@pytest.mark.slow
def test_a_loss_of_pytorch_metric_learning(tmp_path, capsys):
    """Another one than the config's, by flags; the checkpoint alone predicts."""
    run = fit("digits_arcface", tmp_path, "--model.loss=CosFaceLoss", "--model.loss_args.margin=0.2")
    checkpoint = shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path)
    loss = MetricLearningClassifier.load_from_checkpoint(checkpoint, weights_only=True).criterion.loss
    assert (type(loss).__name__, loss.margin, loss.scale) == ("CosFaceLoss", 0.2, 64)
    (tmp_path / "new").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "new" / "a.png")
    flags = [f"--data.predict_dir={tmp_path / 'new'}", f"--predictions.path={tmp_path / 'out.csv'}"]
    main(["predict", f"--ckpt_path={checkpoint}", *flags, *QUIET])
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2
    arcface = ["fit", f"--config={CONFIGS / 'digits_arcface.yaml'}", f"--runs_dir={tmp_path}"]
    for flag, value in (("loss_args.margn=20", "'margn'"), ("loss=CosFaceLoss", "28.6"), ("loss=ProxyAnchorLoss",) * 2):
        assert value.removeprefix("loss=") in refusal(capsys, *arcface, f"--model.{flag}")


# ------------------------------------------------------------------------------------------------- meaning of configs


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    """Return the config that --print_config prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*args, "--print_config"])
    assert caught.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_block_given_as_a_file_replaces_the_block(reverse, capsys):
    """Settings of the config's own block are gone; other blocks stay, and single settings override in any order."""
    args = [f"-c{CONFIGS / 'digits_center.yaml'}", f"--model={CONFIGS / 'model' / 'cosine_tiny.yaml'}"]
    args += ["--model.ce_weight=0.5", "--trainer.max_epochs=3"]
    found = printed(capsys, "fit", *(reversed(args) if reverse else args))
    assert found["model"]["class_path"] == "metricloss_pl.CosineClassifier"
    assert found["model"]["init_args"]["embedding_dim"] == "auto"
    assert found["model"]["init_args"]["ce_weight"] == 0.5
    assert found["data"]["class_path"].endswith("DigitsDataModule")
    assert found["trainer"]["max_epochs"] == 3
    assert found["test_after_fit"] is True


def test_a_class_given_in_place_of_a_block_keeps_the_settings_that_it_has(capsys):
    config = f"--config={CONFIGS / 'folder_cosine.yaml'}"
    found = printed(capsys, "fit", config, "--data=ImageListDataModule", "--data.csv=list.csv")["data"]
    assert found["class_path"] == "metricloss_pl.data.ImageListDataModule"
    assert found["init_args"]["image_size"] == "auto"
    assert found["init_args"]["images_dir"] is None
    assert "root" not in found["init_args"]


def test_a_run_is_named_after_config_and_blocks(tmp_path):
    run = fit("digits_softmax", tmp_path, f"--model={CONFIGS / 'model' / 'center_tiny.yaml'}")
    assert run.parent.name == "digits_softmax-center_tiny"
    assert result(run)["model"] == "metricloss_pl.CenterSoftmaxClassifier"


def test_a_run_file_far_from_its_blocks(tmp_path, capsys):
    shutil.copy(CONFIGS / "digits_cosine.yaml", tmp_path)
    line = refusal(capsys, "fit", f"--config={tmp_path / 'digits_cosine.yaml'}")
    assert str(tmp_path / "data" / "digits.yaml") in line


def test_a_regime_of_another_project_runs_by_class_path(tmp_path, monkeypatch):
    (tmp_path / "their_project.py").write_text(
        "from metricloss_pl.regimes import SoftmaxClassifier\n"
        "class Shrunk(SoftmaxClassifier):\n"
        "    def losses(self, embeddings, labels):\n"
        "        losses = super().losses(embeddings, labels)\n"
        "        norm = embeddings.square().sum(1).mean()\n"
        "        return {'loss': losses['loss'] + 0.001 * norm, 'norm': norm}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    flags = ["--model.backbone=TinyConvNet", "--data=DigitsDataModule", "--trainer.max_epochs=1"]
    main(["fit", "--model=their_project.Shrunk", *flags, *QUIET])
    checkpoint = load(Path("runs/Shrunk/version_0/checkpoints/best.ckpt"))
    assert checkpoint["hyper_parameters"]["_class_path"] == "their_project.Shrunk"
