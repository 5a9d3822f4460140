"""A user's mistake is one line, a bug keeps its traceback."""

import argparse
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.multiprocessing.spawn import ProcessRaisedException

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.cli import main
from metricloss_pl.cli.errors import format_user_error, hint_of
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import SoftmaxClassifier
from tests.command_line import refusal_of

CONFIG = Path(__file__).parent.parent / "configs" / "digits_center.yaml"
SMALL = ["--data.samples_per_class=8", "--data.batch_size=16", "--trainer.max_epochs=1", "--test_after_fit=false"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("METRICLOSS_DEBUG", raising=False)


def fit(*flags: str) -> None:
    main(["fit", f"--config={CONFIG}", "--trainer.callbacks=null", *SMALL, *QUIET, *flags])


def refusal(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    return refusal_of(capsys, "fit", f"--config={CONFIG}", "--trainer.callbacks=null", *SMALL, *QUIET, *flags)


# -------------------------------------------------------------------------------------------------- bugs and mistakes


@pytest.mark.parametrize(
    "flags",
    [
        ["--model=tests.planted.RegimeAtConstruction", "--model.backbone=TinyConvNet"],
        ["--model=tests.planted.RegimeInStep", "--model.backbone=TinyConvNet"],
        ["--model.backbone=tests.planted.BackboneAtConstruction"],
        ["--data=tests.planted.DataAtConstruction"],
        ["--data=tests.planted.DataInRead"],
        ["--data=tests.planted.DataInFact"],
        ["--trainer.callbacks=tests.planted.CallbackAtConstruction"],
        ["--trainer.callbacks=[{class_path: tests.planted.CallbackAtConstruction}]"],
        ["--trainer.callbacks=tests.planted.CallbackWithValueError"],
        ["--trainer.callbacks=tests.planted.CallbackInHook"],
    ],
    ids=lambda flags: flags[0],
)
def test_a_bug_keeps_its_traceback(flags):
    """Also one that came up while a mistake was handled; a run that has not begun leaves no folder."""
    model = [] if flags[0].startswith("--model=") else ["--model=SoftmaxClassifier", "--model.backbone=TinyConvNet"]
    data = [] if flags[0].startswith("--data") else ["--data=DigitsDataModule"]
    with pytest.raises((AttributeError, ValueError), match="planted") as caught:
        main(["fit", *model, *data, *flags, "--trainer.max_epochs=1", *QUIET])
    assert format_user_error(caught.value) is None
    assert not list(Path().rglob("config.yaml")) or "InHook" in flags[0] or "InStep" in flags[0]


def test_a_users_class_that_lightning_refuses_is_a_bug():
    """Lightning refuses settings by the same exception."""
    model = ["--model=tests.planted.RegimeLogsTooEarly", "--model.backbone=TinyConvNet", "--data=DigitsDataModule"]
    with pytest.raises(MisconfigurationException):
        main(["fit", *model, *SMALL, *QUIET])


@pytest.mark.parametrize("code", ["1 / 0", "None.planted", "raise ValueError('planted')", "import no_such_package"])
def test_a_bug_in_a_module_that_is_imported_keeps_its_traceback(code):
    Path("with_planted_bug.py").write_text(f"{code}\n")
    with pytest.raises(argparse.ArgumentError):
        fit("--model.backbone=with_planted_bug.Net")


def test_a_regime_without_a_backbone_to_choose():
    own = ["--model=tests.planted.RegimeWithItsOwnBackbone", "--data=DigitsDataModule"]
    main(["fit", *own, *SMALL, *QUIET])
    [checkpoint] = Path().rglob("last.ckpt")
    main(["test", *own, f"--ckpt_path={checkpoint}", *QUIET])


@pytest.mark.parametrize(
    "flag",
    [
        "--trainer.callbacks=tests.planted.CallbackRefuses",
        "--trainer.callbacks=[{class_path: tests.planted.CallbackRefuses}]",
        "--trainer.callbacks+=tests.planted.CallbackRefuses",
    ],
)
def test_a_mistake_in_any_place_is_one_line(flag, capsys):
    """jsonargparse tries a single callback as a list first, and ties only that failure to its own."""
    assert refusal(capsys, flag) == "error: limit is 0; it must be at least 1"
    assert not list(Path().iterdir())


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


def test_only_causes_count():
    assert format_user_error(raised(ValueError("outer"), raised(UserError("a  mistake\n of two lines")))) == (
        "a mistake of two lines"
    )
    assert format_user_error(raised(UserError("outer"), UserError("inner"))) == "outer"
    nested = raised(argparse.ArgumentError(None, "outer"), argparse.ArgumentError(None, "inner"))
    assert format_user_error(raised(RuntimeError("outermost"), nested)) == "inner"
    assert format_user_error(ValueError("no mistake")) is None
    bug = KeyError("bug")
    bug.__context__ = raised(UserError("handled"))
    assert format_user_error(raised(bug)) is None


@pytest.mark.parametrize(("kind", "line"), [("metricloss_pl.errors.UserError", "a: b"), ("KeyError", None)])
def test_a_mistake_in_a_process_that_the_trainer_started_is_one_line(kind, line):
    text = f"\n\n-- Process 0 terminated with the following error:\nTraceback (most recent call last):\n{kind}: a: b\n"
    assert format_user_error(ProcessRaisedException(text, 0, 1)) == line


@pytest.mark.parametrize("place", [1, 99])
def test_debug_shows_the_traceback_of_a_mistake(place):
    arguments = ["fit", f"--config={CONFIG}", "--model.center_weight=-1", *QUIET]
    arguments.insert(place, "--debug")
    with pytest.raises(UserError, match="center_weight"):
        main(arguments)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["test", "--ckpt_path=nowhere.ckpt"],
        ["compare", "--seeds=x"],
        ["report", "nowhere"],
        ["hierarchy", "nowhere.txt"],
        ["configs", "copy", "nowhere.yaml"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_debug_is_for_every_subcommand(arguments, monkeypatch, capsys):
    assert refusal_of(capsys, *arguments)
    with pytest.raises((UserError, argparse.ArgumentError)):
        main([*arguments, "--debug"])
    monkeypatch.setenv("METRICLOSS_DEBUG", "1")
    with pytest.raises((UserError, argparse.ArgumentError)):
        main(arguments)
    with pytest.raises(SystemExit):
        main([arguments[0], "--help"])
    assert "--debug" in capsys.readouterr().out


def test_an_error_of_a_process_among_others(monkeypatch):
    """Only the type and the place count; without evidence of a death, a bug keeps its traceback."""

    def raised_in(module: str, error: Exception) -> Exception:
        names: dict = {"__name__": module}
        exec(compile("def fail(error): raise error", module, "exec"), names)
        try:
            names["fail"](error)
        except Exception as caught:
            return caught

    failed = raised_in("torch.distributed.distributed_c10d", RuntimeError("any words"))
    backward = raised_in("torch.autograd.graph", RuntimeError("any words"))
    of_torch = torch.distributed.DistError("any words")
    monkeypatch.setenv("WORLD_SIZE", "2")  # left over from another job
    assert hint_of(failed) is hint_of(backward) is None
    assert hint_of(of_torch)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for error in (failed, backward, of_torch):
        assert format_user_error(error) is None
        assert hint_of(error)
    assert hint_of(raised_in("torch.nn.functional", RuntimeError("shape"))) is None


def test_the_exit_status_does_not_follow_variables_left_over(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert "nowhere.yaml" in refusal_of(capsys, "fit", "--config=nowhere.yaml")


# ------------------------------------------------------------------------------------------------- names and settings


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.backbone=TinyConvNt"], ["model.backbone: ", "TinyConvNt: is it TinyConvNet", "LeNet"]),
        (["--model.backbone=metricloss_pl.backbones.Tiny"], ["backbone", "metricloss_pl.backbones.Tiny"]),
        (["--model.backbone=no_such.Net"], ["backbone", "no_such"]),
        (["--data.augment=[HorizontalFlp]"], ["data.augment: ", "HorizontalFlp: is it HorizontalFlip"]),
        (["--data.augment+=HorizontalFlp"], ["is it HorizontalFlip", "Cutout, "]),
        (["--data.augment=HorizontalFlip"], ["augment", "HorizontalFlip", "list"]),
        (["--data.augment=[{class_path: Cutout, init_args: {sise: 1}}]"], ["Cutout", "'sise'", "pixels, fill"]),
        (["--trainer.callbacks=EarlyStoping"], ["trainer.callbacks: ", "is it EarlyStopping", "EmbeddingPlot"]),
        (["--trainer.logger=WandbLoger"], ["trainer.logger: ", "is it WandbLogger"]),
        (["--model.optimizer=SDG"], ["model.optimizer: ", "is it SGD", "AdamW"]),
        (["--model.optimizer=Adam", "--model.optimizer.learning_rate=1"], ["Adam", "'learning_rate'", "lr, betas"]),
        (
            ["--model.backbone=tests.planted.BackboneOfAKind", "--model.backbone.kind=OTHER", "--trainer.max_epoch=3"],
            ["'max_epoch'", "is it max_epochs"],
        ),
        (["--model.center_rule=when"], ["model.center_rule is when", "'wen'"]),
    ],
)
def test_names_that_do_not_exist(flags, words, capsys):
    line = refusal(capsys, *flags)
    assert all(word in line for word in words), line
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("data", "backbone", "words"),
    [
        ("DigitsDataModule", "blocks/net.yaml", ["model.backbone in blocks/net.yaml: ", "'widht': is it width"]),
        ("DigitsDataModule", "blocks/gone.yaml", ["model.backbone: ", "blocks/gone.yaml"]),
        ("DigitsDataModule", "NoNet", ["model.backbone in run.yaml: ", "NoNet", "TinyConvNet"]),
        ("Foo", "TinyConvNet", ["data in run.yaml: ", "Foo", "CIFAR100DataModule"]),
    ],
)
def test_names_in_a_file(data, backbone, words, capsys):
    Path("blocks").mkdir()
    Path("blocks/net.yaml").write_text("class_path: TinyConvNet\ninit_args: {widht: 8}\n")
    model = f"class_path: SoftmaxClassifier\n  init_args: {{backbone: {backbone}}}"
    Path("run.yaml").write_text(f"data: {data}\nmodel:\n  {model}\n")
    line = refusal_of(capsys, "fit", "--config=run.yaml")
    assert all(word in line for word in words), line


def test_a_config_in_another_encoding(capsys):
    for file in ("run.yaml", "block.yaml"):
        Path(file).write_bytes(b"# K\xe4se\nclass_path: DigitsDataModule\n")
    Path("whole.yaml").write_text("data: block.yaml\nmodel: SoftmaxClassifier\n")
    assert "run.yaml can't be read" in refusal_of(capsys, "fit", "--config=run.yaml")
    assert "block.yaml can't be read" in refusal_of(capsys, "fit", "--config=whole.yaml")


# ----------------------------------------------------------------------------------------------- settings of Lightning


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--trainer.profiler=nonexistent"], "trainer: "),
        (["--trainer.strategy=nonexistent"], "trainer: "),
        (["--trainer.accelerator=abacus"], "trainer: "),
        (["--trainer.precision=7"], "trainer.precision is 7"),
        (["--trainer.overfit_batches=-2"], "overfit_batches"),
        (["--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: x, mode: x}}]"], "EarlyStopping: "),
        (["--trainer.callbacks=LearningRateFinder", "--trainer.callbacks.mode=x"], "LearningRateFinder: "),
        (["--trainer.max_time=5min"], "trainer: "),
        (["--checkpoint.mode=x"], "BestCheckpoint: "),
        (["--model.optimizer.lr=-1"], "SGD: "),
        (["--model.lr_scheduler=CosineDecay", "--model.lr_scheduler.warmup=2"], "warmup is 2.0"),
        (["--model.lr_scheduler=torch.optim.lr_scheduler.OneCycleLR", "--model.lr_scheduler.max_lr=1"], "OneCycleLR: "),
    ],
)
def test_settings_that_a_library_refuses(flags, part, capsys):
    assert part in refusal(capsys, *flags)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/acc"], "val/acc"),
        (["--checkpoint.monitor=val/acc"], "val/acc"),
        (["--trainer.limit_train_batches=0.001"], "limit_train_batches"),
        (
            ["--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau", "--model.lr_scheduler.monitor=val/x"],
            "val/x",
        ),
    ],
)
def test_settings_that_a_run_refuses_once_it_has_begun(flags, part, capsys):
    assert part in refusal(capsys, *flags)


