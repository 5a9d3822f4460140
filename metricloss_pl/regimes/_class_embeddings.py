"""The type of the cosine regime's class embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from torch import Tensor

from metricloss_pl.files import FilePath

__all__ = ["ClassEmbeddings"]

_Name: TypeAlias = Literal["one_hot", "simplex", "semantic", "checkpoint"]

# A tensor is for Python alone: the command line, which reads the types when it runs, would offer all of its subclasses.
if TYPE_CHECKING:
    ClassEmbeddings: TypeAlias = _Name | FilePath | Tensor
else:
    ClassEmbeddings = _Name | FilePath
