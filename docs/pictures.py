"""Draw the pictures of README and of the documentation again, from the current code.

    python docs/pictures.py [--comparison FOLDER]

trains the digits for the embeddings (less than a minute) and runs the comparison on the digits for the report (three
minutes on two cores), unless `--comparison` names a folder where `metricloss compare --config digits.yaml` has run. The
picture of the report needs Chromium; without it, that of the checkout stays as it is.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from metricloss_pl.cli import main as metricloss

DOCS = Path(__file__).parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WINDOW = "1160,1310"  # px of the report that are shown: down to the end of its table


def draw_embeddings(target: Path, runs: Path) -> None:
    """Train the digits by cosine loss, and keep the figure of the last epoch."""
    metricloss(["fit", "--config", "digits_cosine.yaml", "--runs_dir", str(runs)])
    figures = sorted((runs / "digits_cosine" / "version_0" / "figures" / "embeddings").glob("*.png"))
    shutil.copy(figures[-1], target)


def photograph(page: Path, target: Path, browser: str, scratch: Path) -> None:
    """Write the top of a page as a PNG file in all of its colors."""
    subprocess.run(
        [
            browser,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={scratch}"),
            *(f"--window-size={WINDOW}", f"--screenshot={target.resolve()}", page.resolve().as_uri()),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )


def main() -> None:
    """Write both pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparison", type=Path, help="folder of a finished comparison on the digits")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures; default: that of this script")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        draw_embeddings(given.out / "digits_embeddings.png", Path(scratch, "runs"))
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        if browser is None:
            print(f"comparison_report.png is not drawn: none of {', '.join(BROWSERS)} is installed")
            return
        folder = given.comparison or Path(scratch, "comparison")
        if given.comparison is None:
            metricloss(["compare", "--config", "digits.yaml", "--output_dir", str(folder)])
        else:
            metricloss(["report", str(folder)])
        photograph(folder / "report.html", given.out / "comparison_report.png", browser, Path(scratch, "browser"))


if __name__ == "__main__":
    main()
