"""What the arguments mean, before they are parsed: resumed runs, checkpoints without a config, whole blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_warn

from metricloss_pl.checkpoints import import_paths, is_trusted_run, read_checkpoint
from metricloss_pl.cli.console import relative_path
from metricloss_pl.cli.run_folder import CONFIG, LAST, run_of
from metricloss_pl.config_files import BLOCKS, CONFIG_FLAGS, find_config, is_yaml, read_yaml
from metricloss_pl.errors import UserError, shell_command
from metricloss_pl.run_files import LINKED, RESULT_INVARIANT

__all__ = [
    "SUBCOMMANDS",
    "has_own_config",
    "name_of_run",
    "named_in",
    "option",
    "option_names",
    "options_of",
    "prepare",
    "with_shipped_configs",
]

SUBCOMMANDS = ("fit", "validate", "test", "predict")


def prepare(args: Sequence[str]) -> list[str]:
    """The arguments for the parser.

    Raises:
        UserError: A flag that a config after it would override, nothing to resume, or a checkpoint without a config.
    """
    if not args or args[0] not in SUBCOMMANDS:
        return list(args)
    _check_order(args)
    args = with_shipped_configs(args)
    args = _resume(args) if args[0] == "fit" else _complete_from_checkpoint(args)
    _check_completeness(args)
    return _replace_blocks(args)


def name_of_run(args: Sequence[str]) -> str | None:
    """The stem of the config, and what was put in its blocks' place: ``digits_softmax-center_tiny``."""
    options = list(options_of(args))
    configs = [Path(value).absolute() for name, value, _ in options if name in CONFIG_FLAGS and value]
    stems = [  # the saved config of a run means that run's name
        config.parent.parent.name if config.parent.name.startswith("version_") else config.stem for config in configs
    ]
    replaced = [
        Path(value).stem if is_yaml(value) else value.rpartition(".")[2]
        for name, value, _ in options
        if name in ("--data", "--model") and value and not value.lstrip().startswith("{")
    ]
    return "-".join([stems[-1], *replaced]) if stems else None


def with_shipped_configs(args: Sequence[str], kind: str = "") -> list[str]:
    """Return the arguments with shipped configs for names of YAML files that are no local ones.

    Args:
        args: Arguments of a subcommand.
        kind: Folder of the shipped configs that `--config` may lie in.

    Raises:
        UserError: `--config` names a file that is neither a local nor a shipped one.
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
    """The last value of an option given as ``name value`` or ``name=value``."""
    return next((value for given, value, _ in reversed(list(options_of(args))) if given == name), None)


def option_names(args: Sequence[str]) -> set[str]:
    """Return the names of all options, such as ``--data.root``."""
    return {name for name, _, _ in options_of(args)}


def options_of(args: Sequence[str]) -> Iterator[tuple[str, str | None, slice]]:
    """Name, value and place of each option."""
    place = 0
    while place < len(args):
        arg, start = args[place], place
        place += 1
        if not arg.startswith("-"):
            continue
        if arg.startswith("-c") and len(arg) > 2:  # glued, as in -cconfigs/digits_cosine.yaml
            yield "-c", arg[2:].removeprefix("="), slice(start, place)
            continue
        name, equals, value = arg.partition("=")
        if equals:
            yield name, value, slice(start, place)
        elif place < len(args) and not args[place].startswith("--"):
            place += 1
            yield name, args[place - 1], slice(start, place)
        else:
            yield name, None, slice(start, place)


def has_own_config(args: Sequence[str]) -> bool:
    """Return whether a user names the config or the run; else both come with the checkpoint."""
    return any(name in (*CONFIG_FLAGS, "--model", "--resume") for name, _, _ in options_of(args))


def named_in(args: Sequence[str]) -> set[str]:
    """Return the import paths in the arguments' values, which may be YAML or name a file of it."""
    paths: set[str] = set()
    for _, value, _ in options_of(args):
        is_file = is_yaml(value) and Path(str(value)).is_file()
        try:
            paths |= import_paths(_load(Path(str(value))) if is_file else yaml.safe_load(value or ""))
        except (yaml.YAMLError, UserError):  # the parser says what is wrong
            continue
    return paths


def _check_order(args: Sequence[str]) -> None:
    """A config overrides the flags before it, and a block its settings that stand before it, without a word."""
    seen: list[str] = []
    for name, _, _ in options_of(args):
        whole = name in CONFIG_FLAGS or name[2:] in BLOCKS
        overridden = [flag for flag in seen if name in CONFIG_FLAGS or (whole and flag.startswith(f"{name}."))]
        if overridden:
            name = "--config" if name in CONFIG_FLAGS else name
            raise UserError(f"{overridden[0]} stands before {name}, which would override it: give {name} first")
        if name not in CONFIG_FLAGS:
            seen.append(name)


