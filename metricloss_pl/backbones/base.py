"""Type of the network of a regime."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

__all__ = ["Backbone", "InitializedFromImages", "WeightsMetadata"]


class WeightsMetadata(NamedTuple):
    """Preparation of the images that pretrained weights were trained on."""

    source: str  # for messages
    mean: list[float]  # of each channel, in [0, 1] units
    std: list[float]
    image_size: int | None  # px; None: unknown
    is_size_fixed: bool = False  # the network takes images of no other size


if TYPE_CHECKING:
    Backbone: TypeAlias = nn.Module  # any network with `num_features` will do
else:

    class _AnyModule(ABCMeta):
        """Metaclass that takes any module for a backbone, so that the command line accepts one that is no subclass."""

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, nn.Module) if cls is Backbone else super().__instancecheck__(instance)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, nn.Module) if cls is Backbone else super().__subclasscheck__(subclass)

    class Backbone(nn.Module, metaclass=_AnyModule):
        """Network from images (B, C, H, W) to features (B, F), with the attribute `num_features` (F).

        As the type of an argument it stands for any `nn.Module`; the help lists only its subclasses.
        """

        num_features: int
        weights_metadata: WeightsMetadata | None = None  # None: a random start

        @abstractmethod
        def forward(self, images: Tensor) -> Tensor:
            """Return the features of the images."""


@runtime_checkable
class InitializedFromImages(Protocol):
    """Backbone with layers that are computed from training images before the training.

    The callback `DatasetFacts` does so.
    """

    @property
    def initialized(self) -> bool:
        """True once these layers have been computed or loaded, so that they stay as they are."""

    def initialize(self, images: Tensor) -> None:
        """Compute the layers from training images (N, C, H, W), normalized as in training."""
