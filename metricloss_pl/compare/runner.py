"""One run of a comparison: trained as `fit` trains, then validated or tested once."""

from __future__ import annotations

import gc
import shutil
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, LearningRateMonitor, ProgressBar, Timer

from metricloss_pl.callbacks import CachedFeatures, EmbeddingPlot, GeometryMonitor, PredictionWriter
from metricloss_pl.callbacks.run_folder import CHECKPOINTS, LAST
from metricloss_pl.checkpoints import AtomicCheckpointIO
from metricloss_pl.cli.console import silence_lightning
from metricloss_pl.cli.errors import format_user_error, lightning_refusals
from metricloss_pl.cli.run_folder import LastCheckpoint, RunFolder
from metricloss_pl.cli.saved_config import SaveConfigAndSummary
from metricloss_pl.cli.split import SplitRecord
from metricloss_pl.compare.config import FIXED_LENGTH, ComparisonConfig, Factory, Range, Variant
from metricloss_pl.compare.plan import Run
from metricloss_pl.compare.run_files import RunFileFactory, listed
from metricloss_pl.compare.scoring import HistoryCallback, score, val_loader
from metricloss_pl.compare.search import Search, best_trial
from metricloss_pl.compare.store import Predictions, Result
from metricloss_pl.data import ImageDataModule
from metricloss_pl.errors import UserError, plural, reason, refusing
from metricloss_pl.metrics import Temperature
from metricloss_pl.regimes import Classifier
from metricloss_pl.states import check_finite

__all__ = ["Outcome", "Task", "build", "count_epochs", "empty_result", "execute", "make_trainer", "steps_per_epoch"]

# Callbacks that draw, write or measure for the sake of a single run.
_FOR_ONE_RUN = (Checkpoint, GeometryMonitor, LearningRateMonitor, PredictionWriter, ProgressBar)
_OF_FOLDER = (EmbeddingPlot, SaveConfigAndSummary, SplitRecord)
# With other values of these the Trainer would leave out images, or stop by the clock.
_COMPLETE = {
    "limit_train_batches": (None, 1.0),
    "limit_val_batches": (None, 1.0),
    "limit_test_batches": (None, 1.0),
    "overfit_batches": (0.0,),
    "fast_dev_run": (False,),
    "max_time": (None,),
}
_MAX_HALF = 65504.0


