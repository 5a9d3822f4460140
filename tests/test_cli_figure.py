"""`figure` and `report` on the command line."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from metricloss_pl import plots
from metricloss_pl.cli import main
from tests.command_line import refusal_of
from tests.compare.synthetic import make_comparison


@pytest.mark.parametrize("name", ["loss_surfaces", "pair_weights"])
def test_figures_of_the_losses(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["figure", name])
    assert f"{name}.png" in capsys.readouterr().out
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert min(picture.size) > 300


def test_pair_weights_are_the_derivatives_that_their_legend_says(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "pair_weights", lambda *given: drawn.append(given) or Figure())
    main(["figure", "pair_weights", f"--out={tmp_path / 'weights.png'}"])
    ((distances, weights),) = drawn
    assert [name.partition(":")[0] for name in weights] == ["log1p", "log", "margin", "negative"]
    squares, step = distances**2, 1e-4 * distances**2
    smooth = abs(squares - 1) > 1e-3  # but for the margin
    for name, values in weights.items():
        formula = name.partition("g = ")[2].replace("d²", "x")
        above, below = (
            eval(formula, {"log": np.log, "min": np.minimum, "x": x}) for x in (squares + step, squares - step)
        )
        np.testing.assert_allclose(values[smooth], ((above - below) / (2 * step))[smooth], rtol=1e-5)


def test_the_report_and_the_maps_of_a_comparison(tmp_path, capsys):
    weights = {f"center_weight {weight}": 0.8 for weight in (0, 0.001, 0.01, 0.1, 1)}
    folder = make_comparison(tmp_path / "results", weights, sizes=(10, 20), seeds=(0,), images=60, embedding_dim=2)
    main(["figure", "embeddings", f"--results={folder}", f"--out={tmp_path / 'maps.svg'}"])
    assert (tmp_path / "maps.svg").read_bytes().startswith(b"<?xml")
    main(["report", str(folder)])
    screen = capsys.readouterr().out
    for name in ("maps.svg", "report.html", "report.md", "results.csv"):
        assert name in screen
    assert (folder / "report.html").is_file()

    line = refusal_of(capsys, "figure", "embeddings", f"--results={folder}", "--samples_per_class=30")
    assert "--samples_per_class is 30: the sizes of" in line
    for file in (folder / "predictions").iterdir():
        with np.load(file) as stored:
            kept = {name: stored[name] for name in stored.files if name != "embeddings"}
        np.savez(file, **kept)
    assert "has stored no embeddings" in refusal_of(capsys, "figure", "embeddings", f"--results={folder}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "gone"], "plan.json can't be read"),
        (["figure", "embeddings"], "--results is missing"),
        (["figure", "embeddings", "--results=gone"], "--results gone"),
        (["figure", "pair_weights", "--out=x.gif"], ".svg or .pdf"),
        (["figure", "center-weights"], "center-weights"),
    ],
)
def test_mistakes(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refusal_of(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []
