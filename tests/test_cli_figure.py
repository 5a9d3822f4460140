"""``figure`` and ``report`` on the command line; the losses' figures beside closed forms."""

import numpy as np
import pytest
from PIL import Image

from metricloss_pl.cli import main
from metricloss_pl.cli.figure import pair_weight, surface
from tests.compare.simulated import make_results


def refusal(capsys, *args):
    with pytest.raises(SystemExit) as caught:
        main([*args])
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_surfaces_are_the_losses():
    axis = np.linspace(-2, 2, 5)
    first, second = np.meshgrid(axis, axis)
    np.testing.assert_allclose(surface("squared error", points=5), (first - 1) ** 2 + second**2, atol=1e-6)
    np.testing.assert_allclose(
        surface("softmax cross-entropy", points=5), np.log1p(np.exp(second - first)), rtol=1e-5, atol=1e-6
    )
    norm = np.hypot(first, second)
    cosine = np.divide(first, norm, out=np.zeros_like(first), where=norm > 0)
    np.testing.assert_allclose(surface("cosine loss", points=5), 1 - cosine, atol=1e-6)


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("log1p", lambda d: 1 / (1 + d**2)),
        ("log", lambda d: 1 / d**2),
        ("margin", lambda d: (d < 1).astype(float)),
        ("negative", np.ones_like),
    ],
)
def test_weights_of_a_pair(term, expected):
    distances = np.array([0.01, 0.5, 0.99, 1.01, 3.0, 100.0])
    np.testing.assert_allclose(pair_weight(term, distances), expected(distances), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["loss-surfaces", "pair-weights"])
def test_figures_of_the_losses(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["figure", name])
    assert f"{name}.png" in capsys.readouterr().out
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert min(picture.size) > 300


def test_the_report_and_the_maps_of_a_comparison(tmp_path, capsys):
    weights = {f"center_weight {weight}": 0.0 for weight in (0, 0.001, 0.01, 0.1, 1)}
    folder = make_results(tmp_path / "results", weights, (10, 20), (0,), images=60, trials=0, epochs=3, dim=2)
    main(["figure", "embeddings", f"--results={folder}", f"--out={tmp_path / 'maps.svg'}"])
    assert (tmp_path / "maps.svg").read_bytes().startswith(b"<?xml")
    main(["report", str(folder)])
    screen = capsys.readouterr().out
    for name in ("maps.svg", "report.html", "report.md", "report.csv"):
        assert name in screen
    assert (folder / "report.html").is_file()

    line = refusal(capsys, "figure", "embeddings", f"--results={folder}", "--samples_per_class=30")
    assert "--samples_per_class is 30: the sizes of" in line
    for file in (folder / "predictions").iterdir():
        with np.load(file) as stored:
            kept = {name: stored[name] for name in stored.files if name != "embeddings"}
        np.savez(file, **kept)
    assert "has stored no embeddings" in refusal(capsys, "figure", "embeddings", f"--results={folder}")


def test_mistakes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "plan.json can't be read" in refusal(capsys, "report", str(tmp_path))
    assert "--results is missing" in refusal(capsys, "figure", "embeddings")
    assert "must end in .png, .svg or .pdf" in refusal(capsys, "figure", "pair-weights", "--out=x.gif")
    assert "center-weights" in refusal(capsys, "figure", "center-weights")
    assert list(tmp_path.iterdir()) == []
