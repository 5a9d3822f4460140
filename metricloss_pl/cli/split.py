"""Which images a trained network is evaluated on: those that it was not trained on, as its run has divided them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from metricloss_pl.callbacks.run_folder import run_folder
from metricloss_pl.cli.console import relative_path
from metricloss_pl.cli.run_folder import run_of
from metricloss_pl.data import ImageDataModule
from metricloss_pl.data.samples import Samples
from metricloss_pl.data.split_file import Part, count_known, digest_of_split, fingerprint_of, has_fingerprint
from metricloss_pl.data.test_split import HeldOutDataModule
from metricloss_pl.errors import UserError, plural
from metricloss_pl.regimes import Classifier
from metricloss_pl.run_files import RESULT_INVARIANT

__all__ = ["SPLIT_FILE", "SplitRecord", "choose_images"]

SPLIT_FILE = "split.csv"
_DRAWN_BY = ("seed", "val_fraction", "test_fraction", "samples_per_class")
_LISTS = {"test": ("test", "test_root"), "predict": ("test", "test_root"), "validate": ("val",)}
_PLACES = (*RESULT_INVARIANT, "train", "val", "test", "test_root", "lists", "split")


class SplitRecord(Callback):
    """Write the split into the run's folder when training begins, and what tells it from others into checkpoints."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say what of the images is not used, as a training does at its beginning."""
        data = getattr(trainer, "datamodule", None)
        if stage in ("validate", "test") and isinstance(data, ImageDataModule):
            data.warn_of_left_out()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        file = run_folder(trainer) / SPLIT_FILE
        if not (trainer.is_global_zero and isinstance(data, ImageDataModule) and isinstance(pl_module, Classifier)):
            return
        if trainer.fast_dev_run or (pl_module.split is not None and file.is_file()):  # type: ignore[attr-defined]
            return  # nothing is kept, or it is there since the run was begun
        pl_module.split = {"digest": data.save_split(file), "sample": fingerprint_of(data.samples("train"))}


def choose_images(
    data: ImageDataModule, subcommand: str, given: Collection[str], checkpoint: Mapping[str, Any], path: Path
) -> None:
    """Have data evaluated, or trained on further, in the sets that a checkpoint was trained with.

    If the data are those of the checkpoint's run, wherever they lie by now, the run's split is used, unless a split
    file is on the command line. Other labeled images are all evaluated, unless they have a test or validation set of
    their own or one is asked for.

    Args:
        data: The data module, newly built, which has not yet used its `split_file`.
        subcommand: `fit`, `validate`, `test` or `predict`.
        given: Names of the options on the command line.
        checkpoint: As it was read.
        path: Its file.

    Raises:
        UserError: The images cannot be divided as they were in training.
    """
    if subcommand == "predict" and data.predict_dir is not None:
        return
    settings = {name.removeprefix("--data.") for name in given if name.startswith("--data.")}
    if settings & set(_LISTS.get(subcommand, ())):
        if "split_file" in settings:
            _use_named_split(data)
        return
    drawn_by = [name for name in _DRAWN_BY if name in settings]
    of_run = not {"-c", "--config", "--data", "--model"} & set(given)
    elsewhere = not of_run or bool(settings & set(_PLACES))
    record = checkpoint.get("split")
    if not _is_record(record):  # a checkpoint from before splits were recorded
        if drawn_by and not elsewhere:
            raise _other_split(drawn_by[0], subcommand)
        _use_named_split(data)
        return
    data.prepare_data()
    if elsewhere and not has_fingerprint(images := data.all_images().identified(), record["sample"]):
        if subcommand != "fit" and "split_file" not in settings and settings & set(_PLACES):
            data.split_file = None  # that of a config is about the images that it names
        _use_named_split(data)
        asked_for = data.split_file is not None or "test_fraction" in settings
        part: Part = "val" if subcommand == "validate" else "test"
        if subcommand != "fit" and not asked_for and isinstance(data, HeldOutDataModule):
            data.use_all_for(part)
        if subcommand in ("validate", "test") and count_known(images, record["sample"]):
            _warn_of_training_images(data.official(part), record["sample"], path)
        return
    folder = run_of(path)
    own = None if folder is None else folder / SPLIT_FILE
    if own is not None and own.is_file() and not drawn_by and "split_file" not in settings:
        data.samples_per_class = None  # the file says it
        if (digest := data.use_split(relative_path(own))) != record["digest"]:
            raise _not_the_split(own, path, digest, record["digest"])
        return
    if _use_named_split(data) == record["digest"]:
        data.samples_per_class = None
        return
    digest = digest_of_split(data.split_rows())
    if digest == record["digest"]:
        return
    if "split_file" in settings:
        raise _not_the_split(Path(str(data.split_file)), path, digest, record["digest"])
    if drawn_by:
        raise _other_split(drawn_by[0], subcommand)
    if own is None:
        remedy = f"and the run's {SPLIT_FILE} is not known: give it as --data.split_file"
    else:
        remedy = f"and {relative_path(own)} is missing: put it back"
    raise UserError(
        f"the images are divided otherwise than when {relative_path(path)} was trained (digests {digest} and "
        f"{record['digest']}; images have come or gone), {remedy}"
    )


def _use_named_split(data: ImageDataModule) -> str | None:
    """Use the `split_file` of a data module, if it names one, and return its digest."""
    return None if data.split_file is None else data.use_split(data.split_file)


def _warn_of_training_images(images: Samples | None, sample: Mapping[str, str], path: Path) -> None:
    """Warn in one line if images to be evaluated are among the training images of a checkpoint."""
    known = 0 if images is None else count_known(images, sample)
    if known:
        rank_zero_warn(
            f"these images are not new to {relative_path(path)}: {known} of {plural(len(sample), 'training image')} "
            f"looked for "
            "are among them, so that the metrics are too good"
        )


def _not_the_split(file: Path, path: Path, digest: str, trained: str) -> UserError:
    return UserError(
        f"{relative_path(file)} is not the split that {relative_path(path)} was trained with (digests {digest} and "
        f"{trained}): "
        "another one may put training images among those that are evaluated; give the file as `fit` wrote it"
    )


def _other_split(setting: str, subcommand: str) -> UserError:
    return UserError(
        f"--data.{setting} with --ckpt_path: another split would put training images among those of {subcommand}; "
        "leave it out"
    )


def _is_record(record: Any) -> TypeGuard[dict[str, Any]]:
    """Return whether a checkpoint's entry is one that `SplitRecord` wrote."""
    return isinstance(record, dict) and isinstance(record.get("digest"), str) and isinstance(record.get("sample"), dict)
