"""A user's mistake is one line, a bug keeps its traceback."""

import argparse
import builtins
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, TensorDataset

from metricloss_pl.cli import main
from metricloss_pl.cli.errors import format_user_error, hint_of
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import SoftmaxClassifier, StandaloneCenterClassifier

CONFIG = Path(__file__).parent.parent / "configs" / "digits_center.yaml"
SMALL = ["--data.samples_per_class=8", "--data.batch_size=16", "--trainer.max_epochs=1", "--test_after_fit=false"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METRICLOSS_DEBUG", raising=False)


def fit(*flags: str) -> None:
    main(["fit", f"--config={CONFIG}", "--trainer.callbacks=null", *SMALL, *QUIET, *flags])


def refusal(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        fit(*flags)
    assert caught.value.code == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    [line] = [line for line in errors.splitlines() if line.startswith("error: ")]
    return line


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
        ["--trainer.callbacks=tests.planted.CallbackInHook"],
    ],
    ids=lambda flags: flags[0],
)
def test_a_bug_keeps_its_traceback(flags):
    """Also one that came up while a mistake was handled; a run that has not begun leaves no folder."""
    model = [] if flags[0].startswith("--model=") else ["--model=SoftmaxClassifier", "--model.backbone=TinyConvNet"]
    data = [] if flags[0].startswith("--data") else ["--data=DigitsDataModule"]
    with pytest.raises((AttributeError, ValueError)) as caught:
        main(["fit", *model, *data, *flags, "--trainer.max_epochs=1", *QUIET])
    causes = [caught.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert isinstance(causes[-1], AttributeError)
    assert "planted" in str(causes[-1])
    assert not any(isinstance(cause, UserError) for cause in causes)
    assert not list(Path().rglob("config.yaml")) or "InHook" in flags[0] or "InStep" in flags[0]


def test_what_lightning_refuses_of_a_users_class_is_a_bug():
    """Such as a value that is logged where none can be; its settings are refused by the same exception."""
    model = ["--model=tests.planted.RegimeLogsTooEarly", "--model.backbone=TinyConvNet", "--data=DigitsDataModule"]
    with pytest.raises(MisconfigurationException):
        main(["fit", *model, *SMALL, *QUIET])


@pytest.mark.parametrize("code", ["1 / 0", "None + 1", "raise ValueError('planted')", "import no_such_package"])
def test_a_bug_in_a_module_that_is_imported_keeps_its_traceback(code, monkeypatch):
    Path("with_planted_bug.py").write_text(f"{code}\n")
    monkeypatch.syspath_prepend(".")
    with pytest.raises(argparse.ArgumentError):
        fit("--model.backbone=with_planted_bug.Net")


def test_a_regime_without_a_backbone_to_choose():
    main(["fit", "--model=tests.planted.RegimeWithItsOwnBackbone", "--data=DigitsDataModule", *SMALL, *QUIET])
    [checkpoint] = Path().rglob("last.ckpt")
    main(
        [
            "test",
            "--model=tests.planted.RegimeWithItsOwnBackbone",
            "--data=DigitsDataModule",
            f"--ckpt_path={checkpoint}",
            *QUIET,
        ]
    )


def test_the_exit_status_does_not_follow_variables_left_over(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config=nowhere.yaml"])
    assert caught.value.code == 1


def test_a_value_error_of_a_users_own_class_is_a_bug():
    with pytest.raises(ValueError, match="planted"):
        fit("--trainer.callbacks=tests.planted.CallbackWithValueError")
    assert not list(Path().iterdir())


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


def test_only_causes_count():
    def raised(error: Exception, cause: Exception | None = None) -> Exception:
        try:
            raise error from cause
        except Exception as caught:
            return caught

    assert format_user_error(raised(ValueError("outer"), raised(UserError("a  mistake\n of two lines")))) == (
        "a mistake of two lines"
    )
    assert format_user_error(raised(UserError("outer"), UserError("inner"))) == "outer"
    assert format_user_error(raised(RuntimeError("outer"), argparse.ArgumentError(None, "parser"))) == "parser"
    assert format_user_error(ValueError("no mistake")) is None
    try:
        try:
            raise UserError("handled")
        except UserError:
            raise KeyError("bug")  # noqa: B904
    except KeyError as error:
        bug = error
    assert format_user_error(bug) is None


def test_a_bug_in_a_module_that_the_parser_imports():
    Path("with_bug.py").write_text("None.planted\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(".")
        with pytest.raises(argparse.ArgumentError):
            fit("--model.backbone=with_bug.Net")


@pytest.mark.parametrize("place", [1, 2, 99])
def test_debug_shows_the_traceback_of_a_mistake(place):
    arguments = ["fit", f"--config={CONFIG}", "--model.center_weight=-1", *QUIET]
    arguments.insert(place, "--debug")
    with pytest.raises(UserError, match="center_weight is"):
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
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises((UserError, argparse.ArgumentError)):
        main([*arguments, "--debug"])
    monkeypatch.setenv("METRICLOSS_DEBUG", "1")
    with pytest.raises((UserError, argparse.ArgumentError)):
        main(arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["compare", "--help"], ["report", "--help"]])
def test_help_tells_of_debug(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "--debug" in capsys.readouterr().out


def test_an_error_of_a_process_among_others(monkeypatch):
    """By type and place, what gloo says differs; without evidence of a death, a bug keeps its traceback."""

    def raised_in(module: str, error: Exception) -> Exception:
        code = compile("def fail(error): raise error", module, "exec")
        names: dict = {"__name__": module}
        exec(code, names)
        try:
            names["fail"](error)
        except Exception as caught:
            return caught

    failed = raised_in("torch.distributed.distributed_c10d", RuntimeError("any words"))
    backward = raised_in("torch.autograd.graph", RuntimeError("any words"))
    of_torch = torch.distributed.DistError("any words")
    monkeypatch.setenv("WORLD_SIZE", "2")  # left over from another job
    for error in (failed, backward):
        assert format_user_error(error) is hint_of(error) is None
    assert hint_of(of_torch).startswith("hint: if another process has died")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    for error in (failed, backward, of_torch):
        assert format_user_error(error) is None
        assert hint_of(error).startswith("hint: if another process has died")
    assert hint_of(raised_in("torch.nn.functional", RuntimeError("shape"))) is None


# ------------------------------------------------------------------------------------------------- names and settings


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--model.backbone=TinyConvNt"], ["model.backbone: ", "TinyConvNt: is it TinyConvNet", "LeNet"]),
        (["--model.backbone=metricloss_pl.backbones.Tiny"], ["backbone", "metricloss_pl.backbones.Tiny"]),
        (["--model.backbone=no_such.Net"], ["backbone", "no_such"]),
        (["--data.augment=[HorizontalFlp]"], ["data.augment: ", "HorizontalFlp: is it HorizontalFlip"]),
        (["--data.augment+=HorizontalFlp"], ["is it HorizontalFlip", "Cutout, "]),
        (["--data.augment=HorizontalFlip"], ["augment", "HorizontalFlip", "list"]),
        (["--data.augment=[{class_path: Cutout, init_args: {sise: 1}}]"], ["Cutout", "'sise'", "pixels, fill"]),
        (["--trainer.callbacks=EarlyStoping"], ["trainer.callbacks: there is no class EarlyStoping", "EmbeddingPlot"]),
        (["--trainer.logger=WandbLoger"], ["trainer.logger: there is no class WandbLoger: is it WandbLogger"]),
        (["--model.optimizer=SDG"], ["model.optimizer: there is no class SDG: is it SGD; available: ", "AdamW"]),
        (
            ["--model.optimizer=Adam", "--model.optimizer.learning_rate=1"],
            ["Adam has no setting 'learning_rate'", "lr, betas"],
        ),
        (
            ["--model.backbone=tests.planted.BackboneOfAKind", "--model.backbone.kind=OTHER", "--trainer.max_epoch=3"],
            ["max_epoch"],
        ),
        (["--model.center_rule=when"], ["model.center_rule is when; it must be one of 'wen', "]),
    ],
)
def test_names_that_do_not_exist(flags, parts, capsys):
    line = refusal(capsys, *flags)
    assert all(part in line for part in parts), line
    assert "usage" not in line
    assert not list(Path().iterdir())


def test_names_in_a_file(capsys):
    Path("blocks").mkdir()
    Path("blocks/net.yaml").write_text("class_path: TinyConvNet\ninit_args: {widht: 8}\n")
    model = "class_path: SoftmaxClassifier\n  init_args: {backbone: %s}"
    Path("run.yaml").write_text(f"data: DigitsDataModule\nmodel:\n  {model % 'blocks/net.yaml'}\n")
    for name, part in (
        (
            "blocks/net.yaml",
            "model.backbone in blocks/net.yaml: TinyConvNet has no setting 'widht': is it width; it has ",
        ),
        ("NoNet", "model.backbone in run.yaml: there is no class NoNet; available: "),
    ):
        Path("run.yaml").write_text(f"data: DigitsDataModule\nmodel:\n  {model % name}\n")
        with pytest.raises(SystemExit):
            main(["fit", "--config=run.yaml"])
        assert part in capsys.readouterr().err
    Path("run.yaml").write_text("data: Foo\nmodel: SoftmaxClassifier\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config=run.yaml"])
    assert "error: data in run.yaml: there is no class Foo; available: CIFAR100DataModule, " in capsys.readouterr().err


