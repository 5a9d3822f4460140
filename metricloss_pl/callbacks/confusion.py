"""Confusion matrix of the test set."""

from __future__ import annotations

import csv
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torchmetrics.classification import MulticlassConfusionMatrix

from metricloss_pl.callbacks.evaluation import check_model
from metricloss_pl.callbacks.run_folder import run_folder
from metricloss_pl.errors import plural
from metricloss_pl.files import note_command, replacing, stem_of_result

__all__ = ["ConfusionMatrixPlot"]


class ConfusionMatrixPlot(Callback):
    """Confusion matrix of `test`, as `<run>/figures/confusion_matrix.png` with the counts in a `.csv`.

    Rows are true classes, columns predicted ones; exact under several processes. The matrix of another command is kept,
    and the new one is named `confusion_matrix_2.png` and so on.
    """

    command: str | None = None  # recorded with the result; set by the command line

    def __init__(self) -> None:
        self._counts: MulticlassConfusionMatrix | None = None

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = check_model(self, pl_module)
        self._counts = MulticlassConfusionMatrix(model.num_classes, validate_args=False).to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._counts is not None
        self._counts.update(outputs["predictions"], outputs["labels"])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._counts is not None
        counts = self._counts.compute().cpu().numpy()
        folder = run_folder(trainer) / "figures"
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        from metricloss_pl import plots

        names = check_model(self, pl_module).class_names
        correct = counts.trace() / max(counts.sum(), 1)
        title = f"{plural(counts.sum(), 'test image')}, {100 * correct:.2f} % correct"
        figure = plots.confusion_matrix(counts, names, title=title)
        stem = stem_of_result(folder, "confusion_matrix", self.command)
        plots.save_figure(figure, folder / f"{stem}.png")
        table = folder / f"{stem}.csv"
        with replacing(table) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["true \\ predicted", *names])
            writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
        note_command(table, self.command)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("confusion matrix", figure, trainer.global_step)
