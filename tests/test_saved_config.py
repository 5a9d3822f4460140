"""The config that a run saves is read back, whatever objects the classes in it have as defaults."""

from __future__ import annotations

import datetime
import enum
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.cli import main

CONFIG = Path(__file__).parents[1] / "configs" / "digits_cosine.yaml"
QUIET = ("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.limit_train_batches=2")


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Opaque:
    pass


def double(value: int) -> int:
    return 2 * value


OPAQUE, LAMBDA, PARTIAL = Opaque(), lambda value: value, functools.partial(double, 3)
CPU, ZEROS = torch.device("cpu"), torch.zeros(3)
built: list[dict[str, Any]] = []


class Defaults(Callback):
    """With defaults that text can hold and others that it can't."""

    def __init__(
        self,
        wait: datetime.timedelta = datetime.timedelta(seconds=3),
        color: Color = Color.RED,
        named: Callable = double,
        unnamed: Callable = LAMBDA,
        partial: Callable = PARTIAL,
        device: torch.device | str = CPU,
        tensor: torch.Tensor = ZEROS,
        anything: Any = OPAQUE,
        pair: tuple[int, Any] = (1, OPAQUE),
    ) -> None:
        built.append({name: value for name, value in locals().items() if name != "self"})


class Network(TinyConvNet):
    """A checkpoint holds its settings, too."""

    def __init__(self, in_channels: int = 1, width: int = 4, activation: Any = OPAQUE) -> None:
        super().__init__(in_channels, width)
        assert activation is OPAQUE


def test_whatever_a_class_has_as_its_default(tmp_path):
    built.clear()
    flags = [
        "--trainer.callbacks=null",
        f"--trainer.callbacks+={__name__}.Defaults",
        "--trainer.callbacks.wait=0:00:07",
    ]
    flags += ["--trainer.callbacks.color=BLUE", f"--model.backbone={__name__}.Network", "--test_after_fit=false"]
    main(["fit", f"--config={CONFIG}", f"--runs_dir={tmp_path}", "--trainer.max_epochs=1", *flags, *QUIET])
    (run,) = (tmp_path / "digits_cosine").glob("version_*")
    main(["test", f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}", *QUIET])
    main(["fit", f"--resume={run}", "--trainer.max_epochs=2", *QUIET])
    first, *others = built
    assert first["wait"] == datetime.timedelta(seconds=7)
    assert first["color"] is Color.BLUE
    assert first["pair"] == (1, OPAQUE)
    assert len(others) == 2
    for other in others:
        assert all(other[name] is value or other[name] == value for name, value in first.items())
    (saved,) = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"]
    assert saved["init_args"] == {"wait": "0:00:07", "color": "BLUE", "named": f"{__name__}.double"}
