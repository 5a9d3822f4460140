"""`metricloss hierarchy FILE`: summary, tree and similarities of a class hierarchy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from metricloss_pl.class_embeddings import open_hierarchy
from metricloss_pl.class_embeddings.hierarchy import Format
from metricloss_pl.cli.console import print_table, relative_path
from metricloss_pl.errors import plural
from metricloss_pl.files import FilePath

__all__ = ["show_hierarchy"]

_MAX_DRAWN = 1000
_MAX_LINES = 60


def show_hierarchy(
    path: FilePath,
    format: Format = "auto",
    class_list: FilePath | None = None,
    allow_dag: bool = False,
    tree: bool = False,
    picture: str | None = None,
    save: str | None = None,
) -> None:
    """Print the classes, levels, heights and similarities of a class hierarchy, and its tree in the indented form.

    Args:
        path: File of lines `<parent> <child>` or `<child> <parent>`, or of an indented tree; or one of the names
            cub_flat, cub_wikispecies, cub_deep, cifar100 and cifar100_superclasses.
        format: Format of the file; `auto` detects it.
        class_list: File of lines `<id> <class name>`.
        allow_dag: Whether nodes may have several parents; each keeps the one furthest from the root.
        tree: Whether to print the whole tree, even if it has more than 60 lines.
        picture: File to draw the matrix of similarities into, .png, .svg or .pdf, with classes in the order of the
            tree. Of more than 1000 classes a subset is drawn.
        save: File to write the indented tree of ids into.

    Raises:
        UserError: The file is missing, malformed, or holds no tree.
    """
    hierarchy = open_hierarchy(path, class_list, format, allow_dag)
    names = {node: hierarchy.names.get(node, node) for node in hierarchy.nodes}
    classes = [node for node in hierarchy.nodes if node not in hierarchy.children]
    heights = hierarchy.lca_heights(classes)
    pairs = max(1, len(classes) * (len(classes) - 1))
    shares = {height: int((heights == height).sum()) / pairs for height in range(1, hierarchy.height + 1)}
    similarities = [
        f"{1 - height / hierarchy.height:.3g} ({100 * share:.1f} %)" for height, share in shares.items() if share
    ]
    print_table(
        [
            ("hierarchy", relative_path(Path(path))),
            ("classes", f"{len(classes)}, from {names[classes[0]]} to {names[classes[-1]]}"),
            ("nodes", f"{len(hierarchy.nodes)}, root {names[hierarchy.nodes[0]]}"),
            ("levels", f"{_counted(hierarchy.levels[leaf] for leaf in classes)} (level: classes; the root's is 0)"),
            ("heights", f"{_counted(hierarchy.heights.values())} (height: nodes; the classes' is 0)"),
            ("similarity", f"{', '.join(similarities)} of the pairs"),
        ]
    )
    print()
    shown = hierarchy.nodes if tree else hierarchy.nodes[:_MAX_LINES]
    for node in shown:
        height = f" (height {hierarchy.heights[node]})" if node in hierarchy.children else ""
        print(f"{'--' * hierarchy.levels[node]} {names[node]}{height}".lstrip())
    if len(shown) < len(hierarchy.nodes):
        print(f"# and {len(hierarchy.nodes) - len(shown)} more lines, shown by --tree true")
    if picture is not None:
        from metricloss_pl import plots

        drawn = classes[:: math.ceil(len(classes) / _MAX_DRAWN)]
        share = f"{len(drawn)} of " if len(drawn) < len(classes) else ""
        title = f"{Path(path).stem}: {share}{plural(len(classes), 'class')}, height {hierarchy.height}"
        figure = plots.similarity_matrix(hierarchy.similarities(drawn), [names[leaf] for leaf in drawn], title)
        plots.save_figure(figure, Path(picture))
        print_table([("picture", relative_path(picture))])
    if save is not None:
        hierarchy.save(save)
        print_table([("saved", relative_path(save))])


def _counted(numbers: Iterable[int]) -> str:
    return ", ".join(f"{number}: {count}" for number, count in sorted(Counter(numbers).items()))
