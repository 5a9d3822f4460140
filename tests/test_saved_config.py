"""The saved config of a run can be read, whatever objects the classes in it have as defaults."""

from __future__ import annotations

import datetime
import enum
import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from jsonargparse.typing import register_type
from lightning.pytorch import Callback

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.cli import main
from tests.command_line import QUIET, best, fit


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Opaque:
    pass


class Box:
    """A type that text can give, and whose objects equal only themselves."""

    def __init__(self, name: str) -> None:
        self.name = name


register_type(Box, serializer=lambda box: box.name)


def double(value: int) -> int:
    return 2 * value


OPAQUE, EMPTY, LAMBDA, PARTIAL = Opaque(), Box("empty"), lambda value: value, functools.partial(double, 3)
CPU, ZEROS = torch.device("cpu"), torch.zeros(3)
built: list[dict[str, Any]] = []


class Defaults(Callback):
    """Callback with defaults that text can hold and others that it can't."""

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
        box: Box = EMPTY,
        boxes: list[Box] = [EMPTY],  # noqa: B006
    ) -> None:
        built.append({name: value for name, value in locals().items() if name != "self"})


DEFAULTS = inspect.signature(Defaults).parameters


class Inherited(Defaults):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Network(TinyConvNet):
    """Network with such a default, whose settings are in the checkpoint, too."""

    def __init__(self, in_channels: int = 1, width: int = 4, activation: Any = OPAQUE) -> None:
        super().__init__(in_channels, width)
        assert activation is OPAQUE


@pytest.mark.parametrize("name", ["Defaults", "Inherited"])
def test_defaults_that_are_objects_come_from_their_classes(name, tmp_path):
    built.clear()
    flags = [f"--trainer.callbacks+={__name__}.{name}", "--trainer.limit_train_batches=2"]
    flags += [f"--trainer.callbacks.{given}" for given in ("wait=0:00:07", "color=BLUE", "box=mine")]
    run = fit("digits_cosine", tmp_path, *flags, f"--model.backbone={__name__}.Network")
    main(["test", f"--config={run / 'config.yaml'}", best(run), *QUIET])
    main(["fit", f"--resume={run}", "--trainer.max_epochs=2", *QUIET])
    assert len(built) == 3
    for settings in built:
        assert settings.pop("wait") == datetime.timedelta(seconds=7)
        assert settings.pop("color") is Color.BLUE
        assert settings.pop("box").name == "mine"
        assert settings.pop("pair") == (1, OPAQUE)
        assert settings.pop("boxes") == [EMPTY]
        assert all(value is DEFAULTS[name].default for name, value in settings.items())
    (saved,) = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"]
    assert saved["init_args"] == {"wait": "0:00:07", "color": "BLUE", "box": "mine"}
