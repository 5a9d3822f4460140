"""Configs that come with the package: found by name, listed, copied into one file for editing."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from metricloss_pl.errors import UserError, reason
from metricloss_pl.files import replacing

__all__ = [
    "BLOCKS",
    "CONFIG_FLAGS",
    "copy_config",
    "describe_config",
    "find_config",
    "is_yaml",
    "list_configs",
    "parse_yaml",
    "read_yaml",
    "shipped_configs",
]

BLOCKS = ("data", "model", "trainer")
CONFIG_FLAGS = ("-c", "--config")


def is_yaml(value: object) -> TypeGuard[str]:
    """Return whether a value is the name of a YAML file."""
    return isinstance(value, str) and value.endswith((".yaml", ".yml"))


def read_yaml(file: Path, source: str) -> Any:
    """Return the content of a YAML file.

    Args:
        file: File to read.
        source: Name of the file in messages, such as `--config run.yaml`.

    Raises:
        UserError: The file can't be read.
    """
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{source} can't be read: {reason(error)}") from error


def parse_yaml(text: str) -> Any:
    """Return the value of a text as YAML, or the text where it is no YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def shipped_configs() -> Path:
    """Return the folder of the shipped configs: within an installed package, beside it in a clone."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(name: str, kind: str = "") -> str:
    """Return the path of a config: a local file, or else the shipped one of this name.

    Args:
        name: Path of a file, or the name of a shipped config, with or without `configs/` before it.
        kind: Folder of `configs` that the name may lie in, such as `compare` or `data`.

    Returns:
        The path of the shipped file; the name unchanged where a local file, or no file at all, has it.
    """
    if Path(name).exists():
        return name
    return str(_shipped(name, kind) or name)


def list_configs(kind: str = "") -> list[str]:
    """Return the names of the shipped configs in a folder of `configs`, such as `data/cub.yaml` for `data`."""
    return sorted(file.relative_to(shipped_configs()).as_posix() for file in (shipped_configs() / kind).glob("*.yaml"))


def describe_config(name: str) -> str:
    """Return the first line of a shipped config's header."""
    return (shipped_configs() / name).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def copy_config(name: str, out: str | None = None) -> Path:
    """Write a shipped config, comments included, as one file that works from any folder.

    Args:
        name: Name of the config, such as `digits_cosine.yaml` or `compare/digits.yaml`.
        out: File to write. Default: the config's own name in the working folder.

    Raises:
        UserError: There is no such config, or the file to write exists.
    """
    source = _shipped(name)
    if source is None:
        raise UserError(f"configs copy {name}: there is no shipped config of this name; configs lists them")
    target = Path(out if out is not None else source.name)
    if target.exists():
        raise UserError(f"configs copy {name}: {target} exists and is kept; --out takes another file")
    with replacing(target) as beside:
        beside.write_text(_self_contained(source), encoding="utf-8")
    return target


def _shipped(name: str, kind: str = "") -> Path | None:
    """Return the shipped config of this name, if there is one."""
    folder, path = shipped_configs(), Path(name)
    if path.is_absolute() or ".." in path.parts:
        return None
    if path.parts[:1] == ("configs",):
        path = path.relative_to("configs")
    return next((file for file in (folder / kind / path, folder / path) if file.is_file()), None)


def _self_contained(file: Path) -> str:
    """Return a config's text with its blocks in place of their names, and other files by names that work anywhere."""
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    blocks = [value for key, value in root.value if key.value in BLOCKS]
    for node in reversed(list(_scalars(root))):
        named = (file.parent / node.value).resolve()
        if not named.is_file():
            continue
        before, after = text[: node.start_mark.index], text[node.end_mark.index :]
        if node in blocks:
            text = f"{before.rstrip(' ')}\n{textwrap.indent(_self_contained(named).rstrip(), '  ')}{after}"
        elif named.is_relative_to(shipped_configs()) and named.suffix == ".yaml":  # a run file of a comparison
            text = f"{before}{named.relative_to(shipped_configs()).as_posix()}{after}"
        else:
            quoted = str(named).replace("'", "''")
            text = f"{before}'{quoted}'{after}"
    return text


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """Yield a document's scalars in their order."""
    if isinstance(node, yaml.ScalarNode):
        yield node
    else:
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                yield from _scalars(part)
