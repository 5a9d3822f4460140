"""Settings and final metrics of a run, for its loggers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

__all__ = ["SettingsLog"]

_OF_THE_TRAINER = ("max_epochs", "max_steps", "precision", "accumulate_grad_batches", "gradient_clip_val")


class SettingsLog(Callback):
    """Log the settings of model, data and training under the names of their flags, and at the end the final metrics.

    Lightning would log the model's arguments alone, with an entry of its own among them. TensorBoard shows what is
    logged here in its tab HPARAMS, where it needs metrics beside the settings.

    Args:
        config: Config of the run, as it was parsed.
    """

    def __init__(self, config: Namespace) -> None:
        trainer = Namespace({name: config.trainer.get(name) for name in _OF_THE_TRAINER})
        parts = {"seed_everything": config.seed_everything, "data": config.data, "model": config.model}
        self.settings = {
            name: value for part, given in (*parts.items(), ("trainer", trainer)) for name, value in _flat(part, given)
        }

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.settings, metrics={})  # without, it makes up a metric of -1
            else:
                logger.log_hyperparams(self.settings)
            logger.log_graph(pl_module)  # what Lightning does beside it, for loggers that were told to
            logger.save()

    def log_metrics(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Log the final metrics beside the settings, once a fit has ended.

        Args:
            trainer: Trainer of the fit.
            metrics: Values by name, such as `best val/accuracy` and `test/accuracy`. Empty: those of training count.
        """
        # The tab is empty without a metric. A name with a space in it would be another one in TensorBoard.
        found = {name.replace(" ", "/"): float(value) for name, value in (metrics or trainer.callback_metrics).items()}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.settings, metrics=found, step=trainer.global_step)
                logger.finalize("success")


def _flat(name: str, value: Any) -> Iterator[tuple[str, bool | int | float | str]]:
    """Yield the plain settings within a part of the config, of a class its name, too; None is no setting."""
    if isinstance(value, Namespace) and "class_path" in value:
        yield name, value.class_path.rpartition(".")[2]
        value = value.get("init_args")
    if isinstance(value, (Namespace, dict)):
        for key, item in vars(value).items() if isinstance(value, Namespace) else value.items():
            yield from _flat(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Namespace) for item in value):
        for number, item in enumerate(value):
            yield from _flat(f"{name}.{number}", item)
    elif isinstance(value, (bool, int, float, str)):
        yield name, value
    elif value is not None:
        yield name, getattr(value, "__name__", str(value))