def test_a_config_in_another_encoding(capsys):
    Path("blocks").mkdir()
    for file in ("run.yaml", "blocks/digits.yaml"):
        Path(file).write_bytes(b"# K\xe4se\nclass_path: DigitsDataModule\n")
    Path("whole.yaml").write_text("data: blocks/digits.yaml\nmodel: SoftmaxClassifier\n")
    for config in ("run", "whole"):
        with pytest.raises(SystemExit) as caught:
            main(["fit", f"--config={config}.yaml"])
        assert caught.value.code == 1
        [line] = capsys.readouterr().err.splitlines()
        assert "can't be read" in line
        assert ("run.yaml" if config == "run" else "blocks/digits.yaml") in line


# ----------------------------------------------------------------------------------------------- settings of Lightning


@pytest.fixture
def without(monkeypatch):
    """Hide packages, as if they were not installed."""

    def hide(*names: str) -> None:
        real = builtins.__import__

        def fail(name, *args, **kwargs):
            if name.partition(".")[0] in names:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", fail)

    return hide


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--trainer.profiler=nonexistent"], "trainer: "),
        (["--trainer.strategy=nonexistent"], "trainer: "),
        (["--trainer.accelerator=abacus"], "trainer: "),
        (["--trainer.precision=7"], "trainer.precision is 7; it must be one of "),
        (["--trainer.overfit_batches=-2"], "overfit_batches"),
        (
            ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=x", "--trainer.callbacks.mode=x"],
            "EarlyStop",
        ),
        (["--trainer.callbacks=LearningRateFinder", "--trainer.callbacks.mode=x"], "LearningRateFinder: "),
        (["--trainer.max_time=5min"], "trainer: "),
        (["--checkpoint.mode=x"], "BestCheckpoint: "),
        (["--model.optimizer.lr=-1"], "SGD: "),
        (["--model.lr_scheduler=CosineDecay", "--model.lr_scheduler.warmup=2"], "warmup is 2.0; it must be a share"),
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


