"""Classes with a bug, or with a user's mistake, to be named on the command line."""

from datetime import timedelta
from enum import Enum

from lightning.pytorch import Callback
from torch import nn

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.data import DigitsDataModule
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import SoftmaxClassifier


def bug_while_handling() -> None:
    """Raise an AttributeError while a mistake of a user's is being handled."""
    try:
        raise UserError("an unrelated mistake")
    except UserError:
        None.planted  # type: ignore[attr-defined]  # noqa: B018


class RegimeAtConstruction(SoftmaxClassifier):
    def __init__(self, num_classes: int, backbone: nn.Module, class_names: list[str] | None = None) -> None:
        super().__init__(num_classes, backbone, class_names)
        bug_while_handling()


class RegimeWithItsOwnBackbone(SoftmaxClassifier):
    """No planted bug: it takes no backbone."""

    def __init__(self, num_classes: int, class_names: list[str] | None = None) -> None:
        super().__init__(num_classes, TinyConvNet(in_channels=1), class_names)


class RegimeInStep(SoftmaxClassifier):
    def losses(self, embeddings, labels):
        bug_while_handling()


class RegimeLogsTooEarly(SoftmaxClassifier):
    def on_fit_start(self):
        super().on_fit_start()
        self.log("planted", 1.0)


class BackboneAtConstruction(nn.Module):
    def __init__(self, in_channels: int = 1) -> None:
        super().__init__()
        self.planted  # noqa: B018


class Kind(Enum):
    ONE = 1
    OTHER = 2


class BackboneOfAKind(TinyConvNet):
    """No planted bug: it has arguments whose types are no classes to choose from."""

    def __init__(
        self,
        in_channels: int = 1,
        kind: Kind = Kind.ONE,
        time: timedelta | None = timedelta(hours=1),
    ) -> None:
        super().__init__(in_channels)


class DataAtConstruction(DigitsDataModule):
    def __init__(self) -> None:
        super().__init__()
        bug_while_handling()


class DataInRead(DigitsDataModule):
    def read(self, part):
        bug_while_handling()


class DataInFact(DigitsDataModule):
    @property
    def num_classes(self):
        bug_while_handling()


class CallbackAtConstruction(Callback):
    def __init__(self) -> None:
        bug_while_handling()


class CallbackInHook(Callback):
    def on_train_batch_start(self, *args):
        bug_while_handling()


class CallbackWithValueError(Callback):
    def __init__(self) -> None:
        raise ValueError("planted")


class CallbackRefuses(Callback):
    def __init__(self, limit: int = 0) -> None:
        raise UserError(f"limit is {limit}; it must be at least 1")


class MuchToWrite(Callback):
    """State that no disk with a limit takes."""

    def state_dict(self):
        return {"much": "x" * 300_000}