@pytest.mark.parametrize(
    ("package", "flag"),
    [
        ("wandb", "--trainer.logger=WandbLogger"),
        ("psutil", "--trainer.callbacks=DeviceStatsMonitor"),
        ("comet_ml", "--trainer.logger=CometLogger"),
    ],
)
def test_a_package_that_is_not_installed(package, flag, capsys):
    try:
        __import__(package)
    except ModuleNotFoundError:
        assert "not installed" in refusal(capsys, flag)
        assert not list(Path().iterdir())
    else:
        pytest.skip("it is installed")


def test_a_timer_and_a_batch_size_finder_of_the_users_own():
    timer = "{class_path: Timer, init_args: {duration: '00:01:00:00'}}"
    fit(f"--trainer.callbacks=[{timer}, {{class_path: BatchSizeFinder, init_args: {{max_trials: 2, init_val: 8}}}}]")
    [run] = Path("runs/digits_center").iterdir()
    main(["fit", f"--resume={run}", "--trainer.max_epochs=2", f"--trainer.callbacks=[{timer}]", *QUIET])
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1


def test_a_full_disk_in_the_midst_of_a_run(capsys):
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        line = refusal(capsys, "--trainer.callbacks=tests.planted.MuchToWrite", "--trainer.logger=false")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "checkpoints/" in line
    assert "can't be written whole" in line


