"""Report that tests compare with the files in this folder, after a change of its text written by

python -m tests.compare.golden
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from metricloss_pl.compare.report import write_report
from tests.compare.synthetic import make_comparison

FOLDER = Path(__file__).parent
REPORTS = ("report.html", "report.md")
# Names as users may give them.
CLASSES = ["cat <script>alert(1)</script>", "dog|*wolf*", "x' onerror='y", "owl"]
KINDS = {"linear_probe": "linear_probe", "majority_class": "trivial"}
PIXEL = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"></svg>'


def write_golden(folder: Path) -> dict[str, str]:
    """Write a comparison with all that a report shows, and return its reports, whose figures are not drawn."""
    make_comparison(
        folder,
        {"softmax": 0.7, "cosine|<b>": 0.88, "center": 0.7, "linear_probe": 0.93, "majority_class": 0.25},
        sizes=(10, None),
        seeds=(0, 1, 2),
        trials=4,
        images=120,
        class_names=CLASSES,
        kinds=KINDS,
        name_image=lambda number: f"{number % 4}/<img src=x>_{number}.png",
        failing=lambda run: run["kind"] == "final" and (run["variant"], run["size"], run["seed"]) == ("center", 10, 1),
        missing=lambda run: run["kind"] == "final" and (run["variant"], run["size"], run["seed"]) == ("center", 10, 2),
        warnings=["12 images of <other> were left out"],
    )  # fmt: skip
    for file in (folder / "runs").iterdir():
        result = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(result | {"checkpoint": "trained/last.ckpt"}), encoding="utf-8")
    with patch("metricloss_pl.plots.figure_bytes", return_value=PIXEL):
        write_report(folder)
    found = {}
    for name in REPORTS:
        text = (folder / name).read_text(encoding="utf-8").replace(str(folder), "runs/compare/digits")
        found[name] = re.sub(r"<style>.*?</style>", "<style></style>", text, flags=re.S)
    return found


def main() -> None:
    """Write the golden files."""
    with TemporaryDirectory() as folder:
        for name, text in write_golden(Path(folder)).items():
            (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
