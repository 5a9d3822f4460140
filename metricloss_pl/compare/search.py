"""Search for settings: which ones a trial tries, when it is stopped early, and which trial is best."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from metricloss_pl.compare.config import Metric, Range, Tuning
from metricloss_pl.compare.store import Result
from metricloss_pl.errors import UserError

if TYPE_CHECKING:
    import optuna

__all__ = ["MEASUREMENTS", "Search", "best_run", "best_trial", "check_optuna", "score_of"]

MEASUREMENTS = 10  # of a training, at shares of its length, since epochs depend on the batch size
_DIMENSIONS = 16  # of the first trials' design: other numbers of settings do not change it
_JUDGES = 3  # complete trials before the median stops one


def check_optuna() -> None:
    """Refuse tuning without Optuna.

    Raises:
        UserError: It is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            'tuning needs Optuna, which is not installed: pip install "metricloss_pl[compare]", or use the values of '
            "the run files with --tuning.trials 0"
        )


def score_of(result: Result, metric: Metric) -> float:
    """Return the validation metric of a trial; 0 if it failed."""
    value = result["metrics"].get(f"val/{metric}") if result["status"] == "ok" else 0.0
    return 0.0 if value is None else float(value)


def best_trial(results: Sequence[Result], metric: Metric) -> Result | None:
    """Return the trial with the best metric, of equal ones that with the least cross-entropy; None: none succeeded."""

    def rank(result: Result) -> tuple[float, float]:
        nll = result["metrics"].get("val/nll")
        return score_of(result, metric), -math.inf if nll is None else -nll

    return max((result for result in results if result["status"] == "ok"), key=rank, default=None)


def best_run(plan: Mapping[str, Any], results: Mapping[str, Result]) -> str | None:
    """Return the key of the final run to use further, chosen on validation images only.

    Its variant has the best validation metric at the largest size, the mean over folds and splits of their best trials;
    of equal variants, and without tuning, it is the baseline or else the first. It is the first run of that variant.

    Args:
        plan: Content of plan.json.
        results: Results by key, in the order of the plan.
    """
    searches: dict[str, dict[Any, list[Result]]] = {}
    for result in results.values():
        if result["kind"] == "trial" and result["size"] == plan["sizes"][-1]:
            place = (result["split"], result["fold"])
            searches.setdefault(result["variant"], {}).setdefault(place, []).append(result)
    scores = {}
    for variant, found in searches.items():
        best = [best_trial(trials, plan["metric"]) for trials in found.values()]
        scores[variant] = sum(0.0 if one is None else score_of(one, plan["metric"]) for one in best) / len(best)
    names = sorted(plan["variants"], key=lambda name: (-scores.get(name, 0.0), name != plan["baseline"]))
    for name in names if scores else [plan["baseline"]]:
        for key, result in results.items():
            is_first = result["kind"] == "final" and result["variant"] == name and result["size"] == plan["sizes"][-1]
            if is_first and result["status"] == "ok":
                return key
    return None


class Search:
    """One trial: its settings from earlier trials, and whether it is hopeless.

    Both depend on the plan and on those trials only, not on what runs at the same time, so that an interrupted
    comparison continues as if it had not been interrupted.

    Args:
        tuning: Budget and pruner.
        space: Ranges in their order.
        trial: Number of the trial.
        before: Results of the trials of earlier rounds, in their order.
        metric: Metric that compares trials.
        start: Values of the first trial; it takes others from the design of the first trials.
    """

    def __init__(
        self,
        tuning: Tuning,
        space: Mapping[str, Range],
        trial: int,
        before: Sequence[Result],
        metric: Metric,
        start: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=tuning.n_startup_trials, multivariate=True, seed=trial
            )
        study = optuna.create_study(direction="maximize", sampler=sampler, pruner=_pruner(tuning))
        distributions = {name: _distribution(values) for name, values in space.items()}
        for result in before:
            study.enqueue_trial({name: result["settings"][name] for name in space})
            past = study.ask(distributions)
            history = result["history"]
            if result["status"] != "failed":
                for epoch, value in zip(history["epoch"], history[f"val/{metric}"], strict=True):
                    _is_hopeless(past, epoch / result["planned_epochs"], value)
            if result["status"] == "pruned":
                study.tell(past, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(past, score_of(result, metric))
        if trial < tuning.n_startup_trials:
            study.enqueue_trial({**_design(space, trial), **(start if trial == 0 else {})})
        self._trial = study.ask(distributions)
        self.settings: dict[str, Any] = dict(self._trial.params)

    def is_hopeless(self, done: float, value: float) -> bool:
        """Return whether the trial should stop, given its validation metric after a share of its training."""
        return _is_hopeless(self._trial, done, value)


def _is_hopeless(trial: optuna.Trial, done: float, value: float) -> bool:
    trial.report(value, int(done * MEASUREMENTS + 1e-9))
    return trial.should_prune()


def _design(space: Mapping[str, Range], trial: int) -> dict[str, Any]:
    """Return a point of a scrambled Halton sequence, whose first dimensions are the same for any number of them."""
    from scipy.stats import qmc

    shares = qmc.Halton(max(_DIMENSIONS, len(space)), scramble=True, seed=0).random(trial + 1)[trial]
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
        "successive_halving": lambda: pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
        "none": pruners.NopPruner,
    }
    return made[tuning.pruner]()