# ---------------------------------------------------------------------------------------------------- learning rates


@pytest.mark.parametrize("config", ["digits_softmax", "digits_standalone"])
def test_the_learning_rate_that_is_found_is_used(config, monkeypatch):
    """In the optimizer and in the schedule's peak; a rate of the centers' own stays."""
    seen = {}

    def on_train_batch_end(self, *args):
        if self.trainer.global_step == 2:
            seen["rates"] = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
            seen["peaks"] = self.trainer.lr_scheduler_configs[0].scheduler.base_lrs
            seen["found"] = self.learning_rate
            seen["center_lr"] = getattr(self, "center_lr", None)

    monkeypatch.setattr("metricloss_pl.regimes.base.Classifier.on_train_batch_end", on_train_batch_end)
    finder = ["--trainer.callbacks=LearningRateFinder", "--trainer.callbacks.num_training_steps=30"]
    bounds = ["--trainer.callbacks.min_lr=0.001", "--trainer.callbacks.max_lr=0.002"]
    schedule = ["--model.lr_scheduler=torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size=5"]
    path = CONFIG.with_name(f"{config}.yaml")
    main(["fit", f"--config={path}", *finder, *bounds, *schedule, *SMALL, "--data.samples_per_class=40", *QUIET])
    assert 0.001 <= seen["found"] <= 0.002
    assert seen["rates"][0] == seen["peaks"][0] == pytest.approx(seen["found"])
    if config == "digits_standalone":
        assert seen["rates"][1:] == seen["peaks"][1:] == [seen["center_lr"]]


def test_weights_that_do_not_fit():
    model = SoftmaxClassifier(3, TinyConvNet())
    state = model.state_dict()
    for changed, words in (
        ({"head.bias": torch.zeros(2)}, r"head\.bias .*\(2,\).*\(3,\)"),
        ({"other": torch.zeros(2)}, "other"),
    ):
        with pytest.raises(UserError, match=words):
            model.load_state_dict({**state, **changed})
    with pytest.raises(UserError, match=r"head\.bias"):
        model.load_state_dict({name: tensor for name, tensor in state.items() if name != "head.bias"})
    keys = model.load_state_dict({**state, "other": torch.zeros(2)}, strict=False)
    assert keys.unexpected_keys == ["other"]
