"""Which settings a trial takes, when it is ended early, and which trial is the best."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metricloss_pl.compare.plan import MAX_SPACE, Metric, Range, Tuning
from metricloss_pl.compare.results import Line
from metricloss_pl.errors import UserError

if TYPE_CHECKING:
    import optuna

__all__ = ["MEASUREMENTS", "Search", "best_trial", "check_optuna", "score"]

_DESIGN_SEED = 0
MEASUREMENTS = 10  # of a training; shares of it, and not epochs, since these depend on the batch size
_JUDGES = 3  # whole trials before the median ends one


def check_optuna() -> None:
    """Refuse tuning without Optuna.

    Raises:
        UserError: It is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            'tuning needs Optuna, which is not installed: pip install "metricloss_pl[compare]", or take the '
            "configs' own values with --tuning.trials 0"
        )


def score(line: Line, metric: Metric) -> float:
    """A trial's result on the validation part; 0 where it failed."""
    value = line["metrics"].get(f"val/{metric}") if line["status"] == "ok" else 0.0
    return 0.0 if value is None else float(value)


def best_trial(lines: Sequence[Line], metric: Metric) -> Line | None:
    """The trial with the best accuracy, of equal ones that with the best probabilities; None: none ended well."""
    ended = [line for line in lines if line["status"] == "ok"]
    return max(ended, key=lambda line: (score(line, metric), -_nll(line)), default=None)


def _nll(line: Line) -> float:
    value = line["metrics"].get("val/nll")
    return math.inf if value is None else float(value)


class Search:
    """One trial: its settings from the trials before it, and whether it is hopeless.

    What it says depends on the plan and on those trials alone, not on what runs beside it, so that an interrupted
    comparison goes on as if it had not been.

    Args:
        tuning: The budget and the pruner.
        space: The ranges, in their order.
        trial: Number of the trial.
        before: The lines of the trials of earlier rounds, in their order.
        metric: By which trials are compared, also while they run.
    """

    def __init__(
        self,
        tuning: Tuning,
        space: Mapping[str, Range],
        trial: int,
        before: Sequence[Line],
        metric: Metric,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(n_startup_trials=tuning.startup, multivariate=True, seed=trial)
        study = optuna.create_study(direction="maximize", sampler=sampler, pruner=_pruner(tuning))
        distributions = {name: _distribution(values) for name, values in space.items()}
        for line in before:
            study.enqueue_trial({name: line["settings"][name] for name in space})
            past = study.ask(distributions)
            history = line["history"]
            if line["status"] != "failed":
                for epoch, value in zip(history["epoch"], history[f"val/{metric}"], strict=True):
                    _is_hopeless(past, epoch / line["settings"]["trainer.max_epochs"], value)
            if line["status"] == "pruned":
                study.tell(past, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(past, score(line, metric))
        if trial < tuning.startup:
            study.enqueue_trial(_design(space, trial))
        self._trial = study.ask(distributions)
        self.settings: dict[str, Any] = dict(self._trial.params)

    def hopeless(self, done: float, value: float) -> bool:
        """Whether the trial is to end, given its validation metric after so large a share of it."""
        return _is_hopeless(self._trial, done, value)


def _is_hopeless(trial: optuna.Trial, done: float, value: float) -> bool:
    trial.report(value, int(done * MEASUREMENTS + 1e-9))
    return trial.should_prune()


def _design(space: Mapping[str, Range], trial: int) -> dict[str, Any]:
    """The trial's place in a scrambled Halton sequence, whose first dimensions are the same for any number of them."""
    from scipy.stats import qmc

    shares = qmc.Halton(MAX_SPACE, scramble=True, seed=_DESIGN_SEED).random(trial + 1)[trial]
    return {name: values.at(float(share)) for (name, values), share in zip(space.items(), shares, strict=False)}


def _distribution(values: Range) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if values.choices is not None:
        return CategoricalDistribution(values.choices)
    assert values.low is not None
    assert values.high is not None
    return FloatDistribution(values.low, values.high, log=values.log)


def _pruner(tuning: Tuning) -> optuna.pruners.BasePruner:
    from optuna import pruners

    made: dict[str, Callable[[], pruners.BasePruner]] = {
        "median": lambda: pruners.MedianPruner(n_startup_trials=_JUDGES, n_warmup_steps=MEASUREMENTS // 4),
        "halving": lambda: pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
        "none": pruners.NopPruner,
    }
    return made[tuning.pruner]()
