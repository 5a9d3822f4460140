"""Code blocks of README.md and docs/*.md, and a working folder that holds all that they name.

A comment on the line before a block says how it is tested: `<!-- slow -->` for Python that trains, and
`<!-- not run: reason -->` for what needs other data, hardware or a network.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from tests.helpers import make_folder

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEMPLATES = {"reproduce.md", "results.md"}  # tests/test_reproduce.py and tests/test_configs.py fill them in
PROGRAMS = ("metricloss ", "python cli.py ")


class Block(NamedTuple):
    """Code block of a page."""

    page: str
    line: int
    mark: str  # slow, not run: reason, or empty
    language: str
    text: str

    @property
    def name(self) -> str:
        """Page and line, for the name of a test."""
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Words of each command of this program."""
        lines = [line.partition(program) for line in self.text.splitlines() for program in PROGRAMS if program in line]
        return [shlex.split(words, comments=True) for _, _, words in lines]


def blocks() -> list[Block]:
    """Return the Python and shell blocks of all pages."""
    pattern = r"^(?:<!-- ([^\n]*) -->\n)?```(python|bash)\n(.*?)^```$"
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(pattern, text, flags=re.MULTILINE | re.DOTALL):
            line = 1 + text.count("\n", 0, match.start())
            found.append(Block(page.name, line, match[1] or "", match[2], match[3]))
    return found


def write_digits(folder: Path, *names: str) -> None:
    """Write the first digits as images."""
    folder.mkdir(exist_ok=True)
    for image, name in zip(load_digits().images, names, strict=False):
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(folder / name)


def fill_working_folder(folder: Path, run: Path | None = None) -> None:
    """Write all that commands and code name: images in every form, a module, and a run with its checkpoint."""
    make_folder(folder / "my_images", images=12)
    rows = [f"{name}/{i}.png,{name}" for name in ("cat", "dog") for i in range(12)]
    (folder / "my_images" / "list.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    (folder / "my_images" / "hierarchy.txt").write_text("animal\n--cat\n--dog\n")
    images = np.random.default_rng(0).integers(0, 256, (24, 28, 28, 3), dtype=np.uint8)
    np.savez(folder / "my_images.npz", train_images=images, train_labels=np.arange(24) % 2)
    [project] = [block.text for block in blocks() if "class SmallNormClassifier" in block.text]
    (folder / "my_project.py").write_text(project)
    write_digits(folder, "photo.jpg")
    write_digits(folder / "new_images", *(f"{i}.png" for i in range(5)))
    if run is not None:
        shutil.copytree(run, folder / "runs" / "digits_cosine" / "version_0")
        for name in ("a", "b", "c", "best"):
            shutil.copy(run / "checkpoints" / "best.ckpt", folder / f"{name}.ckpt")
