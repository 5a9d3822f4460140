"""Fixed embeddings of classes, (C, D) with rows of norm 1: the targets of the cosine regime."""

from metricloss_pl.class_embeddings.fixed import one_hot, simplex

__all__ = ["one_hot", "simplex"]