def test_packages_that_are_not_installed(capsys):
    """None of these is among the requirements; a machine that has one can't show what happens without."""
    for package, flag in (
        ("wandb", "--trainer.logger=WandbLogger"),
        ("psutil", "--trainer.callbacks=DeviceStatsMonitor"),
        ("comet_ml", "--trainer.logger=CometLogger"),
    ):
        try:
            __import__(package)
        except ModuleNotFoundError:
            assert "a package is not installed" in refusal(capsys, flag)
            assert not list(Path().iterdir())


def test_tensorboard_is_not_installed(monkeypatch, capsys):
    import lightning.fabric.loggers.tensorboard as fabric
    import lightning.pytorch.loggers.tensorboard as tensorboard

    def missing(*args, **kwargs):
        return False

    for module in (fabric, tensorboard):
        for name in [name for name in vars(module) if "TENSORBOARD" in name]:
            monkeypatch.setattr(module, name, False)
    assert "a package is not installed" in refusal(capsys)


def test_a_timer_of_the_users_own():
    fit("--trainer.callbacks=Timer", "--trainer.callbacks.duration=00:01:00:00")
    [run] = Path("runs/digits_center").iterdir()
    main(["fit", f"--resume={run}", "--trainer.max_epochs=2", *QUIET])
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1


def test_a_batch_size_finder():
    fit("--trainer.callbacks=BatchSizeFinder", "--trainer.callbacks.max_trials=2", "--trainer.callbacks.init_val=8")


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
    path = CONFIG.with_name(f"{config}.yaml")
    schedule = ["--model.lr_scheduler=torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size=5"]
    main(["fit", f"--config={path}", *finder, *bounds, *schedule, *SMALL, "--data.samples_per_class=40", *QUIET])
    assert 0.001 <= seen["found"] <= 0.002
    assert seen["rates"][0] == seen["peaks"][0] == pytest.approx(seen["found"])
    if config == "digits_standalone":
        assert seen["rates"][1:] == seen["peaks"][1:] == [seen["center_lr"]]


def test_the_learning_rate_of_a_regime():
    from functools import partial

    from metricloss_pl.backbones import TinyConvNet

    model = StandaloneCenterClassifier(3, TinyConvNet(), optimizer=partial(torch.optim.Adam, lr=0.25), center_lr=0.5)
    model.learning_rate = 0.125
    run = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    run.fit(model, DataLoader(TensorDataset(torch.rand(6, 1, 8, 8), torch.arange(6) % 3), batch_size=6))
    assert sorted({group["lr"] for group in run.optimizers[0].param_groups}) == [0.125, 0.5]


# -------------------------------------------------------------------------------------------------------- state dicts


def test_weights_that_do_not_fit():
    from metricloss_pl.backbones import TinyConvNet

    model = SoftmaxClassifier(3, TinyConvNet())
    state = model.state_dict()
    with pytest.raises(UserError, match=r"has head.bias of shape \(2,\), and the network of shape \(3,\)"):
        model.load_state_dict({**state, "head.bias": torch.zeros(2)})
    with pytest.raises(UserError, match=r"has no tensor head\.bias, which the network has"):
        model.load_state_dict({name: tensor for name, tensor in state.items() if name != "head.bias"})
    with pytest.raises(UserError, match="has a tensor other, which the network lacks"):
        model.load_state_dict({**state, "other": torch.zeros(2)})
    keys = model.load_state_dict({**state, "other": torch.zeros(2)}, strict=False)
    assert keys.unexpected_keys == ["other"]
