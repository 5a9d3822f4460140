"""The command line as a user meets it: one folder a run, resume, predict, and one line for every mistake."""

import csv
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torch.multiprocessing import ProcessExitedException

from metricloss_pl.cli import main
from metricloss_pl.regimes import CosineClassifier, MetricLearningClassifier
from tests.helpers import make_folder
from tests.processes import run_groups
from tests.systems import needs_signals

CONFIGS = Path(__file__).parent.parent / "configs"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


def fit(config: str, runs: Path, *flags: str, name: str | None = None) -> Path:
    """Run a shipped config for an epoch, without figures; the run's folder."""
    args = ["fit", f"--config={CONFIGS / config}.yaml", f"--runs_dir={runs}", "--trainer.callbacks=null", *QUIET]
    main([*args, "--trainer.max_epochs=1", *flags])
    return max((runs / (name or config)).iterdir(), key=lambda folder: int(folder.name.removeprefix("version_")))


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that a mistake gets, with status 1 and no traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*args, *QUIET])
    assert caught.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit("digits_cosine", tmp_path_factory.mktemp("runs"), "--trainer.max_epochs=8")


# ----------------------------------------------------------------------------------------------------------- one run


def test_a_run_lives_in_one_folder(tmp_path, capsys):
    run = fit("digits_softmax", tmp_path)
    assert run == tmp_path / "digits_softmax" / "version_0"
    assert {"config.yaml", "checkpoints", "result.json"} <= {p.name for p in run.iterdir()}
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list(run.glob("events.out.tfevents.*"))
    screen = capsys.readouterr().out
    assert (
        "1294 training, 144 validation and 359 test images of 10 classes (125 to 131 training images per class)"
        in screen
    )
    assert "TinyConvNet, 67,594 parameters in all" in screen
    assert "20 steps of 64 images, 20 per epoch; few: lower --data.batch_size or raise --trainer.max_epochs" in screen
    for row in (r"time +\d+ s, 1 epochs, 20 steps", r"best val/accuracy +0\.\d{4}", r"test/accuracy +0\.\d{4}"):
        assert re.search(row, screen), row
    assert str(run / "checkpoints" / "best.ckpt") in screen
    assert "val set" not in screen
    assert fit("digits_softmax", tmp_path, "--data.val_fraction=0.02").name == "version_1"
    assert re.search(r"val set +29 images; few: each makes 3 points of what chooses", capsys.readouterr().out)


def test_the_data_tells_the_model(digits_run):
    checkpoint = torch.load(digits_run / "checkpoints" / "best.ckpt", weights_only=True)
    hparams = checkpoint["hyper_parameters"]
    assert hparams["num_classes"] == 10
    assert hparams["class_names"] == [str(digit) for digit in range(10)]
    assert hparams["backbone"]["init_args"]["in_channels"] == 1
    assert checkpoint["images"] == {"in_channels": 1, "resize": None, "image_size": None}
    assert checkpoint["state_dict"]["mean"].shape == (1,)
    assert 0.2 < checkpoint["state_dict"]["mean"].item() < 0.4


def test_seconds_are_those_of_the_training(digits_run):
    """Not twice those, after a test that has loaded the time kept in the checkpoint."""
    checkpoint = torch.load(digits_run / "checkpoints" / "last.ckpt", weights_only=True)
    seconds = checkpoint["callbacks"]["Timer"]["time_elapsed"]["train"]
    assert json.loads((digits_run / "result.json").read_text())["seconds"] == pytest.approx(seconds, rel=0.3, abs=0.2)


def test_saved_config_starts_a_new_run_like_it(digits_run, tmp_path):
    main(["fit", f"--config={digits_run / 'config.yaml'}", f"--runs_dir={tmp_path}", *QUIET, "--trainer.max_epochs=1"])
    assert (tmp_path / "digits_cosine" / "version_0" / "checkpoints" / "best.ckpt").is_file()


def test_test_and_validate_need_only_the_checkpoint_and_leave_the_config(digits_run, capsys):
    before = (digits_run / "config.yaml").read_bytes()
    for subcommand in ("validate", "test"):
        main([subcommand, f"--ckpt_path={digits_run / 'checkpoints' / 'best.ckpt'}", *QUIET])
        metric = f"{subcommand.removesuffix('idate')}/accuracy"
        result = json.loads((digits_run / f"{subcommand}.json").read_text())
        assert f"{metric}           {result['metrics'][metric]:.4f}\n" in capsys.readouterr().out
        assert result["checkpoint"].endswith("best.ckpt")
        main([subcommand, f"--ckpt_path={digits_run / 'checkpoints' / 'best.ckpt'}", *QUIET])
        assert len(list(digits_run.glob(f"{subcommand}*.json"))) == 1  # the same command, so in the same place
    assert (digits_run / "config.yaml").read_bytes() == before


