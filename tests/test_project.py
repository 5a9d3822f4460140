"""Rules for the project as a whole: imports run one way and load late, files are short, versions agree."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import metricloss_pl

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "metricloss_pl"
MODULES = sorted(PACKAGE.rglob("*.py"))
GROUND = ("losses", "class_embeddings", "backbones", "augment", "data", "metrics", "plots")
BASICS = {"errors", "_compat", "files", "checkpoints", "download"}
SHARED = {"config_files", "run_options", "environment", "cli.console", "cli.errors", "cli.suggestions"}
# Modules of the command line that `fit` and the runs of a comparison share, each above those before it.
RUNS = tuple(
    f"cli.{name}"
    for name in (
        *("subcommands", "parser", "processes", "progress", "saved_config", "run_folder", "record", "results"),
        *("arguments", "split", "command_line"),
    )
)
# The layers of the package, from the ground up, and the layers that each may import; "" is the version.
LAYERS = {
    "_compat": set(),
    "errors": set(),
    "files": {"errors"},
    "download": {"errors"},
    "formatting": set(),
    "states": {"errors"},
    "schedules": {"errors"},
    "mixing": {"errors"},
    "batch_norms": set(),
    "config_files": {"errors", "files"},
    "safetensors_files": {"errors", "files"},
    "checkpoints": {"_compat", "errors", "files", "safetensors_files", ""},
    **dict.fromkeys(GROUND[1:], BASICS),
    "data": {*BASICS, "augment"},
    "class_weights": {"data", "errors"},
    "optimizers": {"errors"},
    "callbacks": {*GROUND, *BASICS, "batch_norms", "class_weights", "schedules"},
    "regimes": {
        *(*GROUND, *BASICS, "batch_norms", "callbacks", "class_weights", "mixing", "optimizers", "schedules", "states"),
    },
    "run_options": {"errors", "backbones", "schedules", "callbacks"},
    "environment": {""},
    "cli.console": set(),
    "cli.errors": {"errors", "files"},
    "cli.suggestions": {"errors", "cli.console", "config_files", "data", "regimes", "callbacks"},
    **{name: {*GROUND, *BASICS, *SHARED, "regimes", "callbacks", *RUNS[:number]} for number, name in enumerate(RUNS)},
    "compare": {*GROUND, *BASICS, *SHARED, *RUNS, "regimes", "callbacks", "formatting", "states"},
    "check": {"data", "compare", "errors", "files"},
    "export": {*GROUND, *BASICS, *SHARED, "safetensors_files", "regimes", "callbacks", "compare", "formatting"},
    "cli": {
        *(*GROUND, *BASICS, *SHARED, *RUNS, "schedules", "mixing", "regimes", "callbacks"),
        *("compare", "check", "export", "formatting", ""),
    },
    "__main__": {"cli"},
}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def imported(file: Path) -> set[str]:
    """Return the full name of everything that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer(module: str) -> str:
    """Return the layer of a module of the package: metricloss_pl.losses.center -> losses."""
    names = module.split(".")[1:]
    return next((".".join(names[:n]) for n in (2, 1) if ".".join(names[:n]) in LAYERS), ".".join(names[:1]))


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(file):
    names = imported(file)
    roots = {name.partition(".")[0] for name in names}
    own = layer(".".join(["metricloss_pl", *file.relative_to(PACKAGE).with_suffix("").parts]))
    inside = {layer(name) for name in names if name.partition(".")[0] == "metricloss_pl"}
    assert "pytorch_lightning" not in roots
    if own == "losses":
        assert roots <= {"torch", "metricloss_pl", *sys.stdlib_module_names}
        assert inside <= {"losses"}
    elif own in LAYERS:
        assert inside <= {*LAYERS[own], own}
    else:
        assert own == "__init__"


def test_layers_import_lower_layers_only():
    below = {"losses", ""}
    for own, allowed in LAYERS.items():
        assert allowed <= below, own
        below.add(own)


def test_files_are_short():
    long = {file.relative_to(PACKAGE).as_posix() for file in MODULES if len(file.read_text().splitlines()) > 400}
    assert long == {"losses/functional.py"}


@pytest.mark.parametrize(
    ("statement", "needed", "unwanted"),
    [
        ("import metricloss_pl", set(), {"torch", "numpy", "torchvision", "lightning", "pytorch_lightning"}),
        (
            "from metricloss_pl import CenterLoss",
            {"torch"},
            {"lightning", "torchvision", "torchmetrics", "jsonargparse", "sklearn", "matplotlib"},
        ),
    ],
)
def test_imports_are_cheap(statement, needed, unwanted):
    program = f"import json, sys\n{statement}\nprint(json.dumps(list(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(result.stdout))
    assert needed <= loaded
    assert not loaded & unwanted


def test_every_public_name_loads():
    for name in metricloss_pl.__all__:
        assert getattr(metricloss_pl, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = metricloss_pl.Nothing


def test_version_is_that_of_the_package():
    """A release has its own section in the changelog."""
    assert "version" not in PYPROJECT["project"]
    assert PYPROJECT["tool"]["hatch"]["version"] == {"path": "metricloss_pl/__init__.py"}
    release, development = re.fullmatch(r"(\d+\.\d+\.\d+)(\.dev\d+)?", metricloss_pl.__version__).groups()
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert (release in released) is (development is None)


def bounds(requirements: list[str]) -> dict[str, str]:
    """Return names and lower bounds of requirements such as `jsonargparse[signatures]>=4.41`."""
    found = {}
    for requirement in requirements:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?>=([0-9.]+)", requirement)
        assert match, f"{requirement!r} is not name>=version"
        found[match[1]] = match[2]
    return found


def test_oldest_versions_are_the_lower_bounds():
    """A pin is the first release within the bound: 2.3.1 for >=2.3 if there is no 2.3.0."""
    project = PYPROJECT["project"]
    expected = bounds(project["dependencies"] + project["optional-dependencies"]["test"])
    lines = (ROOT / "requirements" / "oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert set(pins) == set(expected)
    for name, bound in expected.items():
        assert f"{pins[name]}.".startswith(f"{bound}."), f"{name} is pinned to {pins[name]} and bounded by {bound}"


def test_every_lower_bound_has_a_reason():
    text = (ROOT / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, flags=re.MULTILINE | re.DOTALL)
    assert block
    for line in block[1].splitlines():
        assert re.search(r'>=[0-9.]+", # .{10,}', line), line


def test_actions_are_pinned_to_commits():
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = file.read_text()
        assert "permissions:\n  contents: read\n" in text
        for action in re.findall(r"uses: (\S+)", text):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action), action
