"""Class hierarchies: trees read from a file, their heights, and the similarities of their leaves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from metricloss_pl.class_embeddings.matching import match_classes, read_class_list, read_pairs
from metricloss_pl.errors import UserError, check_choice
from metricloss_pl.files import FilePath, Line, read_lines, replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Format", "Hierarchy"]

Format = Literal["auto", "parent_child", "child_parent", "indented"]


@dataclass(frozen=True, eq=False, repr=False)
class Hierarchy:
    """Tree whose leaves are classes (Barz & Denzler 2019, "Hierarchy-based Image Embeddings").

    A leaf has height 0, any other node 1 + the largest height of its children. The similarity of two leaves is
    1 - height(LCA) / height(root), LCA being their lowest common ancestor. Heights are those of the whole tree, even
    where a data set has only some of its leaves. The id of a node is a text, such as "7".

    Args:
        parents: Parent of each node except the root.
        names: Names of classes by id, where they differ from the ids: see `leaves_of`.
        source: Name of the hierarchy, for the messages.

    Raises:
        UserError: Not a tree: a cycle, several roots or no edge.
    """

    parents: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict)
    source: str = "the hierarchy"

    def __post_init__(self) -> None:
        order = _parents_first({child: [parent] for child, parent in self.parents.items()}, self.source)
        roots = [node for node in order if node not in self.parents]
        if not roots:
            raise UserError(f"{self.source} holds no classes: it must have at least one pair of parent and child")
        if len(roots) > 1:
            raise UserError(
                f"{self.source} has {len(roots)} roots, such as {roots[0]!r} and {roots[1]!r}: a tree has one, so join "
                "them under a common parent"
            )

    # ------------------------------------------------------------------------------------------------------- origins

    @classmethod
    def from_pairs(
        cls,
        pairs: Iterable[tuple[str, str]],
        names: Mapping[str, str] | None = None,
        source: str = "the hierarchy",
        allow_dag: bool = False,
    ) -> Hierarchy:
        """Build a hierarchy from (parent, child) pairs; a repeated pair counts once.

        Args:
            pairs: Ids of parent and child.
            names: Names of classes by id.
            source: Name of the hierarchy, for the messages.
            allow_dag: Whether a node may have several parents. It then keeps the one furthest from the root by the
                longest path, the first in text order if several are. Inner nodes left without children are dropped.

        Raises:
            UserError: Not a tree; or, with `allow_dag`, a cycle or several roots.
        """
        parents: dict[str, list[str]] = {}
        for parent, child in dict.fromkeys(pairs):
            parents.setdefault(child, []).append(parent)
        if allow_dag:
            return cls(_tree_within(parents, source), names or {}, source)
        for child, given in parents.items():
            if len(given) > 1:
                raise UserError(f"{source}: {child!r} has two parents, {given[0]!r} and {given[1]!r}: a tree has one")
        return cls({child: parent for child, (parent,) in parents.items()}, names or {}, source)

    @classmethod
    def from_file(
        cls, path: FilePath, format: Format = "auto", class_list: FilePath | None = None, allow_dag: bool = False
    ) -> Hierarchy:
        """Read a hierarchy from a text file; empty lines and lines that begin with # are skipped.

        Args:
            path: The file.
            format: `parent_child` or `child_parent`: two ids per line, of which the second may hold spaces.
                `indented`: one name per line behind a pair of dashes per level below the root; classes match with or
                without a `?` or a comment in brackets behind it. `auto`: indented if a line begins with a dash, else
                pairs, in the order in which fewer nodes have several parents.
            class_list: File of lines `<id> <name>`, where the names of the classes are not the ids.
            allow_dag: As in `from_pairs`.

        Raises:
            UserError: The file is missing or malformed, or holds no tree.
        """
        check_choice("format", format, Format)
        source = f"hierarchy {path}"
        lines = read_lines(path, source, comments=True)
        if format == "indented" or (format == "auto" and any(line.text.startswith("-") for line in lines)):
            pairs = _indented(lines)
        else:
            pairs = read_pairs(lines)
            if format == "child_parent" or (format == "auto" and _child_first(pairs)):
                pairs = [(parent, child) for child, parent in pairs]
        names = {} if class_list is None else read_class_list(class_list)
        return cls.from_pairs(pairs, names, source, allow_dag)

    def save(self, path: FilePath) -> None:
        """Write the tree in the indented form, which needs no class list where ids are names."""
        with replacing(Path(path)) as beside:
            beside.write_text("".join(f"{line}\n" for line in self.lines()), encoding="utf-8")

    def lines(self) -> list[str]:
        """Return the tree in the indented form."""
        return [f"{'--' * self.levels[node]} {node}".lstrip() for node in self.nodes]

    # ------------------------------------------------------------------------------------------------------- the tree

    @cached_property
    def children(self) -> dict[str, list[str]]:
        """Children of each inner node."""
        children: dict[str, list[str]] = {}
        for child, parent in self.parents.items():
            children.setdefault(parent, []).append(child)
        return children

    @cached_property
    def nodes(self) -> list[str]:
        """All ids in depth-first order."""
        nodes: list[str] = []
        ahead = [next(parent for parent in self.parents.values() if parent not in self.parents)]
        while ahead:
            nodes.append(ahead.pop())
            ahead += reversed(self.children.get(nodes[-1], []))
        return nodes

    @cached_property
    def leaves(self) -> list[str]:
        """Ids of the nodes without children in ascending order: as numbers if all are numbers, else as texts."""
        leaves = [node for node in self.nodes if node not in self.children]
        whole = all(re.fullmatch("[0-9]+", leaf) for leaf in leaves)
        return sorted(leaves, key=lambda leaf: (int(leaf) if whole else 0, leaf))

    @cached_property
    def heights(self) -> dict[str, int]:
        """Edges from each node down to its furthest leaf."""
        heights = dict.fromkeys(self.nodes, 0)
        for node in reversed(self.nodes[1:]):
            parent = self.parents[node]
            heights[parent] = max(heights[parent], heights[node] + 1)
        return heights

    @cached_property
    def levels(self) -> dict[str, int]:
        """Edges from each node up to the root."""
        levels = {self.nodes[0]: 0}
        for node in self.nodes[1:]:
            levels[node] = levels[self.parents[node]] + 1
        return levels

    @property
    def height(self) -> int:
        """Height of the root, at least 1."""
        return self.heights[self.nodes[0]]

    # -------------------------------------------------------------------------------------------------------- classes

    def leaves_of(self, class_names: Sequence[str]) -> list[str]:
        """Return the leaf of each class, found by its id or through the class list: see `match_classes`.

        Raises:
            UserError: A class has no leaf, or two have the same.
        """
        return match_classes(class_names, self.leaves, self.names, self.source, ("leaf", "leaves"), self.children)

    def lca_heights(self, leaves: Sequence[str]) -> NDArray[np.int16]:
        """Return the heights (C, C) of the lowest common ancestor of any two of C leaves, 0 on the diagonal."""
        place = {node: index for index, node in enumerate(self.nodes)}
        order = np.array(sorted(range(len(leaves)), key=lambda label: place[leaves[label]]), dtype=np.intp)
        walk = [leaves[label] for label in order]
        # In depth-first order, the LCA of two leaves is the highest of the LCAs of neighbors between them.
        steps = np.array([self._lca_height(*pair) for pair in pairwise(walk)], dtype=np.int16)
        heights = np.empty((len(leaves), len(leaves)), dtype=np.int16)
        row = np.zeros(len(leaves), dtype=np.int16)
        for index, label in enumerate(order):
            row[index] = 0
            np.maximum.accumulate(steps[index:], out=row[index + 1 :])
            np.maximum.accumulate(steps[:index][::-1], out=row[:index][::-1])
            heights[label, order] = row
        return heights

    def similarities(self, leaves: Sequence[str]) -> NDArray[np.float64]:
        """Return 1 - height(LCA) / height(root) of any two of C leaves: (C, C), in [0, 1], ones on the diagonal."""
        return 1 - self.lca_heights(leaves) / self.height

    def _lca_height(self, first: str, second: str) -> int:
        above = {first}
        while first in self.parents:
            first = self.parents[first]
            above.add(first)
        while second not in above:
            second = self.parents[second]
        return self.heights[second]


# ---------------------------------------------------------------------------------------------------------- reading


def _child_first(pairs: list[tuple[str, str]]) -> bool:
    """Return whether fewer nodes have several parents if the child comes first."""
    firsts, seconds = ({pair[column] for pair in pairs} for column in (0, 1))
    return len(firsts) > len(seconds)


def _indented(lines: Iterable[Line]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    above: list[str] = []  # the nodes from the root to the line before
    for place, line in lines:
        dashes = len(line) - len(line.lstrip("-"))
        name = line[dashes:].strip()
        if dashes % 2 or not name:
            raise UserError(f"{place}: {line!r} must be a name behind pairs of dashes")
        level = dashes // 2
        if level > len(above):
            raise UserError(f"{place}: {name!r} is at level {level}, and the line before at {len(above) - 1}")
        if level == 0 and above:
            raise UserError(f"{place}: {name!r} is a second root beside {above[0]!r}: put -- before what lies below it")
        above[level:] = [name]
        if level:
            pairs.append((above[level - 1], name))
    return pairs


# ---------------------------------------------------------------------------------------------------------- graphs


def _parents_first(parents: Mapping[str, Sequence[str]], source: str) -> list[str]:
    """Return all nodes, parents before their children."""
    try:
        return list(TopologicalSorter(parents).static_order())
    except CycleError as error:
        raise UserError(f"{source} has a cycle: {' -> '.join(error.args[1])}; a tree has none") from error


def _tree_within(parents: Mapping[str, Sequence[str]], source: str) -> dict[str, str]:
    """Return the tree within a directed graph without cycles: see `Hierarchy.from_pairs`."""
    order = _parents_first(parents, source)
    level: dict[str, int] = {}
    for node in order:
        level[node] = max((level[parent] + 1 for parent in parents.get(node, ())), default=0)
    kept = {child: min(given, key=lambda parent: (-level[parent], parent)) for child, given in parents.items()}
    inner = {parent for given in parents.values() for parent in given}
    above_leaves = set(order) - inner
    for node in reversed(order):
        if node in above_leaves and node in kept:
            above_leaves.add(kept[node])
    return {child: parent for child, parent in kept.items() if child in above_leaves}
