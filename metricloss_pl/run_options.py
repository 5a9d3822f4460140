"""Options of a run besides data, model and Trainer, and the links from the data into the model."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from metricloss_pl import backbones, schedules  # noqa: F401  imported so that YAML may name their classes alone
from metricloss_pl.callbacks import BestCheckpoint, PredictionWriter
from metricloss_pl.errors import UserError

__all__ = ["LINKED", "RESULT_INVARIANT", "add_run_arguments", "check_settings", "link_facts_of_data"]

# Settings of the data that do not change a result: where the images are and how they are fetched.
RESULT_INVARIANT = ("root", "csv", "images_dir", "path", "download", "num_workers", "cache_gb")
# Properties of the data that a model receives if its constructor has an argument of this name.
LINKED = ("num_classes", "class_names", "hierarchy")


def add_run_arguments(parser: LightningArgumentParser) -> None:
    """Add the options of a run to a parser."""
    # LastCheckpoint writes last.ckpt.
    parser.add_class_arguments(BestCheckpoint, "checkpoint", skip={"save_last"}, fail_untyped=False)
    parser.add_lightning_class_args(PredictionWriter, "predictions")
    parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of the runs, with one folder per run.")
    parser.add_argument(
        "--resume", type=str | None, default=None, help="fit: folder of a run to continue from its last checkpoint."
    )
    parser.add_argument(
        "--save_every_n_steps",
        type=int | None,
        default=None,
        help="fit: steps between two writings of last.ckpt within an epoch; null: at the end of each epoch alone.",
    )
    parser.add_argument("--compile", type=bool, default=False, help="fit: train the backbone under torch.compile.")
    parser.add_argument(
        "--timeout_minutes", type=float, default=5.0, help="Minutes that processes wait for one that died or hangs."
    )
    parser.add_argument(
        "--test_after_fit", type=bool, default=False, help="fit: test the best checkpoint once at the end."
    )
    parser.add_argument(
        "--reject_quantile",
        type=float | None,
        default=None,
        help="fit: share of images of the known classes, such as 0.05, that predict may call unknown. The threshold, "
        "on the distance to the nearest class, is fitted on the validation set and kept in the checkpoint. "
        "validate: writes it into the checkpoint of --ckpt_path.",
    )


def link_facts_of_data(parser: LightningArgumentParser) -> None:
    """Link properties of the data into the model, on a parser that has the options of data, model and Trainer."""
    targets = {name: f"model.init_args.{name}" for name in LINKED}
    targets["in_channels"] = "model.init_args.backbone.init_args.in_channels"
    for name, target in targets.items():
        # From "data.num_classes" jsonargparse would silently drop a property that raises.
        parser.link_arguments("data", target, compute_fn=attrgetter(name), apply_on="instantiate")
    parser.set_defaults({"trainer.enable_model_summary": False})  # one line of the run's own summary replaces it


def check_settings(config: Any) -> None:
    """Refuse settings that the data determine, and a value that the Trainer would accept and fail on later.

    Args:
        config: Parsed config of a run.

    Raises:
        UserError: There is such a setting.
    """
    for name in LINKED:
        if config.model.get("init_args", {}).get(name) is not None:
            raise UserError(f"model.{name} comes from the data: leave it out")
    if (batches := config.trainer.accumulate_grad_batches) < 1:
        raise UserError(f"trainer.accumulate_grad_batches is {batches}: it must be at least 1")
