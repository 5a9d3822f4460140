"""What holds for the project as a whole: imports run one way and load late, versions agree."""

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
GROUND = ("losses", "class_embeddings", "backbones", "data", "metrics", "plots")
BASICS = {"errors", "_compat", "files", "checkpoints", "download"}
# What a single run and a comparison have in common.
SHARED = {"config_files", "run_files", "environment", "cli.console", "cli.errors", "cli.suggestions"}
# What each part may import besides itself, from the ground up; "" is the package's own version.
LAYERS = {
    "_compat": set(),
    "errors": set(),
    "files": {"errors"},
    "download": {"errors"},
    "schedules": {"errors"},
    "mixing": {"errors"},
    "config_files": {"errors", "files"},
    "checkpoints": {"_compat", "errors", "files", ""},
    **dict.fromkeys(GROUND[1:], BASICS),
    "regimes": {*GROUND, *BASICS, "schedules", "mixing"},
    "callbacks": {*GROUND, *BASICS, "regimes"},
    "run_files": {"errors", "backbones", "schedules", "callbacks"},
    "environment": {""},
    "cli.console": set(),
    "cli.errors": {"errors", "files"},
    "cli.suggestions": {"errors", "cli.console", "config_files", "data", "regimes", "callbacks"},
    "loading": {*GROUND, *BASICS, "schedules", "mixing", "regimes"},
    "compare": {*GROUND, *BASICS, *SHARED, "regimes", "callbacks"},
    "cli": {*GROUND, *BASICS, *SHARED, "schedules", "mixing", "regimes", "callbacks", "compare", ""},
    "__main__": {"cli"},
}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def imported(source: str) -> set[str]:
    """Every module or name that a source imports, anywhere in it, by its full dotted name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(module: str) -> str:
    """The package's part that a dotted name lies in: metricloss_pl.losses.center -> losses."""
    names = module.split(".")[1:]
    return next((".".join(names[:n]) for n in (2, 1) if ".".join(names[:n]) in LAYERS), ".".join(names[:1]))


def within(file: Path) -> str:
    """The package's part that a file lies in."""
    return part(".".join(["metricloss_pl", *file.relative_to(PACKAGE).with_suffix("").parts]))


def test_imports_are_read_wherever_they_stand():
    source = "import os, a.b\ndef f():\n    from metricloss_pl.data import base\n    from x import y as z\n"
    assert imported(source) == {"os", "a.b", "metricloss_pl.data.base", "x.y"}
    assert part("metricloss_pl.data.base") == "data"
    assert part("metricloss_pl") == ""


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(file):
    names = imported(file.read_text())
    tops = {name.partition(".")[0] for name in names}
    own, inside = within(file), {part(name) for name in names if name.partition(".")[0] == "metricloss_pl"}
    assert "pytorch_lightning" not in tops
    if own == "losses":
        assert tops <= {"torch", "metricloss_pl", *sys.stdlib_module_names}
        assert inside <= {"losses"}
    elif own in LAYERS:
        assert inside <= {*LAYERS[own], own}
    else:
        assert own == "__init__"


def test_the_layers_stand_on_one_another():
    below = {"losses", ""}
    for own, allowed in LAYERS.items():
        assert allowed <= below, f"{own} stands on what comes after it"
        below.add(own)


def test_every_ground_package_is_there():
    assert set(GROUND) <= {within(file) for file in MODULES}


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a statement loads in a fresh interpreter."""
    program = f"import json, sys\n{statement}\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


def test_importing_the_package_loads_neither_torch_nor_lightning():
    heavy = {"torch", "lightning", "pytorch_lightning", "numpy", "torchvision"}
    assert not loaded_by("import metricloss_pl") & heavy
    assert "torch" in loaded_by("from metricloss_pl import CosineLoss")


def test_importing_a_loss_loads_no_lightning():
    heavy = {"lightning", "pytorch_lightning", "torchvision", "torchmetrics", "jsonargparse", "sklearn", "matplotlib"}
    assert not loaded_by("from metricloss_pl.losses import CenterLoss") & heavy


def test_every_public_name_loads():
    for name in metricloss_pl.__all__:
        assert getattr(metricloss_pl, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = metricloss_pl.Nothing


def test_version_is_that_of_the_package():
    """It stands in one place; a release has a section of its own in the changelog."""
    assert "version" not in PYPROJECT["project"]
    assert PYPROJECT["tool"]["hatch"]["version"] == {"path": "metricloss_pl/__init__.py"}
    release, development = re.fullmatch(r"(\d+\.\d+\.\d+)(\.dev\d+)?", metricloss_pl.__version__).groups()
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert (release in released) is (development is None)


def bounds(requirements: list[str]) -> dict[str, str]:
    """Name to lower bound, of requirements such as ``jsonargparse[signatures]>=4.41``."""
    found = {}
    for requirement in requirements:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?>=([0-9.]+)", requirement)
        assert match, f"{requirement!r} is not name>=version"
        found[match[1]] = match[2]
    return found


def test_oldest_versions_are_the_lower_bounds():
    """A pin is the first release of its bound: 2.3.1 of >=2.3, where there was no 2.3.0."""
    project = PYPROJECT["project"]
    expected = bounds(project["dependencies"] + project["optional-dependencies"]["test"])
    lines = (ROOT / "requirements" / "oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert set(pins) == set(expected)
    for name, bound in expected.items():
        assert f"{pins[name]}.".startswith(f"{bound}."), f"{name} is pinned to {pins[name]} and bounded by {bound}"


def test_every_lower_bound_says_why():
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
