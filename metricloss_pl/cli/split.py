"""Images that a trained network is evaluated on: those that its run has not trained it on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from metricloss_pl.callbacks.run_folder import run_folder, run_of
from metricloss_pl.cli.console import relative_path
from metricloss_pl.data import ImageDataModule
from metricloss_pl.data.samples import Split
from metricloss_pl.data.split_file import count_known, digest_of_split, fingerprint_of, has_fingerprint
from metricloss_pl.data.test_split import HeldOutDataModule
from metricloss_pl.errors import UserError, plural
from metricloss_pl.regimes import Classifier
from metricloss_pl.run_options import RESULT_INVARIANT

__all__ = ["SplitRecord", "choose_images"]

_SPLIT_FILE = "split.csv"
# Settings of the data that change a split, that name the images to evaluate, and that name other images.
_SPLITTING = ("seed", "val_fraction", "test_fraction", "samples_per_class")
_EVALUATED = {"test": {"test", "test_root"}, "predict": {"test", "test_root"}, "validate": {"val"}}
_PLACES = {*RESULT_INVARIANT, "train", "val", "test", "test_root", "lists", "split"}


class SplitRecord(Callback):
    """Write the split into the run's folder when training begins, and its digest and fingerprint into checkpoints."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Warn of images that an evaluation does not use."""
        if stage in ("validate", "test"):
            trainer.datamodule.warn_of_left_out()  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data, file = trainer.datamodule, run_folder(trainer) / _SPLIT_FILE  # type: ignore[attr-defined]
        if trainer.fast_dev_run or not isinstance(pl_module, Classifier):  # type: ignore[attr-defined]
            return
        is_kept = pl_module.split is not None and file.is_file()  # by a run that is resumed
        if trainer.is_global_zero and not is_kept:
            pl_module.split = {"digest": data.save_split(file), "sample": fingerprint_of(data.samples("train"))}
        if trainer.is_global_zero and pl_module.distillation is not None and data.has_validation:
            for teacher in pl_module.distillation.of_other_splits(pl_module.split or {}):
                rank_zero_warn(
                    f"the teacher {teacher} was trained on another split, perhaps on validation images of this one, "
                    "which then overestimate the accuracy: --data.split_file with the split.csv of its run avoids that"
                )


def choose_images(
    data: ImageDataModule, subcommand: str, given: Collection[str], checkpoint: Mapping[str, Any], path: Path
) -> None:
    """Split the data as in the training of a checkpoint, or take images that the network has not seen.

    Images of an automatic size are prepared as in the training.

    The split of the checkpoint's run is used if the data are those of the run, wherever they are by now. Other labeled
    images are all evaluated, unless they have a test or validation set of their own or one is asked for.

    Args:
        data: New data module, which has not used its `split_file` yet.
        subcommand: `fit`, `validate`, `test` or `predict`.
        given: Names of the options on the command line.
        checkpoint: Content of the checkpoint.
        path: File of the checkpoint.

    Raises:
        UserError: The images can't be split as they were in training, or the checkpoint does not record the split.
    """
    if data.image_size == "auto":
        trained = checkpoint["image_format"] or {}
        data.image_size = trained.get("image_size")
        data.resize = trained.get("resize") if data.resize is None else data.resize
    if subcommand == "predict" and data.predict_dir is not None:
        return
    settings = {name.removeprefix("--data.") for name in given if name.startswith("--data.")}
    names_file = "split_file" in settings
    if settings & _EVALUATED.get(subcommand, set()):
        if names_file:
            data.use_split(str(data.split_file))
        return
    record = checkpoint.get("split")
    if not isinstance(record, dict) or not {"digest", "sample"} <= record.keys():
        raise UserError(
            f"{relative_path(path)} does not say which images it was trained on: take a checkpoint that `fit` wrote "
            "(an on_save_checkpoint of your own has to call super())"
        )
    data.prepare_data()
    may_differ = {"-c", "--config", "--data", "--model"} & set(given) or settings & _PLACES
    if (
        subcommand != "fit"
        and may_differ
        and not has_fingerprint(images := data.all_images().identified(), record["sample"])
    ):
        if not names_file and settings & _PLACES:
            data.split_file = None  # that of a config is about the images that the config names
        if data.split_file is not None:
            data.use_split(data.split_file)
        subset: Split = "val" if subcommand == "validate" else "test"
        asks_for_split = data.split_file is not None or "test_fraction" in settings
        if isinstance(data, HeldOutDataModule) and not asks_for_split:
            data.use_all_for(subset)
        if subcommand != "predict" and count_known(images, record["sample"]):
            evaluated = data.official(subset)
            if evaluated is not None and (known := count_known(evaluated, record["sample"])):
                rank_zero_warn(
                    f"{known} of {plural(len(record['sample']), 'training image')} of {relative_path(path)} in a "
                    "sample are among the evaluated images: the metrics overestimate the accuracy on new images"
                )
        return
    changed = next((f"--data.{name}" for name in _SPLITTING if name in settings), None)
    run = run_of(path)
    recorded = None if run is None else run / _SPLIT_FILE
    if recorded is not None and recorded.is_file() and not names_file and changed is None:
        data.split_file = relative_path(recorded)
    if data.split_file is not None and data.use_split(data.split_file) == record["digest"]:
        data.samples_per_class = None  # the file lists the subsample
    elif (digest := digest_of_split(data.split_rows())) != record["digest"]:
        split = f"the split with {changed}" if changed else data.split_file
        split = split or f"a new split ({recorded or _SPLIT_FILE} is missing, and images were added or removed)"
        raise UserError(
            f"{split} is not the one that {relative_path(path)} was trained with (digests {digest} and "
            f"{record['digest']}): training images may be among those of {subcommand}; the {_SPLIT_FILE} that `fit` "
            "wrote is needed, beside the run's config or as --data.split_file"
        )
