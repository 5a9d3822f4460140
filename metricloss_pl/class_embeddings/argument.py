"""Type of an argument that names class embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from torch import Tensor

from metricloss_pl.files import FilePath

__all__ = ["ClassEmbeddings"]

_Name: TypeAlias = Literal["one_hot", "simplex", "semantic"]

# A tensor is for Python only: the command line would list all subclasses of Tensor in its help. The distinction stands
# in a module of its own, since jsonargparse evaluates `if TYPE_CHECKING` in the module of a class.
if TYPE_CHECKING:
    ClassEmbeddings: TypeAlias = _Name | FilePath | Tensor | None
else:
    ClassEmbeddings = _Name | FilePath | None