def test_last_checkpoint_is_that_of_the_last_epoch(tmp_path, capsys):
    """Also where an earlier epoch was best; resumed for longer, the schedule grows with the training."""
    run = fit("digits_softmax", tmp_path, "--trainer.max_epochs=4", "--model.lr_scheduler.warmup=0")
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 80
    before = json.loads((run / "result.json").read_text())
    with warnings.catch_warnings(record=True) as caught:
        main(["fit", f"--resume={run}", *QUIET, "--trainer.max_epochs=8"])
    assert not [warning for warning in caught if "is not empty" in str(warning.message)]
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 160
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 8
    assert config["resume"] is None
    assert config["ckpt_path"] is None
    after = json.loads((run / "result.json").read_text())
    assert after["seconds"] > before["seconds"]  # both stretches
    assert f"fit --resume={run}" in after["command"]
    assert "--ckpt_path" not in after["command"]
    assert "nothing is left to train" in refusal(capsys, "fit", f"--resume={run}")
    message = refusal(capsys, "fit", f"--resume={run}", "--trainer.max_epochs=9", "--model.optimizer.lr=1")
    assert "--model.optimizer.lr with --resume: a run goes on with its own" in message


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
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == steps
    assert json.loads((run / "result.json").read_text())["steps"] == steps


def test_without_checkpoints_or_log(tmp_path):
    run = fit("digits_center", tmp_path, "--trainer.enable_checkpointing=false", "--trainer.logger=false")
    assert {path.name for path in run.iterdir()} == {"config.yaml", "result.json", "split.csv"}


def test_checkpoints_of_ones_own_stay_where_there_is_no_validation(tmp_path):
    callback = [
        "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
        f"--trainer.callbacks.dirpath={tmp_path}",
    ]
    flags = ["--trainer.callbacks.monitor=train/loss", "--trainer.callbacks.filename=mine", "--data.val_fraction=0"]
    fit("digits_softmax", tmp_path / "runs", *callback, *flags)
    assert (tmp_path / "mine.ckpt").is_file()


@pytest.mark.slow
def test_the_file_of_first_weights_is_needed_once(tmp_path):
    """What a network was started from is in the checkpoint; the saved config goes on naming it."""
    from metricloss_pl.backbones import TorchvisionBackbone

    weights = tmp_path / "weights.pth"
    torch.save(TorchvisionBackbone("resnet18", in_channels=1, small_stem=True).state_dict(), weights)
    backbone = [
        "--model.backbone=TorchvisionBackbone",
        "--model.backbone.name=resnet18",
        "--model.backbone.small_stem=true",
    ]
    flags = [
        *backbone,
        f"--model.backbone.weights={weights}",
        "--trainer.limit_train_batches=2",
        "--data.batch_size=8",
        "--data.samples_per_class=8",
        "--data.test_fraction=0.02",
        "--test_after_fit=false",
    ]
    run = fit("digits_softmax", tmp_path / "runs", *flags)
    weights.unlink()
    checkpoint = run / "checkpoints" / "best.ckpt"
    main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    main(["predict", f"--ckpt_path={checkpoint}", *QUIET])
    main(["fit", f"--resume={run}", "--trainer.max_epochs=2", *QUIET])
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["backbone"]["init_args"]["weights"] == str(weights)


def test_fast_dev_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["fit", f"--config={CONFIGS / 'digits_center.yaml'}", *QUIET, "--trainer.fast_dev_run=true"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_checkpoint_wins_over_model_flags(digits_run, tmp_path, capsys):
    """Lightning's way: what a checkpoint was trained with is what is tested."""
    checkpoint = digits_run / "checkpoints" / "best.ckpt"
    flags = ["--model.ce_weight=0", f"--ckpt_path={checkpoint}", f"--runs_dir={tmp_path}"]
    main(["test", f"--config={CONFIGS / 'digits_cosine.yaml'}", *flags, *QUIET])
    assert "test/cross_entropy" in capsys.readouterr().out


def test_training_on_everything_takes_the_last_checkpoint(tmp_path, capsys):
    run = fit("digits_softmax", tmp_path, "--data.val_fraction=0", "--trainer.max_epochs=2")
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"last.ckpt"}
    screen = capsys.readouterr().out
    assert "best val/accuracy" not in screen
    assert "test/accuracy" in screen
    assert str(run / "checkpoints" / "last.ckpt") in screen


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
def test_resumed_run_ends_as_the_uninterrupted_one(name, extra, tmp_path):
    flags = ["--trainer.max_epochs=3", "--checkpoint.save_top_k=-1", "--checkpoint.filename={epoch}", *extra]
    run = fit(name, tmp_path, *flags)
    broken = tmp_path / name / "version_7"
    shutil.copytree(run, broken)
    shutil.copy(run / "checkpoints" / "epoch=0.ckpt", broken / "checkpoints" / "last.ckpt")
    main(["fit", f"--resume={broken}", *QUIET])
    whole, resumed = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (run, broken))
    assert whole["global_step"] == resumed["global_step"] == 60
    for key, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][key]), key
    assert whole.get("center_optimizer_state") == resumed.get("center_optimizer_state")
    assert not (tmp_path / name / "version_8").exists()