@dataclass(frozen=True)
class Task:
    """Everything that a process needs for one run.

    Args:
        run: The run.
        config: Comparison, as `ComparisonConfig.checked` returns it.
        fixed: Settings by dotted name that were `auto`.
        before: Results of the runs that it needs, in their order.
        folder: Folder to write as `fit` does. None: the run leaves no files.
        features_dir: Folder of cached features.
        embeddings: Whether to return the embeddings of the test images.
        by_position: Whether to name the test images by their position.
        threads: Threads of the run; another number may round differently.
    """

    run: Run
    config: ComparisonConfig
    fixed: Mapping[str, Any] = field(default_factory=dict)
    before: tuple[Result, ...] = ()
    folder: Path | None = None
    features_dir: Path | None = None
    embeddings: bool = False
    by_position: bool = False
    threads: int = 1

    @property
    def variant(self) -> Variant:
        """Variant of the run."""
        return self.config.variants[self.run.variant]

    @property
    def space(self) -> dict[str, Range]:
        """Ranges of the variant."""
        return self.config.space(self.run.variant)

    @property
    def factory(self) -> Factory:
        """Factory of the variant."""
        if self.variant.factory is not None:
            return self.variant.factory
        return RunFileFactory(str(self.variant.config), self.config.resolved_overrides(self.run.variant))

    @property
    def _middles(self) -> dict[str, Any]:
        return {name: values.at(0.5) for name, values in self.space.items()}

    @property
    def start(self) -> dict[str, Any]:
        """Values of the first trial: those of the run file that are in their ranges, or the middle of each range."""
        if self.run.trial != 0:
            return {}
        factory = self.factory
        if not isinstance(factory, RunFileFactory):
            return self._middles
        values = factory.values(self.space, self.fixed)
        return {name: value for name, value in values.items() if self.space[name].holds(value)}

    def settings(self, tuned: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings by dotted name: those that were `auto`, and tuned ones.

        A run file has values of its own before any trial; a factory is given the middle of each range.
        """
        own = {} if self.variant.factory is None else self._middles
        return {**own, **self.fixed, **tuned}


class Outcome(NamedTuple):
    """Result of a run, and of a final run its predictions."""

    result: Result
    predictions: Predictions | None


def execute(task: Task) -> Outcome:
    """Do a run, of which failing is a result as well."""
    begin, result = time.perf_counter(), empty_result(task.run)
    predictions, threads = None, torch.get_num_threads()
    torch.set_num_threads(task.threads)
    _remove(task.folder)  # what an attempt left whose process has died
    try:
        with silence_lightning():
            if task.run.kind == "trial":
                _trial(task, result)
            else:
                predictions = _final(task, result)
    except Exception as error:  # whatever it is, the other runs go on
        result |= {"status": "failed", "reason": format_user_error(error), "metrics": {}, "checkpoint": None}
        if result["reason"] is None:  # a bug
            traceback.print_exc()
            result["reason"] = f"{type(error).__name__}: {reason(error)}"
        _remove(task.folder)
    finally:
        torch.set_num_threads(threads)
    if torch.cuda.is_available():  # otherwise the next run may find no memory
        gc.collect()
        torch.cuda.empty_cache()
    result["seconds"] = round(time.perf_counter() - begin, 3)
    return Outcome(result, predictions)


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def empty_result(run: Run) -> Result:
    """Return the result of a run that has not begun."""
    return {
        "key": run.key, **run.metadata, "status": "ok", "reason": None, "settings": {}, "metrics": {}, "history": {},
        "steps": 0, "epochs": 0, "planned_epochs": 0, "seconds": 0.0, "images": {}, "folder": None, "checkpoint": None,
        "warnings": [],
    }  # fmt: skip


def _trial(task: Task, result: Result) -> None:
    metric = task.config.metric
    search = Search(task.config.tuning, task.space, task.run.trial or 0, task.before, metric, task.start)
    result["settings"] = task.settings(search.settings)
    judge = f"val/{metric}"
    module, data, arguments = build(task, search.settings)
    epochs = result["planned_epochs"] = count_epochs(task, data, arguments)
    history = HistoryCallback(epochs, True, lambda values: search.is_hopeless(values["epoch"] / epochs, values[judge]))
    trainer = _fit(task, module, data, arguments, history, result)
    if (values := history.hopeless) is not None:
        result["status"] = "pruned"
        result["reason"] = f"{judge} {values[judge]:.4f} after {values['epoch']} of {epochs} epochs"
        return
    scored = score(trainer, module, val_loader(trainer))
    temperature = Temperature()
    temperature.update(scored.scores, scored.labels)
    fitted = temperature.compute().item()
    result["metrics"] = {**scored.metrics("val", fitted), "val/temperature": fitted}
    result["images"]["val"] = len(scored.labels)
    history.record(trainer.current_epoch, result["metrics"])


def _final(task: Task, result: Result) -> Predictions:
    tuned: dict[str, Any] = {}
    temperature = 1.0
    if task.before:
        best = best_trial(task.before, task.config.metric)
        if best is None:
            raise UserError(f"none of {plural(len(task.before), 'trial')} has succeeded: {task.before[0]['reason']}")
        tuned = {name: best["settings"][name] for name in task.space}
        temperature = best["metrics"]["val/temperature"]
    result["settings"] = task.settings(tuned)
    module, data, arguments = build(task, tuned)
    epochs = result["planned_epochs"] = count_epochs(task, data, arguments)
    history = HistoryCallback(epochs, False, lambda values: False, temperature)
    trainer = _fit(task, module, data, arguments, history, result)
    data.setup("test")
    scored = score(trainer, module, data.test_dataloader())
    result["metrics"] = {**scored.metrics("test", temperature), "temperature": temperature}
    result["images"]["test"] = len(scored.labels)
    if isinstance(data, ImageDataModule):
        on_training = score(trainer, module, data.train_eval_dataloader())
        result["metrics"]["train/accuracy"] = on_training.metrics("train")["train/accuracy"]
    is_named = isinstance(data, ImageDataModule) and not task.by_position
    names = data.samples("test").names if is_named else range(len(scored.labels))  # type: ignore[attr-defined]
    points = scored.embeddings
    keeps = task.embeddings and points is not None and points.abs().max() < _MAX_HALF
    return Predictions(
        np.array(list(map(str, names))),
        scored.labels.numpy(),
        torch.softmax(scored.scores / temperature, dim=1).numpy(),
        points.half().numpy() if keeps and points is not None else None,
    )


def build(task: Task, tuned: Mapping[str, Any]) -> tuple[LightningModule, LightningDataModule, dict[str, Any]]:
    """Return network, data and Trainer arguments of a run, built after seeding.

    Raises:
        UserError: The factory returns something else, or arguments with which runs could not be compared.
    """
    seed_everything(task.run.seed, verbose=False)
    run, config = task.run, task.config
    built = task.factory(
        {
            "seed": run.seed, "split": run.split, "fold": run.fold, "folds": config.folds,
            "samples_per_class": run.size, "val_fraction": config.tuning.val_fraction if run.kind == "trial" else 0.0,
            **task.settings(tuned),
        }
    )  # fmt: skip
    kinds = (LightningModule, LightningDataModule, dict)
    if not (isinstance(built, tuple) and len(built) == 3 and all(map(isinstance, built, kinds))):
        raise UserError("a factory returns (LightningModule, LightningDataModule, dict of Trainer arguments)")
    module, data, arguments = built
    arguments = dict(arguments)
    for name, complete in _COMPLETE.items():
        value = arguments.get(name, complete[0])
        one_batch = type(value) is int and value == 1  # 1.0 is all
        if task.variant.category != "trivial" and (value not in complete or one_batch):
            raise UserError(
                f"trainer.{name} is {value}: compared runs use all images of their sets, for as many epochs "
                "or steps as the plan says; leave it out"
            )
    arguments["callbacks"] = listed(arguments.get("callbacks"))
    for callback in arguments["callbacks"]:
        if isinstance(callback, (EarlyStopping, Timer)):
            raise UserError(
                f"{type(callback).__name__} would stop some runs before others: leave it out, so that all variants "
                "train equally long"
            )
        if isinstance(callback, CachedFeatures) and callback.cache_dir is None and task.features_dir is not None:
            callback.cache_dir = str(task.features_dir)
    data.prepare_data()
    return module, data, arguments


def count_epochs(task: Task, data: LightningDataModule, arguments: Mapping[str, Any]) -> int:
    """Return the epochs of a run, of which `steps` fill whole ones.

    Raises:
        UserError: The Trainer arguments count steps, or have no length.
    """
    if task.variant.category in FIXED_LENGTH:
        return 1
    epochs, most = arguments.get("max_epochs"), arguments.get("max_steps", -1)
    if most != -1:
        raise UserError(f"trainer.max_steps is {most}: a comparison counts epochs; leave it out, and give epochs")
    config = task.config
    if task.variant.factory is not None:  # a run file has been given those of the plan
        epochs = config.epochs or epochs
    if task.run.kind == "trial":
        epochs = config.tuning.epochs or epochs
    if config.steps is not None:
        epochs = max(1, round(config.steps / steps_per_epoch(data, arguments)))
    if epochs is None or epochs < 1:
        raise UserError(f"trainer.max_epochs is {epochs}: a comparison counts epochs; give epochs")
    return int(epochs)


def steps_per_epoch(data: LightningDataModule, arguments: Mapping[str, Any]) -> int:
    """Return the optimizer steps per epoch, the last of which may have fewer batches."""
    if isinstance(data, ImageDataModule):
        batches = data.batches_in_epoch()
    else:
        data.setup("fit")
        batches = len(data.train_dataloader())
    return -(-batches // int(arguments.get("accumulate_grad_batches", 1)))


def make_trainer(
    arguments: Mapping[str, Any], callbacks: Iterable[Callback], epochs: int, folder: Path | None = None
) -> Trainer:
    """Return the Trainer of a run, which writes into a folder as `fit` does, or nothing.

    Raises:
        UserError: An argument is refused, or asks for several processes.
    """
    own = [callback for callback in arguments["callbacks"] if not isinstance(callback, _FOR_ONE_RUN)]
    if folder is None:
        own = [callback for callback in own if not isinstance(callback, _OF_FOLDER)]
    else:
        for callback in own:
            if isinstance(callback, EmbeddingPlot):  # once, at the end
                callback.every_n_epochs = epochs
            elif isinstance(callback, SaveConfigAndSummary):
                callback.config.trainer.max_epochs = epochs
        own = [RunFolder(folder, str(folder.parent), folder.name, True), *own, LastCheckpoint()]
    given = dict(arguments)
    if given.get("devices") in (None, "auto", -1, "-1"):
        given["devices"] = 1
    if folder is not None:
        given["plugins"] = [*listed(given.get("plugins")), AtomicCheckpointIO()]
    given |= {
        "max_epochs": epochs,
        "logger": False,
        "enable_checkpointing": folder is not None,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "callbacks": [*own, *callbacks],
    }
    with lightning_refusals("trainer"), refusing("lightning", (TypeError, ValueError), "trainer: {}"):
        trainer = Trainer(**given)
    if trainer.world_size > 1:
        raise UserError(
            f"trainer.devices asks for {trainer.world_size} processes, and a compared run has one: leave it out, and "
            "give n_parallel, the number of runs at a time"
        )
    return trainer


def _fit(
    task: Task,
    module: LightningModule,
    data: LightningDataModule,
    arguments: dict[str, Any],
    history: HistoryCallback,
    result: Result,
) -> Trainer:
    """Train, and note in the result how far the training came, even if it fails."""
    if isinstance(module, Classifier):  # the history has the validation
        arguments = {**arguments, "limit_val_batches": 0}
    trainer = make_trainer(arguments, [history], result["planned_epochs"], task.folder)
    folder = next((one for one in trainer.callbacks if isinstance(one, RunFolder)), None)  # type: ignore[attr-defined]
    if folder is not None:
        folder.attach(trainer)
    try:
        with lightning_refusals():
            trainer.fit(module, data, weights_only=True)
    finally:
        result |= {"history": history.history, "steps": trainer.global_step, "epochs": trainer.current_epoch}
    if history.hopeless is None:
        history.record(trainer.current_epoch)
    check_finite(module.state_dict(), "at the end of the training")
    if isinstance(data, ImageDataModule):
        result["images"] = {"train": len(data.samples("train")), "val": 0, "test": 0}
    else:
        dataset = getattr(trainer.train_dataloader, "dataset", ())
        result["images"] = {"train": len(dataset) if hasattr(dataset, "__len__") else 0, "val": 0, "test": 0}
    if task.folder is not None:
        result["checkpoint"] = f"{CHECKPOINTS}/{LAST}"
    module.to(trainer.strategy.root_device)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CachedFeatures):
            for split in ("train", "val", "test"):
                callback.provide(trainer, module, split)
    trainer.limit_val_batches = 1.0
    return trainer
