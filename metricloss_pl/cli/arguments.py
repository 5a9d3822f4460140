"""Arguments before they are parsed: their order, shipped configs, resumed runs, checkpoints without a config."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_warn

from metricloss_pl.callbacks.run_folder import CHECKPOINTS, CONFIG, LAST, run_of
from metricloss_pl.checkpoints import import_paths, is_trusted_run, read_checkpoint
from metricloss_pl.cli.console import relative_path
from metricloss_pl.config_files import BLOCKS, CONFIG_FLAGS, find_config, is_yaml, read_yaml
from metricloss_pl.errors import UserError, shell_command
from metricloss_pl.run_options import LINKED, RESULT_INVARIANT, check_settings

__all__ = [
    "SUBCOMMANDS",
    "check_options",
    "has_own_config",
    "name_of_run",
    "named_in",
    "option",
    "option_names",
    "options_first",
    "options_of",
    "prepare",
    "with_shipped_configs",
]

SUBCOMMANDS = ("fit", "validate", "test", "predict")


def check_options(config: Any, subcommand: str) -> None:
    """Refuse options of a run that are out of range or that another option replaces."""
    check_settings(config)
    if subcommand == "fit" and config.get("ckpt_path") is not None and config.resume is None:
        raise UserError(
            f"fit --ckpt_path {config.ckpt_path}: --resume RUN continues a run, and --model.backbone.weights FILE "
            "starts a new one from trained weights"
        )
    if (folder := config.trainer.default_root_dir) is not None:
        raise UserError(f"trainer.default_root_dir is {folder}: --runs_dir says where a run lives")
    for name in ("save_every_n_steps", "timeout_minutes"):
        if config[name] is not None and not 0 < config[name] < math.inf:
            raise UserError(f"--{name} is {config[name]}: it must be above 0 and finite")


def prepare(args: Sequence[str]) -> list[str]:
    """Return the arguments for the parser.

    Raises:
        UserError: There is nothing to resume, no data or model, no checkpoint to evaluate, or no config for it.
    """
    if not args or args[0] not in SUBCOMMANDS:
        return list(args)
    args = with_shipped_configs(_configs_first(args))
    args = _resume(args) if args[0] == "fit" else _complete_from_checkpoint(args)
    _check_completeness(args)
    return _replace_blocks(args)


def name_of_run(args: Sequence[str]) -> str | None:
    """Return the stem of the config and the blocks given in place of its own, such as `digits_softmax-center_tiny`."""
    options = list(options_of(args))
    configs = [Path(value).absolute() for name, value, _ in options if name in CONFIG_FLAGS and value]
    stems = [  # the saved config of a run stands for that run's name
        config.parent.parent.name if config.parent.name.startswith("version_") else config.stem for config in configs
    ]
    replaced = [
        Path(value).stem if is_yaml(value) else value.rpartition(".")[2]
        for name, value, _ in options
        if name in ("--data", "--model") and value and not value.lstrip().startswith("{")
    ]
    return "-".join([stems[-1], *replaced]) if stems else None


def with_shipped_configs(args: Sequence[str], kind: str = "") -> list[str]:
    """Return the arguments with the paths of shipped configs for names of YAML files that do not exist here.

    Args:
        args: Arguments of a subcommand.
        kind: Folder of the shipped configs that `--config` may be in.

    Raises:
        UserError: `--config` names a file that is neither here nor a shipped one.
    """
    args = list(args)
    for name, value, place in reversed(list(options_of(args))):
        block = name.removeprefix("--")
        if value is None or not is_yaml(value) or not (name in CONFIG_FLAGS or block in BLOCKS):
            continue
        found = find_config(value, block if block in BLOCKS else kind)
        if found != value:
            args[place] = [f"{'--config' if name in CONFIG_FLAGS else name}={found}"]
        elif name in CONFIG_FLAGS and not Path(value).exists():
            raise UserError(
                f"--config {value}: there is no such file and no shipped config of this name; "
                f"{shell_command('configs')} lists those"
            )
    return args


def option(args: Sequence[str], name: str) -> str | None:
    """Return the last value of an option given as `name value` or `name=value`."""
    return next((value for given, value, _ in reversed(list(options_of(args))) if given == name), None)


def option_names(args: Sequence[str]) -> set[str]:
    """Return the names of all options, such as `--data.root`."""
    return {name for name, _, _ in options_of(args)}


def options_of(args: Sequence[str]) -> Iterator[tuple[str, str | None, slice]]:
    """Yield name, value and place of each option; an argument that belongs to no option counts as one."""
    place = 0
    while place < len(args):
        arg, start = args[place], place
        place += 1
        name, equals, value = arg.partition("=")
        if not arg.startswith("-"):
            yield arg, None, slice(start, place)
        elif arg.startswith("-c") and len(arg) > 2:  # as in -cconfigs/digits_cosine.yaml
            yield "-c", arg[2:].removeprefix("="), slice(start, place)
        elif equals:
            yield name, value, slice(start, place)
        elif place < len(args) and not args[place].startswith("--"):
            place += 1
            yield name, args[place - 1], slice(start, place)
        else:
            yield name, None, slice(start, place)


def options_first(args: Sequence[str]) -> list[str]:
    """Return the arguments with the options before the files, which argparse takes from one place alone."""
    found = list(options_of(args))
    return [
        arg
        for is_file in (False, True)
        for name, _, place in found
        if name.startswith("-") != is_file
        for arg in args[place]
    ]


def has_own_config(args: Sequence[str]) -> bool:
    """Return whether the user names the config or the run; otherwise both come with the checkpoint."""
    return not option_names(args).isdisjoint([*CONFIG_FLAGS, "--model", "--resume"])


def named_in(args: Sequence[str]) -> set[str]:
    """Return the import paths in the values of the arguments, which may be YAML or name a YAML file."""
    paths: set[str] = set()
    for _, value, _ in options_of(args):
        is_file = is_yaml(value) and Path(str(value)).is_file()
        try:
            paths |= import_paths(_load(Path(str(value))) if is_file else yaml.safe_load(value or ""))
        except (yaml.YAMLError, UserError):  # the parser reports it
            continue
    return paths


def _configs_first(args: Sequence[str]) -> list[str]:
    """Put configs before whole blocks and those before single settings, since the parser lets the later one win."""

    def rank(option: tuple[str, str | None, slice]) -> int:
        return 0 if option[0] in CONFIG_FLAGS else 1 if option[0].removeprefix("--") in BLOCKS else 2

    subcommand, *others = args
    return [subcommand, *(arg for _, _, place in sorted(options_of(others), key=rank) for arg in others[place])]


def _resume(args: Sequence[str]) -> list[str]:
    """Return the arguments with the config and the last checkpoint of the run that `--resume` names."""
    run = option(args, "--resume")
    if run is None:
        return list(args)
    config, checkpoint = Path(run) / CONFIG, Path(run) / CHECKPOINTS / LAST
    for file in (config, checkpoint):
        if not file.is_file():
            raise UserError(f"--resume {run}: {file} is missing; give a run's folder, such as runs/<config>/version_0")
    for name in option_names(args):
        block, _, setting = name.partition(".")
        is_invariant = block == "--data" and setting in RESULT_INVARIANT
        if name in (*CONFIG_FLAGS, "--ckpt_path") or (block in ("--model", "--data") and not is_invariant):
            raise UserError(f"{name} with --resume: a run keeps its config, model and data; for others start a new run")
    return [args[0], f"--config={config}", f"--ckpt_path={checkpoint}", *args[1:]]


def _complete_from_checkpoint(args: Sequence[str]) -> list[str]:
    """Return the arguments, completed from the checkpoint if no config is given.

    The checkpoint supplies the config of its run, or for other data its network and the preparation of its images.
    """
    path, given = option(args, "--ckpt_path"), option_names(args)
    if path is None or given & {*CONFIG_FLAGS, "--model"}:
        return list(args)
    checkpoint = read_checkpoint(path)
    is_unlabeled = args[0] == "predict" and "--data.predict_dir" in given and "--data" not in given
    run = run_of(path)
    if run is not None and not is_unlabeled:
        return [args[0], f"--config={_config_for_evaluation(run)}", *args[1:]]
    if not is_unlabeled and "--data" not in given:
        raise UserError(
            f"--ckpt_path {path} is in no run's folder: give the --config that it was trained with too, or --data with "
            "the kind of data, such as --data ImageFolderDataModule --data.root FOLDER"
        )
    settings, images = dict(checkpoint["hyper_parameters"]), checkpoint.get("image_format")
    if "_class_path" not in settings or images is None:
        raise UserError(f"--ckpt_path {path} was written outside the command line: load it from Python")
    model = {"class_path": settings.pop("_class_path"), "init_args": settings}
    for name in ("_instantiator", *LINKED):
        settings.pop(name, None)
    if isinstance(backbone := settings.get("backbone"), dict):
        backbone.get("init_args", {}).pop("in_channels", None)
    images = {name: value for name, value in images.items() if f"--data.{name}" not in given}
    data = ["--data=metricloss_pl.data.UnlabeledFolderDataModule"] if is_unlabeled else []
    if is_unlabeled:
        images["class_names"] = checkpoint["class_names"]
    prepared = [f"--data.{name}={json.dumps(value)}" for name, value in images.items()]
    return [args[0], f"--model={json.dumps(model)}", *data, *args[1:], *prepared]


def _config_for_evaluation(run: Path) -> str:
    """Return the file of a run's config, or its text without the loggers and callbacks that are not trusted.

    An evaluation works without them, and the config beside a checkpoint is trusted no more than the checkpoint.
    """
    content = _load(run / CONFIG)
    trainer = content["trainer"]
    left_out = []
    for name in ("logger", "callbacks"):
        given = trainer.get(name)
        listed = given if isinstance(given, list) else [given]
        kept = [item for item in listed if is_trusted_run(item)]
        if len(kept) < len(listed):
            left_out += [str(item["class_path"]) for item in listed if item not in kept]
            trainer[name] = kept or None
    if not left_out:
        return str(run / CONFIG)
    rank_zero_warn(
        f"left out: {', '.join(left_out)}, which the config beside the checkpoint names; --config "
        f"{relative_path(run / CONFIG)} uses all that it names"
    )
    return yaml.safe_dump(content)


def _check_completeness(args: Sequence[str]) -> None:
    """Refuse arguments that lack a checkpoint to evaluate, data or a model."""
    given = option_names(args)
    for name in given:
        block, *rest = name.split(".")
        if (
            rest[-1:] == ["help"]
            and len(rest) > 1
            and block in ("--data", "--model")
            and not given & {*CONFIG_FLAGS, block}
        ):
            raise UserError(f"{name} is about a part of {block}: give {block} CLASS or --config FILE before it")
    if given & {"-h", "--help", "--print_config"} or any(name.endswith(".help") for name in given):
        return
    if args[0] != "fit" and "--ckpt_path" not in given:
        raise UserError(f"{args[0]} needs a trained network: give --ckpt_path with a checkpoint's file")
    if not (given & {*CONFIG_FLAGS} or {"--data", "--model"} <= given):
        raise UserError(f"{args[0]} needs data and a model: give --config with a run file, such as folder_cosine.yaml")


def _replace_blocks(args: Sequence[str]) -> list[str]:
    """Remove from the config the blocks that are given as files, whose settings would otherwise be merged."""
    options = list(options_of(args))
    replaced = {name[2:] for name, value, _ in options if name[2:] in BLOCKS and is_yaml(value)}
    args = list(args)
    for name, value, place in reversed(options if replaced else []):
        if name in CONFIG_FLAGS and value and is_yaml(value):
            kept = {key: block for key, block in _load(Path(value)).items() if key not in replaced}
            for block in BLOCKS:
                if isinstance(kept.get(block), str):
                    kept[block] = str(Path(value).absolute().parent / kept[block])
            args[place] = ["--config", yaml.safe_dump(kept)]
    return args


def _load(config: Path) -> dict[str, Any]:
    content = read_yaml(config, f"--config {config}")
    if not isinstance(content, dict):
        raise UserError(f"--config {config} holds no settings: a run file such as digits_cosine.yaml is needed")
    return content
