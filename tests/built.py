"""Build the objects of a `fit` command without training."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pytest
from lightning.pytorch import Trainer

from metricloss_pl.cli import main
from metricloss_pl.data import ImageDataModule
from metricloss_pl.regimes import Classifier


class _Begins(BaseException):
    """The moment at which a training would begin."""


def build(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Trainer, Classifier, ImageDataModule]:
    """Return the trainer, the regime and the data module of a `fit` command."""
    built = []

    @functools.wraps(Trainer.fit)  # the command line reads its arguments off the signature
    def begin(trainer, model, **rest):
        built.append((trainer, model, rest["datamodule"]))
        raise _Begins

    monkeypatch.setattr(Trainer, "fit", begin)
    with pytest.raises(_Begins):
        main(arguments)
    [found] = built
    return found
