"""Settings in a checkpoint run no code: neither from the command line nor from Python."""

import copy
import functools
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.cli import main
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import CosineClassifier, SoftmaxClassifier
from tests.command_line import refusal

CONFIG = Path(__file__).parent.parent / "configs" / "digits_cosine.yaml"
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.logger=false"]
SHORT = ["--data.samples_per_class=8", "--trainer.max_epochs=1", "--test_after_fit=false", *QUIET]
TOUCH = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "executed"]}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    main(["fit", f"--config={CONFIG}", f"--runs_dir={folder}", "--trainer.callbacks=null", *SHORT])
    return folder / "digits_cosine" / "version_0"


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "os.system"},
        {"optimizer": "metricloss_pl.files.os.system"},
        {"optimizer": TOUCH},
        {"optimizer": "settings.yaml"},
        {"backbone": TOUCH},
        {"backbone": {"class_path": "this_must_not_be_imported.Net"}},
        {"backbone": {"class_path": "torch.utils.collect_env.run", "init_args": {"command": "touch executed"}}},
        {"lr_scheduler": {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": TOUCH}}},
        {"batch_mixing": TOUCH},
    ],
    ids=str,
)
def test_settings_that_name_code(settings, run, tmp_path, monkeypatch, capsys):
    """Settings with and without a config, in and outside a run, resumed, and loaded in Python."""
    monkeypatch.chdir(tmp_path)
    evil = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    evil["hyper_parameters"] |= settings
    copied = shutil.copytree(run, tmp_path / "runs" / "digits_cosine" / "version_0")
    torch.save(evil, copied / "checkpoints" / "last.ckpt")
    torch.save(evil, "evil.ckpt")
    Path("settings.yaml").write_text(yaml.safe_dump(TOUCH))
    Path("new").mkdir()
    Image.new("L", (8, 8)).save("new/a.png")
    for args in (
        ["predict", "--ckpt_path=evil.ckpt", "--data.predict_dir=new"],
        ["test", f"--ckpt_path={copied / 'checkpoints' / 'last.ckpt'}"],
        ["test", f"--config={CONFIG}", "--ckpt_path=evil.ckpt"],
        ["fit", f"--resume={copied}", "--trainer.max_epochs=2"],
    ):
        line = refusal(capsys, *args)
        assert "is not trusted" in line or "optimizer" in line  # where it is no class at all, the parser says so
    with pytest.raises(UserError):
        CosineClassifier.load_from_checkpoint("evil.ckpt", weights_only=True)
    assert not Path("executed").exists()


class Loose(SoftmaxClassifier):
    """Regime with a setting of any type, for which jsonargparse keeps a name that it refuses as plain data."""

    def __init__(
        self, num_classes: int, backbone: nn.Module, class_names: list[str] | None = None, extra: Any = None
    ) -> None:
        super().__init__(num_classes, backbone, class_names)
        self.extra = extra


def test_a_setting_of_any_type_builds_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = ["--model=tests.test_untrusted_checkpoints.Loose", "--model.backbone=TinyConvNet"]
    main(["fit", *model, "--data=DigitsDataModule", "--runs_dir=runs", *SHORT])
    [checkpoint] = Path("runs").rglob("last.ckpt")
    evil = torch.load(checkpoint, weights_only=True)
    evil["hyper_parameters"]["extra"] = copy.deepcopy(TOUCH)
    torch.save(evil, checkpoint)
    with suppress(SystemExit):
        main(["test", f"--ckpt_path={checkpoint}", *QUIET])
    with suppress(UserError):
        assert Loose.load_from_checkpoint(checkpoint, weights_only=True).extra is not None
    assert not list(Path().rglob("executed"))
    # A bug is not blamed on the name that was refused meanwhile.
    monkeypatch.setattr(TinyConvNet, "__init__", functools.wraps(TinyConvNet.__init__)(fail_to_build))
    with pytest.raises(ValueError, match="planted"):
        Loose.load_from_checkpoint(checkpoint, weights_only=True)


def fail_to_build(self, *args: Any, **kwargs: Any) -> None:
    raise ValueError("planted")


@pytest.mark.parametrize("setting", ["callbacks", "plugins"])
def test_the_config_beside_a_checkpoint_counts_as_the_checkpoints(setting, run, tmp_path, monkeypatch, capsys):
    """Callbacks are left out and all else is refused; the user's own --config is trusted."""
    monkeypatch.chdir(tmp_path)
    copied = shutil.copytree(run, tmp_path / "runs" / "digits_cosine" / "version_0")
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["trainer"][setting] = [{"class_path": f"their_{setting}.Theirs"}]
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    executed = tmp_path / "executed"
    base = {"callbacks": "callbacks import Callback", "plugins": "plugins.io import TorchCheckpointIO"}[setting]
    Path(f"their_{setting}.py").write_text(
        f"open({str(executed)!r}, 'w')\nfrom lightning.pytorch.{base} as Base\nclass Theirs(Base):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = f"--ckpt_path={copied / 'checkpoints' / 'best.ckpt'}"
    if setting == "callbacks":
        with pytest.warns(UserWarning, match=r"their_callbacks\.Theirs.* --config"):
            main(["test", checkpoint, *QUIET])
    else:
        assert f"their_{setting}.Theirs" in refusal(capsys, "test", checkpoint)
    assert not executed.exists()
    main(["test", f"--config={copied / 'config.yaml'}", checkpoint, *QUIET])
    assert executed.exists()


@pytest.mark.slow
def test_classes_of_a_users_own(tmp_path):
    """In a process that has not imported them: named by the config, and in the command that `fit` ends with."""
    (tmp_path / "their_project.py").write_text(
        "from torch import nn\n"
        "from metricloss_pl.regimes import SoftmaxClassifier\n"
        "class Mine(SoftmaxClassifier):\n"
        "    pass\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, in_channels: int = 3):\n"
        "        super().__init__()\n"
        "        self.num_features = 4\n"
        "        self.layer = nn.Linear(64 * in_channels, 4)\n"
        "    def forward(self, images):\n"
        "        return self.layer(images.flatten(1))\n"
    )
    program = (
        "import shlex, sys\nfrom metricloss_pl.cli import main\n"
        "for line in sys.argv[1:]:\n    main(shlex.split(line))\n"
    )

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}

    def start(*lines: str) -> str:
        command = [sys.executable, "-c", program, *lines]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    quiet = " ".join(SHORT)
    model = "--model=their_project.Mine --model.backbone=their_project.Net --data=DigitsDataModule"
    screen = start(f"fit {model} {quiet}")
    [command] = [line.split("metricloss ")[1] for line in screen.splitlines() if line.startswith("test ")]
    assert "--config" in command
    start(f"{command} {' '.join(QUIET)}", f"fit --resume=runs/Mine/version_0 --trainer.max_epochs=2 {' '.join(QUIET)}")


def test_a_bug_of_a_constructor_is_not_blamed_on_the_checkpoint(run, monkeypatch):
    def recurse(self, *args: Any, **kwargs: Any) -> None:
        recurse(self)

    def fail(self, *args: Any, **kwargs: Any) -> None:
        try:
            raise ValueError("handled")
        except ValueError:
            raise TypeError("planted")  # noqa: B904

    checkpoint = run / "checkpoints" / "last.ckpt"
    for bug, kind in ((recurse, RecursionError), (fail, TypeError)):
        monkeypatch.setattr(TinyConvNet, "__init__", functools.wraps(TinyConvNet.__init__)(bug))
        with pytest.raises(kind):
            CosineClassifier.load_from_checkpoint(checkpoint, weights_only=True)
        monkeypatch.undo()
