"""Build the objects of a `fit` command without training."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
from lightning.pytorch import Trainer

from metricloss_pl.cli import MetricLossCLI, main
from metricloss_pl.data import ImageDataModule
from metricloss_pl.regimes import Classifier


class _Begins(BaseException):
    """Raised when training would begin."""


def keep_fit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave only the subcommand `fit`, because building the parsers of the others takes long."""
    subcommands = {"fit": MetricLossCLI.subcommands()["fit"]}
    monkeypatch.setattr(MetricLossCLI, "subcommands", staticmethod(lambda: subcommands))


def build(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Trainer, Classifier, ImageDataModule]:
    """Return the trainer, the regime and the data module of a `fit` command."""
    built = []

    @functools.wraps(Trainer.fit)  # the command line reads its arguments off the signature
    def begin(trainer, model, **rest):
        built.append((trainer, model, rest["datamodule"]))
        raise _Begins

    keep_fit_only(monkeypatch)
    monkeypatch.setattr(Trainer, "fit", begin)
    with pytest.raises(_Begins):
        main(arguments)
    [found] = built
    return found
