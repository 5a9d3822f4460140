"""Fixed class embeddings (C, D) with rows of norm 1: the targets of the cosine regime."""

from metricloss_pl.class_embeddings.fixed import one_hot, simplex
from metricloss_pl.class_embeddings.hierarchy import Hierarchy
from metricloss_pl.class_embeddings.published import HIERARCHIES, open_hierarchy
from metricloss_pl.class_embeddings.semantic import are_embeddings, read_embeddings, semantic, stored

__all__ = [
    "HIERARCHIES",
    "Hierarchy",
    "are_embeddings",
    "one_hot",
    "open_hierarchy",
    "read_embeddings",
    "semantic",
    "simplex",
    "stored",
]