@pytest.mark.slow
def test_views_of_the_test_images(digits_run, tmp_path):
    """Metrics and predictions over each digit and its mirror image, beside the two directions' mean by hand."""
    from metricloss_pl.backbones import TinyConvNet
    from metricloss_pl.data import DigitsDataModule
    from metricloss_pl.regimes import CosineClassifier

    fresh = shutil.ignore_patterns("test*.json")
    run = shutil.copytree(digits_run, tmp_path / "digits_cosine" / "version_0", ignore=fresh)
    checkpoint = run / "checkpoints" / "best.ckpt"
    accuracies, shares = [], []
    for flags, number in (([], ""), (["--data.tta=flip"], "_2")):
        main(["test", f"--ckpt_path={checkpoint}", *flags, *QUIET])
        accuracies.append(json.loads((run / f"test{number}.json").read_text())["metrics"]["test/accuracy"])
        main(["predict", f"--ckpt_path={checkpoint}", *flags, *QUIET])
        with (run / f"predictions_test{number}.csv").open(newline="") as lines:
            shares.append([(row["class"], float(row["probability"])) for row in csv.DictReader(lines)])
    data = DigitsDataModule()
    data.setup("test")
    model = CosineClassifier.load_from_checkpoint(checkpoint, backbone=TinyConvNet(in_channels=1)).eval()
    images, labels = data.samples("test").images, data.samples("test").labels
    with torch.no_grad():
        directions = [torch.nn.functional.normalize(model(view)) for view in (images, images.flip(-1))]
        for number, points in enumerate((directions[0], (directions[0] + directions[1]) / 2)):
            probabilities, classes = model.probabilities(model.class_scores(points)).max(1)
            assert accuracies[number] == pytest.approx((classes == labels).double().mean().item(), abs=1e-6)
            assert [name for name, _ in shares[number]] == [model.class_names[k] for k in classes]
            assert [share for _, share in shares[number]] == pytest.approx(probabilities.tolist(), abs=2e-6)
    assert shares[0] != shares[1]


@pytest.mark.slow
def test_mixing_from_a_file_and_with_the_checkpoint_alone(tmp_path):
    """A model block names it; the checkpoint tells of it, for testing in the run and predicting far from it."""
    block = yaml.safe_load((CONFIGS / "model" / "cosine_tiny.yaml").read_text())
    for number, mixing in enumerate(("CutMix", {"class_path": "MixUp", "init_args": {"alpha": 0.4}})):
        block["init_args"]["mixing"] = mixing
        (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(block))
        flags = [f"--model={tmp_path / 'mixed.yaml'}", "--trainer.limit_train_batches=3"]
        run = fit("digits_cosine", tmp_path, *flags, name="digits_cosine-mixed")
        saved = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["mixing"]
        assert (
            saved
            == [
                {"class_path": "metricloss_pl.mixing.CutMix", "init_args": {"alpha": 1.0, "probability": 1.0}},
                {"class_path": "metricloss_pl.mixing.MixUp", "init_args": {"alpha": 0.4, "probability": 1.0}},
            ][number]
        )
        main(["test", f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}", *QUIET])
        away = shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "model.ckpt")
        predictions = tmp_path / f"{number}.csv"
        flags = [f"--data.predict_dir={make_folder(tmp_path / 'new', images=2)}", "--data.tta=flip"]
        flags += [f"--runs_dir={tmp_path / 'others'}"]
        main(["predict", f"--ckpt_path={away}", f"--predictions.path={predictions}", *flags, *QUIET])
        assert len(predictions.read_text().splitlines()) == 1 + 4


