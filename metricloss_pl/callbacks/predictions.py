"""Predictions as files: one line per image, in the order of the data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from metricloss_pl.callbacks.evaluation import check_model
from metricloss_pl.callbacks.run_folder import model_digest, run_folder
from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import UserError, plural
from metricloss_pl.files import note_command, replacing, stem_of_result, writing_csv

__all__ = ["PredictionWriter", "columns_of", "row_of"]


def columns_of(rejects: bool, class_names: Sequence[str] = ()) -> list[str]:
    """Return the names of the columns of predictions: with a threshold also `rejected`, and perhaps all classes."""
    columns = ["file", "class", "probability", "runner_up", "runner_up_probability", *(["rejected"] if rejects else [])]
    return [*columns, *(f"probability_{name}" for name in class_names)]


def row_of(
    file: str,
    names: Sequence[str],
    classes: Sequence[int],
    probabilities: Sequence[float],
    rejected: bool | None = None,
    all_probabilities: Sequence[float] = (),
) -> list[str]:
    """Return the row of an image in the columns of `columns_of`.

    Args:
        file: Name of the image.
        names: Class names.
        classes: Labels of the most probable class and its runner-up.
        probabilities: Their probabilities.
        rejected: Whether it is of no known class. None: the model has no threshold.
        all_probabilities: Probabilities of all classes, for their columns.
    """
    row = [text for label, p in zip(classes, probabilities, strict=True) for text in (names[label], f"{p:.6f}")]
    flag = [] if rejected is None else ["true" if rejected else "false"]
    return [file, *row, *flag, *(f"{p:.6f}" for p in all_probabilities)]


class PredictionWriter(BasePredictionWriter):
    """Writer of a CSV file from `predict`: file, class, probability, runner-up and its probability.

    If the model has a threshold of rejection, the column `rejected` says whether an image is of no known class.
    The file has the images of all processes in the order of the data set, each once. On the command line, a file of the
    default name that another command has written is kept, and the new one is named `predictions_2.csv` and so on.

    Args:
        path: CSV file to write. None: `predictions.csv` in the run's folder, or `predictions_test.csv` for the test
            set.
        embeddings: Whether to write `embeddings` (N, D), `files` (N,) and `classes` (N,) beside it, as `.npz`.

    Raises:
        UserError: The path is a folder or an `.npz` file.
    """

    command: str | None = None  # recorded with the result; set by the command line

    def __init__(self, path: str | None = None, embeddings: bool = False) -> None:
        super().__init__(write_interval="batch")  # with "epoch" Lightning would keep all probabilities in memory
        if path is not None and Path(path).is_dir():
            raise UserError(f"path of PredictionWriter is the folder {path}: it must be the CSV file to write")
        if path is not None and path.endswith(".npz"):
            raise UserError(
                f"path of PredictionWriter is {path}: it must be the CSV file; the .npz is written beside it"
            )
        self.path = path
        self.embeddings = embeddings
        self._rows: dict[str, list[Tensor]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            return
        check_model(self, pl_module)
        if self.path is not None and trainer.is_global_zero:
            try:  # now, not after the whole prediction
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"--predictions.path {self.path}: its folder can't be made ({error.strerror})"
                ) from error
        self._rows = {}

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        # Only the two best are kept, so that memory does not grow with the number of classes.
        probabilities, classes = prediction["probabilities"].float().topk(2, dim=1)
        seen = sum(len(index) for index in self._rows.get("index", []))
        index = prediction.get("index")
        if index is None:
            index = torch.tensor(batch_indices) if batch_indices else torch.arange(seen, seen + len(classes))
        columns = {"index": index, "probabilities": probabilities, "classes": classes}
        if self.embeddings:
            columns["embeddings"] = prediction["embeddings"].float()
        if "rejected" in prediction:
            columns["rejected"] = prediction["rejected"]
        for name, column in columns.items():
            self._rows.setdefault(name, []).append(column.cpu())

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        rows = {name: torch.cat(column).numpy() for name, column in self._rows.items()}
        if trainer.world_size > 1:
            shares: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
            dist.gather_object(rows, shares)
            held = [share for share in shares or [] if share]
            rows = {name: np.concatenate([share[name] for share in held]) for name in (held[0] if held else [])}
        if not trainer.is_global_zero or not rows or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        _, first = np.unique(rows["index"], return_index=True)
        rows = {name: column[first] for name, column in rows.items()}
        path = self._default_path(trainer, folder) if self.path is None else Path(self.path)
        try:
            self._write(path, rows, _files(trainer, rows["index"]), check_model(self, pl_module).class_names)
            if self.path is None:
                note_command(path, self.command, **_facts(trainer))
        except OSError as error:
            raise UserError(f"predictions can't be written to {path} ({error.strerror}): give another path") from error

    def _default_path(self, trainer: Trainer, folder: Path) -> Path:
        data = getattr(trainer, "datamodule", None)
        of_test_set = isinstance(data, ImageDataModule) and data.predict_dir is None
        path = (
            folder / f"{stem_of_result(folder, 'predictions_test' if of_test_set else 'predictions', self.command)}.csv"
        )
        path.with_suffix(".npz").unlink(missing_ok=True)  # embeddings of other images, written before
        return path

    def _write(self, path: Path, rows: dict[str, Any], files: list[str], names: list[str]) -> None:
        with writing_csv(path) as writer:
            rejected = rows.get("rejected")
            writer.writerow(columns_of(rejected is not None))
            flags = [None] * len(files) if rejected is None else rejected.tolist()
            for name, *row in zip(files, rows["classes"], rows["probabilities"], flags, strict=True):
                writer.writerow(row_of(name, names, *row))
        print(f"predictions  {plural(len(files), 'image')} in {path}")
        if self.embeddings:
            classes = np.array(names)[rows["classes"][:, 0]]
            with replacing(path.with_suffix(".npz")) as beside:
                np.savez(beside, embeddings=rows["embeddings"], files=np.array(files), classes=classes)
            print(f"embeddings   {path.with_suffix('.npz')}")


def _facts(trainer: Trainer) -> dict[str, str | None]:
    """Return what tells which model predicts: its digest, and the views of each image."""
    checkpoint = trainer.ckpt_path
    digest = model_digest(checkpoint) if checkpoint and Path(checkpoint).is_file() else None
    return {"model_digest": digest, "tta": getattr(getattr(trainer, "datamodule", None), "tta", None)}


def _files(trainer: Trainer, index: Any) -> list[str]:
    """Return a name per image: its file where the data module knows it, else its index."""
    data: ImageDataModule | Literal[False] = getattr(trainer, "datamodule", None) or False
    known = data.predict_files if isinstance(data, ImageDataModule) else None
    return [known[i] if known is not None else str(i) for i in index.tolist()]
