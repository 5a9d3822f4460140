"""What a run file may say besides its data, model and trainer, and what the model learns from the data."""

from __future__ import annotations

import os
from operator import attrgetter
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from metricloss_pl import backbones, schedules  # noqa: F401  imported so that YAML may name their classes alone
from metricloss_pl.callbacks import BestCheckpoint, PredictionWriter
from metricloss_pl.errors import UserError

__all__ = [
    "LINKED",
    "RESULT_INVARIANT",
    "add_run_arguments",
    "check_settings",
    "link_facts_of_data",
    "with_absolute_paths",
]

# Settings of the data that decide no result: where they lie and how they are fetched.
RESULT_INVARIANT = ("root", "csv", "images_dir", "path", "download", "num_workers", "cache_gb")
# Settings that are paths. A relative one is taken from the folder that the program was started in.
_PATHS = (
    *("root", "test_root", "csv", "images_dir", "path", "predict_dir"),  # of data and predictions
    *("runs_dir", "dirpath", "save_dir", "save_path"),  # of what a run writes
)
LINKED = ("num_classes", "class_names", "hierarchy")  # what a model learns from the data, if it asks for it


def add_run_arguments(parser: LightningArgumentParser) -> None:
    """Add a run's own options to a parser."""
    parser.add_class_arguments(BestCheckpoint, "checkpoint", sub_configs=True, fail_untyped=False)
    parser.set_defaults(
        {
            "checkpoint.monitor": "val/accuracy",
            "checkpoint.mode": "max",
            "checkpoint.filename": "best",
        }
    )
    parser.add_lightning_class_args(PredictionWriter, "predictions")
    parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of the runs, with one folder per run.")
    parser.add_argument(
        "--resume", type=str | None, default=None, help="fit: folder of a run to continue from its last checkpoint."
    )
    parser.add_argument(
        "--save_every_n_steps",
        type=int | None,
        default=None,
        help="fit: write last.ckpt also within epochs, each time so many steps are done.",
    )
    parser.add_argument("--compile", type=bool, default=False, help="fit: train the backbone under torch.compile.")
    parser.add_argument(
        "--timeout_minutes", type=float, default=5.0, help="How long processes wait for one that died or hangs."
    )
    parser.add_argument(
        "--test_after_fit", type=bool, default=False, help="fit: test the best checkpoint once at the end."
    )


def link_facts_of_data(parser: LightningArgumentParser) -> None:
    """Link what the data tell into the model, on a parser that has the options of data, model and Trainer."""
    targets = {fact: f"model.init_args.{fact}" for fact in LINKED}
    targets["in_channels"] = "model.init_args.backbone.init_args.in_channels"
    for fact, target in targets.items():
        # Not from "data.num_classes": jsonargparse would leave out a fact whose property has a bug, without a word.
        parser.link_arguments("data", target, compute_fn=attrgetter(fact), apply_on="instantiate")
    parser.set_defaults({"trainer.enable_model_summary": False})  # the screen has one line for it


def check_settings(config: Any) -> None:
    """Refuse what a model learns from the data, and what the Trainer would take and fail on later.

    Args:
        config: Of a run, as it was parsed.

    Raises:
        UserError: There is such a setting.
    """
    for fact in LINKED:
        if config.model.get("init_args", {}).get(fact) is not None:
            raise UserError(f"model.{fact} comes from the data: leave it out")
    trainer = config.trainer
    if trainer.accumulate_grad_batches < 1:
        raise UserError(f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}: it must be at least 1")
    if trainer.gradient_clip_val is not None and trainer.gradient_clip_val < 0:
        raise UserError(f"trainer.gradient_clip_val is {trainer.gradient_clip_val}: it must be at least 0")


def with_absolute_paths(config: Any) -> Any:
    """Return a copy of a config that means the same from any folder.

    Args:
        config: Settings of a run, nested, as they were parsed in the current folder.
    """
    if isinstance(config, list):
        return [with_absolute_paths(item) for item in config]
    if not isinstance(config, (dict, Namespace)):
        return config
    copy = config.clone() if isinstance(config, Namespace) else dict(config)
    for name, value in list(vars(config).items() if isinstance(config, Namespace) else config.items()):
        is_path = name in _PATHS and isinstance(value, str) and "://" not in value
        copy[name] = os.path.abspath(value) if is_path else with_absolute_paths(value)
    return copy
