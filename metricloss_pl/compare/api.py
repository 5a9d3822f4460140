"""Comparison of classifiers, from Python and from the command line."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricloss_pl.cli.console import print_table, relative_path, silence_lightning
from metricloss_pl.compare.baselines import with_trivial
from metricloss_pl.compare.config import ComparisonConfig, Factory, KeepCheckpoints, Variant
from metricloss_pl.compare.driver import Driver
from metricloss_pl.compare.pretrained import with_pretrained
from metricloss_pl.compare.search import check_optuna
from metricloss_pl.compare.store import Store
from metricloss_pl.errors import UserError, check_choice
from metricloss_pl.files import FilePath

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """Comparison whose results are in a folder.

    Args:
        folder: Folder of the comparison.
    """

    folder: Path

    def table(self) -> pd.DataFrame:
        """Return a row per size and variant, with estimates, intervals and tests."""
        from metricloss_pl.compare.summary import Summary

        return Summary(self.folder).table

    def report(self) -> Path:
        """Write the report from the stored results, and return its page."""
        from metricloss_pl.compare.report import write_report

        return write_report(self.folder)


def compare(
    variants: Mapping[str, Variant | FilePath | Factory] | ComparisonConfig,
    output_dir: str | Path | None = None,
    n_parallel: int = 1,
    cluster: str | None = None,
    pretrained: str | None = None,
    keep_checkpoints: KeepCheckpoints = "best",
    dry_run: bool = False,
    retry_failed: bool = False,
    command: str | None = None,
    **config: Any,
) -> Comparison:
    """Compare classifiers on the same images: equal tuning, several seeds, one test of each run.

    A second call continues where the first one ended.

    Args:
        variants: Compared classifiers by name: run files, or factories, which are functions from the settings of a run
            to a LightningModule, a LightningDataModule and a dictionary of Trainer arguments. The settings are `seed`,
            `split`, `fold`, `folds`, `samples_per_class`, `val_fraction` and the tuned values by name. The module
            returns class scores (B, C) from `predict_step`, or from `forward`. Or a whole configuration.
        output_dir: Folder of the results. None: `runs/compare/<name>`.
        n_parallel: Runs at a time, each in a process of its own; they take turns with the GPUs, if there are any.
        cluster: Address of a Ray cluster that executes the runs, or `auto` for the one that this machine belongs to.
            None: this machine.
        pretrained: Pre-trained network, whose features and fine-tuning are added as variants: a name of timm or
            torchvision, or NAME=FILE with a file of its weights. None: no such variants.
        keep_checkpoints: Runs that leave checkpoint, log and figures: the `best` one on validation images, `all` final
            ones, or `none`.
        dry_run: Print the plan with its time and memory, and run nothing.
        retry_failed: Repeat final runs that have failed, and their trials if none of them succeeded.
        command: Command of the user, for the report.
        config: Arguments of `ComparisonConfig`, such as `seeds`, `sizes`, `tuning` and `baseline`.

    Raises:
        UserError: The plan can't be run; nothing has been run then.
    """
    if isinstance(variants, ComparisonConfig):
        plan = variants
    else:
        described = {
            name: given if isinstance(given, Variant)
            else Variant(factory=given) if callable(given) else Variant(config=str(given))
            for name, given in variants.items()
        }  # fmt: skip
        plan = ComparisonConfig(described, **config)
    if n_parallel < 1:
        raise UserError(f"n_parallel is {n_parallel}: at least 1 is needed")
    check_choice("keep_checkpoints", keep_checkpoints, KeepCheckpoints)
    with silence_lightning():
        plan = (plan if pretrained is None else with_pretrained(plan, pretrained)).checked()
        plan = with_trivial(plan) if plan.trivial else plan
    if plan.tuning.trials:
        check_optuna()
    store = Store(output_dir or Path("runs", "compare", plan.name or "comparison"))
    driver = Driver(plan, store, n_parallel, cluster, keep_checkpoints)
    with silence_lightning():
        driver.prepare(retry_failed)
    driver.announce()
    if dry_run:
        return Comparison(store.folder)
    store.write_plan(driver.describe(command))
    try:
        driver.run()
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped; the same command continues with what is in {relative_path(store.folder)}")
        raise
    driver.conclude()
    comparison = Comparison(store.folder)
    if importlib.util.find_spec("pandas") is None:
        print('note: the report needs pandas: pip install "metricloss_pl[compare]", then the same command writes it')
    else:
        print_table([("report", relative_path(comparison.report()))])
    return comparison
