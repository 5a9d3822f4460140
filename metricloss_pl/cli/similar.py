"""`metricloss similar CHECKPOINT IMAGE ... GALLERY`: the images that are most similar to others."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from metricloss_pl.cli.arguments import options_first
from metricloss_pl.cli.console import print_columns, print_table, relative_path
from metricloss_pl.data.file_checks import warn_of_unused
from metricloss_pl.data.reading import UnreadableImages
from metricloss_pl.errors import DEBUG_HELP, plural, shell_command
from metricloss_pl.files import writing_csv
from metricloss_pl.regimes.loading import load
from metricloss_pl.regimes.similar import find_similar

__all__ = ["similar"]

_COLUMNS = ("query", "rank", "file", "distance")


def similar(arguments: Sequence[str]) -> None:
    """Print the images of a gallery that are most similar to others, and write them as CSV.

    Args:
        arguments: Arguments after `similar` on the command line.

    Raises:
        UserError: The checkpoint cannot be read, a folder holds no image, or an image cannot be read; the others are
            compared.
    """
    parser = ArgumentParser(
        prog=shell_command("similar"),
        usage="%(prog)s CHECKPOINT IMAGE [IMAGE ...] GALLERY [options]",
        description="Find the images of a gallery whose embeddings are nearest to those of other images. The distance "
        "is Euclidean; networks whose loss ignores the norm of an embedding, such as cosine, are compared by direction "
        "(squared distance 2 - 2 cos).",
        epilog=DEBUG_HELP,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=str, help="File that `fit` has written.")
    parser.add_argument(
        "queries", metavar="IMAGE", type=str, nargs="+", help="Files, or folders of images with their subfolders."
    )
    parser.add_argument(
        "gallery", metavar="GALLERY", type=str, help="Folder of the images to search, with its subfolders."
    )
    parser.add_argument("--k", type=int, default=5, help="Similar images per image, at least 1.")
    parser.add_argument("--csv", metavar="FILE", type=str | None, default=None, help="CSV file to write.")
    given = parser.parse_args(options_first(arguments))
    warn_of_unused([*given.queries, given.gallery])
    found = find_similar(load(given.checkpoint), given.queries, given.gallery, given.k)
    rows = [[n.query.as_posix(), str(n.rank), n.file.as_posix(), f"{n.distance:.6f}"] for n in found.neighbors]
    if given.csv is not None:
        with writing_csv(given.csv) as writer:
            writer.writerows([_COLUMNS, *rows])
    print_columns(_COLUMNS, [[*row[:3], f"{float(row[3]):.4f}"] for row in rows])
    if given.csv is not None:
        print_table([("similar", f"{plural(len(rows), 'row')} in {relative_path(given.csv)}")])
    if found.broken:
        raise UnreadableImages.of(found.broken)