def test_predict_takes_any_folder_with_the_checkpoint_alone(digits_run, tmp_path):
    """Names, size, channels and normalisation come from the checkpoint: a copy far from its run is enough."""
    checkpoint = shutil.copy(digits_run / "checkpoints" / "best.ckpt", tmp_path / "model.ckpt")
    from sklearn.datasets import load_digits

    digits = load_digits()
    (tmp_path / "new").mkdir()
    for i in range(30):
        image = Image.fromarray((digits.images[i] * 255 / 16).astype(np.uint8))
        image.convert("RGB" if i % 2 else "L").save(tmp_path / "new" / f"{i:02d}.png")
    flags = [f"--predictions.path={tmp_path / 'out.csv'}", "--predictions.embeddings=true"]
    main(["predict", f"--ckpt_path={checkpoint}", f"--data.predict_dir={tmp_path / 'new'}", *flags, *QUIET])
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [row["file"] for row in rows] == [f"{i:02d}.png" for i in range(30)]
    assert np.mean([int(row["class"]) == y for row, y in zip(rows, digits.target, strict=False)]) > 0.5  # chance is 0.1
    assert all(float(row["probability"]) >= float(row["runner_up_probability"]) for row in rows)
    assert np.load(tmp_path / "out.npz")["embeddings"].shape == (30, 10)


@pytest.mark.slow
def test_a_loss_of_pytorch_metric_learning(tmp_path, capsys):
    """Another than the config's, by flags; the checkpoint alone predicts; one line for mistakes."""
    cosface = ["--model.loss=CosFaceLoss", "--model.loss_args.margin=0.2"]
    checkpoint = shutil.copy(fit("digits_arcface", tmp_path, *cosface) / "checkpoints" / "best.ckpt", tmp_path)
    model = MetricLearningClassifier.load_from_checkpoint(checkpoint, weights_only=True)
    assert type(model.criterion.loss).__name__ == "CosFaceLoss"
    assert (model.criterion.loss.margin, model.criterion.loss.scale) == (0.2, 64)
    (tmp_path / "new").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "new" / "a.png")
    flags = [f"--data.predict_dir={tmp_path / 'new'}", f"--predictions.path={tmp_path / 'out.csv'}"]
    main(["predict", f"--ckpt_path={checkpoint}", *flags, *QUIET])
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2

    arcface = ["fit", f"--config={CONFIGS / 'digits_arcface.yaml'}", f"--runs_dir={tmp_path}"]
    line = refusal(capsys, *arcface, "--model.loss_args.margn=20")
    assert "ArcFaceLoss has no setting 'margn'; it has margin, scale" in line
    assert "margin of CosFaceLoss is 28.6" in refusal(capsys, *arcface, "--model.loss=CosFaceLoss")
    assert "ProxyAnchorLoss" in refusal(capsys, *arcface, "--model.loss=ProxyAnchorLoss")


