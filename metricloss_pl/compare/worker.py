"""One run in this process: trained, tested or validated once, and everything that the report needs of it."""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from metricloss_pl.checkpoints import check_finite
from metricloss_pl.cli.errors import format_user_error, lightning_refusals
from metricloss_pl.compare.costs import Cost
from metricloss_pl.compare.plan import Comparison, Plan, Run
from metricloss_pl.compare.recording import Clock, Recorder, Scores
from metricloss_pl.compare.results import Line
from metricloss_pl.compare.settings import Built, RunFiles
from metricloss_pl.compare.tuning import MEASUREMENTS, Search, best_trial
from metricloss_pl.data.folds import FoldDataModule
from metricloss_pl.environment import collect_environment, peak_memory
from metricloss_pl.errors import UserError, plural, reason, refusing
from metricloss_pl.metrics import Temperature

__all__ = ["Worker"]

_FEW_STEPS = 6  # of a measured one
_MAX_HALF = 65504.0


class Worker:
    """Does the runs of a plan, one after the other.

    Args:
        comparison: As :meth:`~metricloss_pl.compare.Comparison.checked` gives it.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.files = RunFiles()

    # ------------------------------------------------------------------------------------------------------- a run

    def run(self, plan: Plan, run: Run, done: Mapping[str, Line]) -> tuple[Line, dict[str, np.ndarray] | None]:
        """Does a run.

        Args:
            plan: The plan that it is of.
            run: One whose :meth:`~metricloss_pl.compare.plan.Plan.awaited` runs are done.
            done: Their lines, at least, by key.

        Returns:
            The line for the results, and a final run's arrays: ``probabilities (N, C)``, ``labels (N,)``,
            ``names (N,)`` and ``embeddings (N, D)``. A failure of the run is a result as well.
        """
        begin = time.perf_counter()
        line: Line = {
            "key": run.key,
            **run.place,
            "settings": {},
            "status": "ok",
            "reason": None,
            "metrics": {},
            "history": {},
            "seconds": 0.0,
            "steps": 0,
            "epochs": 0,
            "predictions": None,
        }
        arrays = None
        try:
            if run.kind == "trial":
                self._trial(plan, run, [done[other.key] for other in plan.awaited(run)], line)
            else:
                arrays = self._final(run, [done[other.key] for other in plan.awaited(run)], line)
        except Exception as error:  # whatever it is, the other runs go on
            line["status"] = "failed"
            line["reason"] = format_user_error(error)
            if line["reason"] is None:  # a bug
                traceback.print_exc()
                line["reason"] = f"{type(error).__name__}: {reason(error)}"
            line["metrics"] = {}
        if torch.cuda.is_available():  # else the next run may find no room
            gc.collect()
            torch.cuda.empty_cache()
        line["seconds"] = round(time.perf_counter() - begin, 3)
        return {**line, **collect_environment(), "date": datetime.now(UTC).isoformat(timespec="seconds")}, arrays

    def _trial(self, plan: Plan, run: Run, before: Sequence[Line], line: Line) -> None:
        tuning, space = self.comparison.tuning, self.comparison.space(run.variant)
        base = self._settings(run)
        search = Search(tuning, space, run.trial or 0, before, self.comparison.metric)
        line["settings"] = {**self._sized(run), **search.settings}
        built = self.build(run, {**base, **search.settings})
        epochs = _epochs(built.trainer)
        judge = f"val/{self.comparison.metric}"
        recorder = Recorder(epochs, lambda values: search.hopeless(values["epoch"] / epochs, values[judge]))
        trainer = _fit(built, recorder, line)
        if (values := recorder.hopeless) is not None:
            line["status"] = "pruned"
            line["reason"] = f"{judge} {values[judge]:.4f} after {values['epoch']} of {epochs} epochs"
            return
        scores = Scores(built.model)
        trainer.callbacks.append(scores)  # type: ignore[attr-defined]
        trainer.validate(built.model, built.data, verbose=False)
        temperature = Temperature()
        temperature.update(scores.class_scores, scores.labels)
        fitted = temperature.compute()
        logits = scores.class_scores.double() / fitted.double()
        line["metrics"] = {
            **_numbers(trainer),
            "val/nll": torch.nn.functional.cross_entropy(logits, scores.labels).item(),
            "val/temperature": fitted.item(),
            "train/accuracy": recorder.history["train/accuracy"][-1],
        }

    def _final(self, run: Run, trials: Sequence[Line], line: Line) -> dict[str, np.ndarray]:
        tuned: dict[str, Any] = {}
        temperature = 1.0
        if trials:
            best = best_trial(trials, self.comparison.metric)
            if best is None:
                raise UserError(f"none of {plural(len(trials), 'trial')} has ended well: {trials[0]['reason']}")
            tuned = {name: best["settings"][name] for name in self.comparison.space(run.variant)}
            temperature = best["metrics"]["val/temperature"]
        line["settings"] = {**self._sized(run), **tuned}
        built = self.build(run, {**self._settings(run), **tuned})
        recorder = Recorder(_epochs(built.trainer))
        trainer = _fit(built, recorder, line)
        built.model.temperature = temperature
        scores = Scores(built.model)
        trainer.callbacks.append(scores)  # type: ignore[attr-defined]
        trainer.test(built.model, built.data, verbose=False)
        line["metrics"] = {
            **_numbers(trainer),
            "temperature": temperature,
            "train/accuracy": recorder.history["train/accuracy"][-1],
        }
        points = scores.points
        return {
            "probabilities": built.model.probabilities(scores.class_scores.to(built.model.device)).cpu().numpy(),
            "labels": scores.labels.numpy(),
            "names": np.array(built.data.samples("test").names),
            **({"embeddings": points.half().numpy()} if points.abs().max() < _MAX_HALF else {}),
        }

    # ---------------------------------------------------------------------------------------------------- settings

    def _sized(self, run: Run) -> dict[str, Any]:
        """What the plan itself sets, as the results name it."""
        sized: dict[str, Any] = {"data.samples_per_class": run.samples_per_class, "data.seed": run.split}
        sized["seed_everything"] = run.seed
        if run.kind == "final":
            return {**sized, "data.val_fraction": 0}
        tuning = self.comparison.tuning
        own = {"trainer.max_epochs": tuning.epochs, "data.val_fraction": tuning.val_fraction}
        return {**sized, **{name: value for name, value in own.items() if value is not None}}

    def _settings(self, run: Run) -> dict[str, Any]:
        return {**self.comparison.overriding(run.variant), **self._sized(run)}

    def _parse(self, variant: str, settings: Mapping[str, Any]) -> Any:
        return self.files.parse(self.comparison.variants[variant].config, settings)

    def build(self, run: Run, settings: Mapping[str, Any] | None = None) -> Built:
        """The network, the data and the Trainer's settings of a run.

        Args:
            run: The run.
            settings: What its config is overridden with. None: what is known before any tuning.
        """
        config = self._parse(run.variant, self._settings(run) if settings is None else settings)
        seed_everything(run.seed, verbose=False)
        built = self.files.build(config)
        if run.fold is not None:
            assert self.comparison.folds is not None
            built = built._replace(data=FoldDataModule.of(built.data, self.comparison.folds, run.fold, run.split))
        if self.comparison.steps is not None:
            built.data.prepare_data()
            built.trainer["max_epochs"] = max(1, round(self.comparison.steps / _steps_in_epoch(built)))
        return built

    # ------------------------------------------------------------------------------------------------------ the cost

    def measure(self, run: Run) -> Cost:
        """Trains a final run for a few steps, to an epoch's end, and tests it not at all."""
        begin = time.perf_counter()
        built = self.build(run)
        clock = Clock()
        epochs = _epochs(built.trainer)
        # Without the check of logged losses: the config's own learning rate may diverge, and trials choose another one.
        built.trainer.update(max_epochs=1, limit_train_batches=_FEW_STEPS, log_every_n_steps=0)
        recorder = Recorder(1)
        trainer = _trainer(built, [clock, recorder])
        with lightning_refusals():
            trainer.fit(built.model, built.data)
        batch = float(np.median(clock.batches[1:] or clock.batches))
        measured = recorder.seconds / len(built.data.samples("train"))  # an image
        images = MEASUREMENTS * len(built.data.samples("train"))
        around = max(0.0, time.perf_counter() - begin - sum(clock.batches) - recorder.seconds)
        accelerator = trainer.strategy.root_device.type == "cuda"
        memory = torch.cuda.max_memory_reserved() if accelerator else peak_memory()
        return Cost(
            training=epochs * built.data.batches_in_epoch() * batch,
            around=around + images * measured,
            steps=epochs * _steps_in_epoch(built),
            epochs=epochs,
            val_fraction=self._val_fraction(run.variant),
            gigabytes=memory / 1e9,
            accelerator=accelerator,
        )

    def _val_fraction(self, variant: str) -> float:
        """The share of the training images on which a variant's trials are validated."""
        if self.comparison.tuning.val_fraction is not None:
            return self.comparison.tuning.val_fraction
        return float(self._parse(variant, self.comparison.overriding(variant)).data.init_args.val_fraction)


