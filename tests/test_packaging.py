"""The sdist holds every file, and the wheel alone runs from an empty folder."""

import json
import os
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import metricloss_pl
from tests.helpers import make_folder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def run(command: list[str], folder: Path, **environment: str) -> str:
    """Run a command without this process's Python path; return its output."""
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    done = subprocess.run(command, cwd=folder, env={**own, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def build(source: Path, kind: str, folder: Path) -> Path:
    """Build one distribution; nothing is downloaded."""
    run([sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)], source)
    [file] = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(ROOT, "sdist", folder / "packed")) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"metricloss_pl-{metricloss_pl.__version__}"


@pytest.fixture(scope="module")
def scripts(sdist, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a virtual environment that has the wheel, and borrows the libraries of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = build(sdist, "wheel", folder / "packed")
    run([sys.executable, "-m", "venv", str(folder / "venv")], folder)
    scripts = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = str(scripts / "python")
    run([python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel)], folder)
    [packages] = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).splitlines()
    borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    Path(packages, "borrowed.pth").write_text("\n".join(borrowed))  # .pth files in there, as of a clone, do not count
    return scripts


def test_the_sdist_holds_every_tracked_file(sdist):
    if not (ROOT / ".git").exists():
        pytest.skip("not in a clone")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    missing = [name for name in tracked.split("\0") if name and (ROOT / name).exists() and not (sdist / name).exists()]
    assert not missing


def test_the_sdists_tests_pass(sdist):
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    assert "tests/test_cli.py::" in run([*pytest, "--collect-only"], sdist)
    run([*pytest, "-n", "0", "tests/losses", "tests/test_project.py"], sdist)


def test_the_wheel_alone_runs_everything_from_an_empty_folder(scripts, tmp_path):
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"

    def program(*arguments: str) -> str:
        return run([str(scripts / "metricloss"), *arguments], tmp_path, PATH=path)

    where = run([str(scripts / "python"), "-c", "import metricloss_pl; print(metricloss_pl.__file__)"], tmp_path)
    assert Path(where).is_relative_to(scripts.parent)
    assert "digits_cosine.yaml" in program("configs")

    out = program("fit", "--config", "digits_cosine.yaml", "--trainer.max_epochs=2", "--trainer.callbacks=null",
                  "--test_after_fit=false", *QUIET)  # fmt: skip
    [command] = [line.removeprefix("test").strip() for line in out.splitlines() if line.startswith("test ")]
    assert command.startswith("metricloss test --ckpt_path ")
    checkpoint = shlex.split(command)[-1]
    tested = run(shlex.split(command), tmp_path, PATH=path)
    assert "test/accuracy" in tested

    make_folder(tmp_path / "images", images=6, size=12)
    program("predict", "--ckpt_path", checkpoint, "--data.predict_dir", "images/cat", *QUIET)
    [rows] = tmp_path.glob("runs/**/predictions*.csv")
    assert len(rows.read_text().splitlines()) == 1 + 6
    program("predict", checkpoint, "images/cat", "images/dog/0.png", "--csv", "photos.csv")
    assert len((tmp_path / "photos.csv").read_text().splitlines()) == 1 + 7
    program("check", "images", "--out", "checked")
    assert (tmp_path / "checked" / "check.html").is_file()

    program("export", checkpoint, "--out", "digits.onnx")
    assert "| 9 |" in (tmp_path / "digits_card.md").read_text()
    predicted = run([str(scripts / "python"), "digits_predict.py", "images/cat/0.png"], tmp_path)
    assert predicted.startswith("images/cat/0.png\t")
    (tmp_path / "shared").mkdir()
    program("export", checkpoint, "--format", "safetensors", "--out", "shared")
    again = "import metricloss_pl; print(*metricloss_pl.load('shared').predict('images/cat/0.png').classes)"
    assert run([str(scripts / "python"), "-c", again], tmp_path).split() == [predicted.split("\t")[1]]

    compared = ["--include=[softmax, cosine]", "--seeds=[0]", "--sizes=[5]", "--steps=20", "--n_parallel=1"]
    program("compare", "--config", "digits.yaml", *compared, "--tuning.trials=1")
    folder = tmp_path / "runs" / "compare" / "digits"
    assert json.loads((folder / "plan.json").read_text())["command"].startswith("metricloss compare --config ")
    (folder / "report.html").unlink()
    run([str(scripts / "python"), "-m", "metricloss_pl", "report", str(folder)], tmp_path)
    assert (folder / "report.html").is_file()

    assert "softmax" in program("compare", "--data_root", "images", "--dry_run=true", "--tuning.trials=0")
