"""`metricloss predict CHECKPOINT IMAGE ...`: classes of some photos, on the screen and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from jsonargparse import ArgumentParser

from metricloss_pl.callbacks.predictions import columns_of, row_of
from metricloss_pl.cli.arguments import options_first
from metricloss_pl.cli.console import print_columns, print_table, relative_path
from metricloss_pl.data.file_checks import list_images, warn_of_unused
from metricloss_pl.data.reading import UnreadableImages
from metricloss_pl.errors import DEBUG_HELP, UserError, plural, shell_command
from metricloss_pl.files import writing_csv
from metricloss_pl.regimes import Classifier
from metricloss_pl.regimes.loading import load
from metricloss_pl.regimes.prediction import FilePredictions, predict_files

__all__ = ["is_positional", "predict"]

_MOST_LINES = 20  # on the screen beside a CSV file
_COLUMNS = ("file", "class", "probability", "runner-up", "its probability")


def is_positional(arguments: Sequence[str]) -> bool:
    """Return whether arguments of `predict` begin with a checkpoint, rather than with the options of a Trainer."""
    return not arguments or not arguments[0].startswith("-") or arguments[0] in ("-h", "--help")


def predict(arguments: Sequence[str]) -> None:
    """Print the classes of images with their calibrated probabilities, and write them as CSV.

    Args:
        arguments: Arguments after `predict` on the command line.

    Raises:
        UserError: The checkpoint cannot be read, a folder holds no image, or an image cannot be read; the others are
            predicted.
    """
    program = shell_command("predict")
    parser = ArgumentParser(
        prog=program,
        usage="%(prog)s CHECKPOINT IMAGE [IMAGE ...] [options]",
        description="Predict the classes of images: class, calibrated probability, runner-up. For large sets and "
        f"several GPUs: {program} --ckpt_path CHECKPOINT --data.predict_dir FOLDER [options]; {program} --ckpt_path "
        "CHECKPOINT --help lists these options.",
        epilog=DEBUG_HELP,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=str, help="File that `fit` has written.")
    parser.add_argument(
        "images", metavar="IMAGE", type=str, nargs="+", help="Files, or folders of images with their subfolders."
    )
    parser.add_argument(
        "--csv",
        metavar="FILE",
        type=str | None,
        default=None,
        help="CSV file to write. If the checkpoint has a threshold for unknown images, its column `rejected` says "
        "which they are.",
    )
    parser.add_argument(
        "--all_probabilities", type=bool, default=False, help="Whether the CSV file has a column for each class."
    )
    given = parser.parse_args(options_first(arguments))
    if given.all_probabilities and given.csv is None:
        raise UserError("--all_probabilities true has no effect on the screen: also give --csv FILE")
    files = list_images(given.images)
    warn_of_unused(given.images)
    _predict_files(load(given.checkpoint), files, given.csv, given.all_probabilities)


def _predict_files(model: Classifier, files: Sequence[Path], target: str | None, all_probabilities: bool) -> None:
    names = model.class_names
    broken: dict[Path, str] = {}
    shown: list[Sequence[str]] = []
    with ExitStack() as stack:
        writer = None
        if target is not None:
            writer = stack.enter_context(writing_csv(target))
            writer.writerow(columns_of(model.rejection is not None, names if all_probabilities else ()))
        for batch in predict_files(model, files):
            broken |= batch.broken
            rows = _rows(batch, names, all_probabilities)
            shown += map(_line, rows if writer is None else rows[: max(0, _MOST_LINES - len(shown))])
            if writer is not None:
                writer.writerows(rows)
        if len(broken) == len(files):
            raise UnreadableImages.of(broken)
    print_columns(_COLUMNS, shown)
    predicted = len(files) - len(broken)
    if target is not None:
        more = f"{predicted - len(shown):,} more of " if predicted > len(shown) else ""
        print_table([("predictions", f"{more}{plural(predicted, 'image')} in {relative_path(target)}")])
    if broken:
        raise UnreadableImages.of(broken)


def _rows(batch: FilePredictions, names: Sequence[str], all_probabilities: bool) -> list[list[str]]:
    probabilities, classes = batch.probabilities.topk(2, dim=1)
    rejected = [None] * len(batch.files) if batch.rejected is None else batch.rejected.tolist()
    columns = zip(batch.files, classes.tolist(), probabilities.tolist(), rejected, batch.probabilities, strict=True)
    return [
        row_of(file.as_posix(), names, best, of_best, flag, each.tolist() if all_probabilities else ())
        for file, best, of_best, flag, each in columns
    ]


def _line(row: Sequence[str]) -> list[str]:
    """Return the columns of the screen for a row of the file."""
    file, name, probability, runner_up, its_probability, *rejected = row[: len(_COLUMNS) + 1]
    shown = f"unknown ({name})" if rejected == ["true"] else name
    return [file, shown, f"{float(probability):.4f}", runner_up, f"{float(its_probability):.4f}"]
