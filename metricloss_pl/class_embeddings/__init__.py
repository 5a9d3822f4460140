"""Fixed embeddings of classes, (C, D) with rows of norm 1: the targets of the cosine regime."""

from metricloss_pl.class_embeddings.fixed import one_hot, simplex
from metricloss_pl.class_embeddings.hierarchy import Hierarchy
from metricloss_pl.class_embeddings.semantic import read_embeddings, semantic

__all__ = ["Hierarchy", "one_hot", "read_embeddings", "semantic", "simplex"]