def test_help_is_quick():
    """Not a timing: what --help must not import."""
    program = (
        "import sys\nfrom metricloss_pl.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = ('sklearn', 'tensorboard', 'pytorch_metric_learning', 'metricloss_pl.plots')\n"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stderr.splitlines()[-1] == "[]"
    assert "fit" in result.stdout


# ------------------------------------------------------------------------------------------------- what configs mean


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    """What --print_config says."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([*args, "--print_config"])
    assert caught.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


def test_a_block_given_as_a_file_replaces_the_block(capsys):
    """What the run file's own block says and the new one does not is gone; flags still override, blocks stay."""
    config = f"--config={CONFIGS / 'digits_center.yaml'}"
    block = f"--model={CONFIGS / 'model' / 'cosine_tiny.yaml'}"
    found = printed(capsys, "fit", config, block, "--model.ce_weight=0.5")
    assert found["model"]["class_path"] == "metricloss_pl.CosineClassifier"
    assert found["model"]["init_args"]["embedding_dim"] == "auto"
    assert found["model"]["init_args"]["ce_weight"] == 0.5
    assert found["data"]["class_path"].endswith("DigitsDataModule")
    assert found["trainer"]["max_epochs"] == 40
    assert found["test_after_fit"] is True


def test_a_class_given_in_a_blocks_place_keeps_what_it_knows(capsys):
    config = f"--config={CONFIGS / 'folder_cosine.yaml'}"
    found = printed(capsys, "fit", config, "--data=ImageListDataModule", "--data.csv=list.csv")["data"]
    assert found["class_path"] == "metricloss_pl.data.ImageListDataModule"
    assert found["init_args"]["image_size"] == 96
    assert found["init_args"]["images_dir"] is None
    assert "root" not in found["init_args"]


def test_a_run_is_named_after_config_and_blocks(tmp_path):
    run = tmp_path / "digits_softmax-center_tiny" / "version_0"
    fit("digits_softmax", tmp_path, f"--model={CONFIGS / 'model' / 'center_tiny.yaml'}", name=run.parent.name)
    assert json.loads((run / "result.json").read_text())["model"] == "metricloss_pl.CenterSoftmaxClassifier"


def test_a_run_file_far_from_its_blocks(tmp_path, capsys):
    shutil.copy(CONFIGS / "digits_cosine.yaml", tmp_path)
    message = refusal(capsys, "fit", f"--config={tmp_path / 'digits_cosine.yaml'}")
    assert f"{tmp_path / 'data' / 'digits.yaml'} can't be read" in message


# ------------------------------------------------------------------------------------------- as a downstream project


def test_regime_of_another_project_runs_by_class_path(tmp_path, monkeypatch):
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
    checkpoint = tmp_path / "runs" / "Shrunk" / "version_0" / "checkpoints" / "best.ckpt"
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["_class_path"] == "their_project.Shrunk"


# ---------------------------------------------------------------------------------------------------------- mistakes

DIGITS = ["fit", f"--config={CONFIGS / 'digits_center.yaml'}", "--trainer.callbacks=null"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model.init_args.center_wieght=1"],
            "CenterSoftmaxClassifier has no setting 'center_wieght': is it center_weight",
        ),
        (["--model.backbone.name=resnet18"], "TinyConvNet has no setting 'name'; it has in_channels, width, dropout"),
        (["--data.init_args.batchsize=1"], "DigitsDataModule has no setting 'batchsize': is it batch_size; it has "),
        (["--model=CosineClasifier"], "model: there is no class CosineClasifier: is it CosineClassifier; available: "),
        (["--model.backbone=NoSuchNet"], "NoSuchNet"),
        (["--data=NoSuchData"], "NoSuchData"),
        (["--trainer.max_epoch=3"], "error: trainer: Trainer has no setting 'max_epoch': is it max_epochs; it has "),
        (["--config=nowhere.yaml"], "--trainer.callbacks stands before --config, which would override it"),
        (["--checkpoint.filename=last"], "--checkpoint.filename is last: that is the newest state's name"),
        (["--timeout_minutes=.inf"], "--timeout_minutes is inf: it must be above 0 and finite"),
        (["--model.num_classes=7"], "error: model.num_classes comes from the data"),
        (["--trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches is 0: it must be at least 1"),
        (["--trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val is -1"),
        (["--model.optimizer=torch.optim.SparseAdam"], "optimizer SparseAdam can't train a network"),
        (["--model.optimizer=torch.optim.LBFGS"], "optimizer LBFGS can't train a network"),
        (["--model.center_weight=much"], "center_weight"),
        (["--model.center_weight=-1"], "center_weight is -1.0; it must be at least 0"),
        (
            ["--model.batch_mixing=CutMix"],
            "mixing is CutMix, which CenterSoftmaxClassifier can't take: an image mixed of two classes has no one",
        ),
        (
            ["--model.batch_mixing=CutMix", "--model.batch_mixing.alpha=0"],
            "alpha of CutMix is 0.0; it must be above 0 and finite",
        ),
        (["--model.batch_mixing=Mixup"], "there is no class Mixup: is it MixUp"),
        (
            ["--trainer.callbacks=[{class_path: GeometryMonitr}]"],
            "no class GeometryMonitr: is it GeometryMonitor; ",
        ),
        (["--model.lr_scheduler=CosinDecay"], "there is no class CosinDecay: is it CosineDecay"),
        (["--data.tta=mirror"], "tta is mirror; it must be one of 'flip', 'crops', 'crops_and_flips'"),
        (["--data.tta=[flip]"], "tta"),
        (["--data.in_channels=2"], "in_channels is 2; it must be one of 1, 3"),
        (["--model.center_optimizer=torch.optim.Adam"], "center_optimizer is Adam, which takes no sparse gradients"),
        (["--model.center_optimizer.momentum=0.9"], "has momentum 0.9: leave it out"),
        (["--model.optimizer.lr=-1"], "error: "),  # in the words of torch
        (["--data.batch_size=0"], "batch_size of DigitsDataModule is 0: at least 1 is needed"),
        (["--data.val_fraction=1.5"], "val_fraction of DigitsDataModule is 1.5"),
        (["--trainer.default_root_dir=elsewhere"], "--runs_dir says where a run lives"),
        ([f"--runs_dir={__file__}/runs"], f"--runs_dir {__file__}/runs can't hold a run"),
        (["--trainer.max_epochs=-1"], "a schedule over the whole training needs its end"),
        (["--ckpt_path=last"], "checkpoint last: there is no such file (to go on with a run: metricloss fit --resume"),
        (["--trainer.precision=8"], "trainer.precision is 8; it must be one of "),
        (["--model.embedding_dim=0"], "embedding_dim is 0; it must be at least 1"),
    ],
)
def test_mistakes_in_the_config(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, *DIGITS, *flags)
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_a_misspelt_metric_to_watch(tmp_path, capsys):
    flags = ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/acc", f"--runs_dir={tmp_path}"]
    assert "val/acc" in refusal(capsys, *DIGITS[:2], *flags)


def test_embedding_width_that_one_hot_targets_can_not_meet(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = f"--config={CONFIGS / 'digits_cosine.yaml'}"
    message = refusal(capsys, "fit", config, "--model.ce_weight=0", "--model.embedding_dim=2")
    assert "embedding_dim are 2 wide and the class embeddings 10" in message


def test_embeddings_of_another_width_than_the_centers(tmp_path, monkeypatch):
    (tmp_path / "wide.py").write_text(
        "from metricloss_pl.losses import CenterLoss\n"
        "from metricloss_pl.regimes import CenterSoftmaxClassifier\n"
        "class Wide(CenterSoftmaxClassifier):\n"
        "    def configure_model(self):\n"
        "        self.criterion = CenterLoss(self.num_classes, 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    flags = ["--model=wide.Wide", "--model.backbone=TinyConvNet", "--data=DigitsDataModule", "--runs_dir=runs"]
    with pytest.raises(ValueError, match=r"embeddings have shape \(\d+, \d+\) and centers \(10, 3\)"):  # their bug
        main(["fit", *flags, *QUIET])


def folder_flags(root: Path, runs: Path) -> list[str]:
    config = f"--config={CONFIGS / 'folder_cosine.yaml'}"
    return [
        "fit",
        config,
        "--trainer.callbacks=null",
        f"--data.root={root}",
        "--data.image_size=16",
        f"--runs_dir={runs}",
    ]


def test_mistakes_in_a_folder(tmp_path, capsys):
    assert "nowhere" in refusal(capsys, *folder_flags(tmp_path / "nowhere", tmp_path / "runs"))
    root = make_folder(tmp_path / "images", images=10)
    (root / "owl").mkdir()
    assert "owl" in refusal(capsys, *folder_flags(root, tmp_path / "runs"))
    (root / "owl").rmdir()
    (root / "cat" / "3.png").write_bytes(b"no image at all")
    assert "3.png" in refusal(capsys, *folder_flags(root, tmp_path / "runs"))
    root = make_folder(tmp_path / "parts", images=4, parts=("train", "test"))
    of_test = root / "test" / "dog" / "0.png"
    of_test.write_bytes(of_test.read_bytes()[:400])
    message = refusal(capsys, *folder_flags(root, tmp_path / "runs"))
    assert f"{of_test} cannot be read as an image" in message
    assert not (tmp_path / "runs").exists()  # no training has begun
    shutil.copy(root / "train" / "dog" / "1.png", of_test)
    with pytest.warns(UserWarning, match=r": 1 image stands in more than one part, .*: test/dog/0.png \(test\) = "):
        refusal(capsys, *folder_flags(root, tmp_path / "runs"), "--data.batch_size=1")


def test_batches_of_one_image(tmp_path, capsys):
    flags = [f"--config={CONFIGS / 'digits_cosine.yaml'}", "--trainer.callbacks=null", f"--runs_dir={tmp_path}"]
    message = refusal(capsys, "fit", *flags, "--data.batch_size=1")
    assert "one image in a training batch, and batch normalization needs two: raise data.batch_size, or give" in message


def test_mistakes_in_a_list(tmp_path, capsys):
    make_folder(tmp_path / "images", images=4)
    flags = ["--model=SoftmaxClassifier", "--model.backbone=TinyConvNet", "--data=ImageListDataModule"]
    flags = ["fit", *flags, f"--data.csv={tmp_path / 'list.csv'}", f"--data.images_dir={tmp_path / 'images'}"]
    rows = [f"{name}/{i}.png,{name}" for name in ("cat", "dog") for i in range(4)]
    for bad in ("cat/0.png,", ",cat"):
        (tmp_path / "list.csv").write_text("\n".join(["file,label", *rows[1:], bad]) + "\n")
        message = refusal(capsys, *flags, f"--runs_dir={tmp_path / 'runs'}")
        assert "list.csv" in message
        assert "line 9" in message


def arrays(**changes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    given = {}
    for part, count in (("train", 30), ("val", 9), ("test", 9)):
        given[f"{part}_images"] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        given[f"{part}_labels"] = (np.arange(count) % 3)[:, None]
    return {key: value for key, value in {**given, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": None}, "train_labels"),
        ({"train_labels": np.arange(29)}, "29"),
        ({"train_labels": np.linspace(0, 2, 30)}, "float64"),
        ({"train_labels": np.arange(30) % 3 - 1}, "-1"),
        ({"test_labels": np.full(9, 7)}, "7"),
        ({"train_images": np.zeros((30, 8), dtype=np.uint8)}, r"(30, 8)"),
        ({"train_images": np.where(np.arange(30)[:, None, None] == 4, np.nan, np.zeros((30, 8, 8)))}, "train"),
    ],
)
def test_mistakes_in_an_npz(changes, message, tmp_path, capsys):
    np.savez(tmp_path / "set.npz", **arrays(**changes))
    flags = ["--model=SoftmaxClassifier", "--model.backbone=TinyConvNet", "--data=NpzDataModule"]
    line = refusal(capsys, "fit", *flags, f"--data.path={tmp_path / 'set.npz'}", f"--runs_dir={tmp_path / 'runs'}")
    assert message in line
    assert "set.npz" in line or "nan" in line


def test_checkpoints_that_do_not_fit(digits_run, tmp_path, capsys):
    checkpoint = digits_run / "checkpoints" / "best.ckpt"
    softmax = ["test", f"--config={CONFIGS / 'digits_softmax.yaml'}", f"--runs_dir={tmp_path}"]
    line = refusal(capsys, *softmax, f"--ckpt_path={checkpoint}")
    assert "is a checkpoint of CosineClassifier and the config asks for SoftmaxClassifier" in line

    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    cosine = ["test", f"--config={CONFIGS / 'digits_cosine.yaml'}", f"--runs_dir={tmp_path}"]
    assert "torn.ckpt can't be read" in refusal(capsys, *cosine, f"--ckpt_path={torn}")
    torn.write_text("junk")
    assert "torn.ckpt can't be read" in refusal(capsys, *cosine, f"--ckpt_path={torn}")
    evil = torch.load(checkpoint, weights_only=True)
    evil["hyper_parameters"]["backbone"] = {"class_path": "this_must_not_be_imported.Net"}
    torch.save(evil, torn)
    line = refusal(capsys, "predict", f"--ckpt_path={torn}", f"--data.predict_dir={tmp_path}")
    assert "names this_must_not_be_imported.Net, which is not trusted" in line
    torch.save({"weights": torch.ones(2)}, torn)
    assert "holds no regime" in refusal(capsys, *cosine, f"--ckpt_path={torn}")

    np.savez(tmp_path / "set.npz", **arrays(classes=np.array(["a", "b", "c"])))
    other = ["--data=NpzDataModule", f"--data.path={tmp_path / 'set.npz'}", "--trainer.callbacks=null"]
    flags = ["test", "--model=CosineClassifier", "--model.backbone=TinyConvNet", *other, f"--runs_dir={tmp_path}"]
    assert "none of the classes '0', '1', '2', '3', '4' and 5 more: it has 'a', 'b', 'c'" in refusal(
        capsys, *flags, f"--ckpt_path={checkpoint}"
    )


def test_a_checkpoint_that_carries_code_is_not_run(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    torch.save({"state_dict": {}, "hyper_parameters": {"x": Evil()}}, tmp_path / "evil.ckpt")
    flags = ["test", f"--config={CONFIGS / 'digits_cosine.yaml'}", f"--ckpt_path={tmp_path / 'evil.ckpt'}"]
    assert "evil.ckpt can't be read" in refusal(capsys, *flags)
    assert not (tmp_path / "executed").exists()


class Annotated(CosineClassifier):
    """Settings of texts that look like import paths and are none."""

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Module,
        class_names: list[str] | None = None,
        stats: str = "stats.npz",
        note: str = "from: resnet50.a1_in1k",
    ) -> None:
        super().__init__(num_classes, backbone, class_names)
        self.stats, self.note = stats, note


def test_a_text_that_can_not_be_imported_is_no_danger(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("stats.npz").write_bytes(b"PK\x03\x04\xff")
    run = fit("digits_cosine", tmp_path, "--model=tests.test_cli.Annotated", name="digits_cosine-Annotated")
    checkpoint = run / "checkpoints" / "best.ckpt"
    model = Annotated.load_from_checkpoint(checkpoint, weights_only=True)
    assert (model.stats, model.note) == ("stats.npz", "from: resnet50.a1_in1k")
    Path("new").mkdir()
    Image.new("L", (8, 8)).save("new/a.png")
    main(["predict", f"--ckpt_path={checkpoint}", "--data.predict_dir=new", *QUIET])
    assert (run / "predictions.csv").is_file()

    monkeypatch.syspath_prepend(tmp_path)
    Path("stats.py").write_text("from pathlib import Path\nPath('executed').touch()\n")  # now it could be imported
    main(["predict", f"--ckpt_path={checkpoint}", "--data.predict_dir=new", *QUIET])
    assert not Path("executed").exists()


def test_resuming_with_nothing_to_resume(tmp_path, capsys):
    assert "nothing to resume" in refusal(capsys, "fit", f"--resume={tmp_path}")
    (tmp_path / "config.yaml").write_text("seed_everything: 0\n")
    assert "last.ckpt is missing" in refusal(capsys, "fit", f"--resume={tmp_path}")


def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(tmp_path, capsys):
    """The learning rate is good for one epoch, then 1e30 times as large."""
    config = f"--config={CONFIGS / 'digits_softmax.yaml'}"
    schedule = ["--model.lr_scheduler=torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size=1"]
    flags = [config, f"--runs_dir={tmp_path}", "--trainer.callbacks=null", *schedule, "--model.lr_scheduler.gamma=1e30"]
    line = refusal(capsys, "fit", *flags)
    assert re.search(r"train/loss is (nan|inf) at step \d+ of epoch 1 \(learning rate 5e\+28\)", line)
    run = tmp_path / "digits_softmax" / "version_0"
    for name in ("best", "last"):
        checkpoint = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 20
        assert all(torch.isfinite(tensor).all() for tensor in checkpoint["state_dict"].values())


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path, capsys):
    run = fit("digits_softmax", tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    line = refusal(capsys, "fit", f"--resume={run}", "--trainer.max_epochs=3", "--data.seed=3")
    assert "--data.seed with --resume: a run goes on with its own config" in line
    other = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    other["state_dict"]["head.bias"] = torch.zeros(3)
    torch.save(other, run / "checkpoints" / "last.ckpt")
    before[run / "checkpoints" / "last.ckpt"] = (run / "checkpoints" / "last.ckpt").read_bytes()
    line = refusal(capsys, "fit", f"--resume={run}", "--trainer.max_epochs=3")
    assert "the checkpoint has head.bias of shape (3,), and the network of shape (10,)" in line
    assert {path: path.read_bytes() for path in before} == before


def test_what_would_measure_on_training_images(digits_run, capsys):
    checkpoint = f"--ckpt_path={digits_run / 'checkpoints' / 'best.ckpt'}"
    line = refusal(capsys, "validate", checkpoint, "--data.seed=3")
    assert "--data.seed with --ckpt_path: another split would put training images among those of validate" in line


def test_flags_that_a_block_after_them_overrides(capsys):
    block = f"--trainer={CONFIGS / 'trainer' / 'small.yaml'}"
    line = refusal(capsys, "fit", f"-c{CONFIGS / 'digits_cosine.yaml'}", "--trainer.max_epochs=1", block)
    assert "--trainer.max_epochs stands before --trainer, which would override it: give --trainer first" in line


def test_a_limit_of_time(tmp_path):
    run = fit("digits_softmax", tmp_path, "--trainer.max_time=00:00:00:01", "--trainer.max_epochs=5000")
    assert json.loads((run / "result.json").read_text())["seconds"] < 30


@needs_signals
def test_sigterm_is_no_success(tmp_path):
    """As a scheduler ends jobs."""
    flags = [
        f"--config={CONFIGS / 'digits_softmax.yaml'}",
        f"--runs_dir={tmp_path}",
        "--trainer.callbacks=tests.interrupted_fit.Terminate",
    ]
    with pytest.raises(ProcessExitedException) as caught:
        run_groups((1, main, ["fit", *flags, *QUIET]))
    assert caught.value.exit_code == 143


def test_a_folder_of_one_class(tmp_path, capsys):
    root = make_folder(tmp_path / "images", classes=["cat"], images=10)
    assert "the data have 1 class: at least 2 are needed" in refusal(capsys, *folder_flags(root, tmp_path / "runs"))


def test_what_is_missing_is_named(tmp_path, capsys):
    assert "fit needs to know data and model: give --config with a run file" in refusal(capsys, "fit")
    assert "give --config with a run file" in refusal(capsys, "fit", "--data.root=my_images")
    assert "test needs a trained network: give --ckpt_path" in refusal(capsys, "test")
    assert f"checkpoint {tmp_path} is a folder" in refusal(capsys, "test", f"--ckpt_path={tmp_path}")
    assert "there is no such folder; give a run's" in refusal(capsys, "fit", f"--resume={tmp_path / 'nowhere'}")


def test_evaluating_needs_a_checkpoint(digits_run, tmp_path, capsys):
    config = f"--config={digits_run / 'config.yaml'}"
    for subcommand in ("validate", "test", "predict"):
        assert "needs a trained network: give --ckpt_path" in refusal(capsys, subcommand, config)
    away = shutil.copy(digits_run / "checkpoints" / "best.ckpt", tmp_path)
    assert "lies in no run's folder: give the --config" in refusal(capsys, "test", f"--ckpt_path={away}")
    assert "there is no such file" in refusal(capsys, "test", f"--ckpt_path={tmp_path / 'bset.ckpt'}")


@pytest.mark.slow
def test_status_and_screen_of_the_launcher():
    """As a shell sees it: one line on standard error, status 1."""
    launcher = Path(__file__).parent.parent / "cli.py"
    result = subprocess.run(
        [sys.executable, launcher, "fit", "--config=nowhere.yaml"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
