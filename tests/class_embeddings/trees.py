"""Trees of classes, and slow references for their heights."""

import random

import numpy as np

#      r
#    / | \
#   A  B  d        heights: A 1, C 1, B 2, r 3
#  /|  |\
# a1 a2 b1 C
#          |\
#         c1 c2
BY_HAND = [
    *[("r", "A"), ("A", "a1"), ("A", "a2")],
    *[("r", "B"), ("B", "b1"), ("B", "C"), ("C", "c1"), ("C", "c2")],
    ("r", "d"),
]
LEAVES = ["a1", "a2", "b1", "c1", "c2", "d"]
LCA_HEIGHTS = [
    [0, 1, 3, 3, 3, 3],
    [1, 0, 3, 3, 3, 3],
    [3, 3, 0, 2, 2, 3],
    [3, 3, 2, 0, 1, 3],
    [3, 3, 2, 1, 0, 3],
    [3, 3, 3, 3, 3, 0],
]


def random_pairs(seed: int, nodes: int = 40) -> list[tuple[str, str]]:
    """Return (parent, child) pairs of a random tree, in random order."""
    chance = random.Random(seed)
    pairs = [(f"n{chance.randrange(max(0, child - 12), child)}", f"n{child}") for child in range(1, nodes)]
    chance.shuffle(pairs)
    return pairs


def balanced_pairs(branches: int, height: int) -> list[tuple[str, str]]:
    """Return pairs of a tree whose inner nodes have equally many children and whose leaves are at one level."""
    names = [""]
    pairs = []
    for _ in range(height):
        pairs += [(name or "root", f"{name}{child}") for name in names for child in range(branches)]
        names = [f"{name}{child}" for name in names for child in range(branches)]
    return pairs


def lca_heights_by_paths(pairs: list[tuple[str, str]], leaves: list[str]) -> np.ndarray:
    """Compute LCA heights from the path of each leaf to the root and walks down to every leaf."""

    def path(node):
        above = [parent for parent, child in pairs if child == node]
        return [node, *path(above[0])] if above else [node]

    def height(node):
        return max((1 + height(child) for parent, child in pairs if parent == node), default=0)

    paths = {leaf: path(leaf) for leaf in leaves}
    return np.array([[height(next(n for n in paths[a] if n in paths[b])) for b in leaves] for a in leaves])