def _check_completeness(args: Sequence[str]) -> None:
    """Without a config there is neither data nor a model."""
    given = {name for name, _, _ in options_of(args)}
    for name in given:
        block, *rest = name.split(".")
        if (
            rest[-1:] == ["help"]
            and len(rest) > 1
            and block in ("--data", "--model")
            and not given & {*CONFIG_FLAGS, block}
        ):
            raise UserError(f"{name} is about a part of {block}: give {block} CLASS or --config FILE before it")
    if given & {*CONFIG_FLAGS, "-h", "--help"} or any(name.endswith(".help") for name in given):
        return
    if args[0] != "fit" and "--ckpt_path" not in given:
        raise UserError(f"{args[0]} needs a trained network: give --ckpt_path with a checkpoint's file")
    if not {"--data", "--model"} <= given:
        raise UserError(
            f"{args[0]} needs to know data and model: give --config with a run file, such as folder_cosine.yaml"
        )


def _resume(args: Sequence[str]) -> list[str]:
    """``fit --resume RUN`` means RUN's config and its last checkpoint."""
    run = option(args, "--resume")
    if run is None:
        return list(args)
    if not Path(run).is_dir():
        raise UserError(f"--resume {run}: there is no such folder; give a run's, such as runs/<config>/version_0")
    config, checkpoint = Path(run) / CONFIG, Path(run) / "checkpoints" / LAST
    for file in (config, checkpoint):
        if not file.is_file():
            raise UserError(f"--resume {run}: nothing to resume, {file} is missing; give a run's folder")
    for name, _, _ in options_of(args):
        block, _, setting = name.partition(".")
        if (
            name in (*CONFIG_FLAGS, "--ckpt_path")
            or block == "--model"
            or (block == "--data" and setting not in RESULT_INVARIANT)
        ):
            raise UserError(
                f"{name} with --resume: a run goes on with its own config, checkpoint, model and data; for others "
                "start a new run"
            )
    return [args[0], f"--config={config}", f"--ckpt_path={checkpoint}", *args[1:]]


def _complete_from_checkpoint(args: Sequence[str]) -> list[str]:
    """Without a config, a checkpoint brings its run's, or the network and how images were prepared for other data."""
    path = option(args, "--ckpt_path")
    given = option_names(args)
    if path is None or given & {*CONFIG_FLAGS, "--model"}:
        return list(args)
    checkpoint = read_checkpoint(path)
    unlabeled = args[0] == "predict" and "--data.predict_dir" in given and "--data" not in given
    run = run_of(path)
    if run is not None and not unlabeled:
        return [args[0], f"--config={_config_of_run(run)}", *args[1:]]
    if not unlabeled and "--data" not in given:
        raise UserError(
            f"--ckpt_path {path} lies in no run's folder: give the --config that it was trained with too, or --data "
            "with the kind of data, such as --data ImageFolderDataModule --data.root FOLDER"
        )
    hparams = dict(checkpoint["hyper_parameters"])
    images = checkpoint.get("images")
    if "_class_path" not in hparams or images is None:
        raise UserError(f"--ckpt_path {path} was written outside the command line: load it from Python")
    model = {"class_path": hparams.pop("_class_path"), "init_args": hparams}
    for linked in ("_instantiator", *LINKED):
        hparams.pop(linked, None)
    backbone = hparams.get("backbone")
    if isinstance(backbone, dict) and isinstance(settings := backbone.get("init_args"), dict):
        settings.pop("in_channels", None)
    if not unlabeled:
        as_trained = {name: value for name, value in images.items() if f"--data.{name}" not in given}
        prepared = [f"--data.{name}={json.dumps(value)}" for name, value in as_trained.items()]
        return [args[0], f"--model={json.dumps(model)}", *args[1:], *prepared]
    data = {
        "class_path": "metricloss_pl.data.UnlabelledFolderDataModule",
        "init_args": {"class_names": checkpoint["class_names"], **images},
    }
    return [args[0], f"--model={json.dumps(model)}", f"--data={json.dumps(data)}", *args[1:]]


def _config_of_run(run: Path) -> str:
    """Return the file with a run's config, or its text without the loggers and callbacks that are not trusted.

    An evaluation does without them, and the config beside a checkpoint counts as the checkpoint's.
    """
    content = _load(run / CONFIG)
    trainer: dict[str, Any] = content["trainer"] if isinstance(content.get("trainer"), dict) else {}
    left_out = []
    for name in ("logger", "callbacks"):
        given = trainer.get(name)
        listed: list[Any] = given if isinstance(given, list) else [given]
        kept = [item for item in listed if is_trusted_run(item)]
        if len(kept) < len(listed):
            left_out += [str(item.get("class_path")) for item in listed if item not in kept]
            trainer[name] = kept or None
    if not left_out:
        return str(run / CONFIG)
    rank_zero_warn(
        f"not used: {', '.join(left_out)}, which the config beside the checkpoint names; to use "
        f"{'it' if len(left_out) == 1 else 'them'} give --config {relative_path(run / CONFIG)}"
    )
    return yaml.safe_dump(content)


def _replace_blocks(args: Sequence[str]) -> list[str]:
    """A block's file given as a flag takes the place of the config's block, whose settings would else shine through."""
    options = list(options_of(args))
    swapped = {name[2:] for name, value, _ in options if name[2:] in BLOCKS and is_yaml(value)}
    args = list(args)
    for name, value, place in reversed(options if swapped else []):
        if name in CONFIG_FLAGS and value and is_yaml(value):
            content = _load(Path(value))
            kept = {key: setting for key, setting in content.items() if key not in swapped}
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