# ------------------------------------------------------------------------------------------------------------ training


def _trainer(built: Built, callbacks: Sequence[Callback]) -> Trainer:
    ours = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "callbacks": [*built.callbacks, *callbacks],
    }
    with lightning_refusals("trainer"), refusing("lightning", ValueError, "trainer: {}"):
        trainer = Trainer(**{**built.trainer, **ours})
    if trainer.world_size > 1:
        raise UserError(
            f"trainer.devices asks for {trainer.world_size} processes, and a compared run has one: set it to 1, and "
            "--jobs to so many runs side by side"
        )
    return trainer


def _fit(built: Built, recorder: Recorder, line: Line) -> Trainer:
    """Train; what came of it stands in the line, also of a training that fails."""
    # What the recorder measures holds the validation images, so that Lightning's own passes over them are not needed.
    line["settings"]["trainer.max_epochs"] = _epochs(built.trainer)
    built.trainer["limit_val_batches"], limit = 0, built.trainer.get("limit_val_batches")
    trainer = _trainer(built, [recorder])
    try:
        with lightning_refusals():
            trainer.fit(built.model, built.data)
    finally:
        line["history"], line["steps"], line["epochs"] = recorder.history, trainer.global_step, trainer.current_epoch
    check_finite(built.model.state_dict(), "at the end of the training")
    trainer.limit_val_batches = 1.0 if limit is None else limit
    return trainer


def _steps_in_epoch(built: Built) -> int:
    """Of the optimizer, the last of which may have fewer batches."""
    return -(-built.data.batches_in_epoch() // int(built.trainer["accumulate_grad_batches"]))


def _epochs(trainer: Mapping[str, Any]) -> int:
    epochs, most = trainer["max_epochs"], trainer["max_steps"]
    counted = "a comparison counts in epochs, so that every variant trains equally long; give"
    if most != -1:
        raise UserError(f'trainer.max_steps is {most}: {counted} --overrides "{{trainer.max_steps: -1}}"')
    if epochs is None or epochs < 1:
        raise UserError(f"trainer.max_epochs is {epochs}: {counted} --epochs")
    return int(epochs)


def _numbers(trainer: Trainer) -> dict[str, float]:
    values = {name: value.item() for name, value in trainer.callback_metrics.items()}
    parts = ("val/", "test/")
    return {name: value for name, value in values.items() if name.startswith(parts) and math.isfinite(value)}
