"""Figures that compare variants: their content, and that nothing is cut off."""

import io

import numpy as np
import pytest
from PIL import Image

from metricloss_pl import plots

NAMES = ["softmax", "cosine", "a rather long name of a variant", "$x_1$ <b>"]
STYLE = plots.series_styles(NAMES)


def series(rows, generator):
    mean = generator.uniform(0.5, 0.9, rows)
    return mean, mean - 0.05, mean + 0.05


def figures():
    """Return figures of four variants by name."""
    generator = np.random.default_rng(0)
    classes = [f"a long name of class {k}" for k in range(40)]
    epochs = np.arange(1, 21)
    curves = dict.fromkeys(NAMES, (epochs, np.linspace(0.2, 0.8, 20)))
    labels = np.arange(80) % 40
    return {
        "sizes": plots.accuracy_against_size([10, 50, 250], {n: series(3, generator) for n in NAMES}, STYLE),
        "sizes with all": plots.accuracy_against_size([10, None], {n: series(2, generator) for n in NAMES}, STYLE),
        "curves": plots.learning_curves(curves, dict.fromkeys(NAMES, 0.7), STYLE),
        "rates": plots.accuracy_against_rate(
            {n: (10 ** generator.uniform(-4, 0, 20), generator.random(20)) for n in NAMES}, STYLE
        ),
        "classes": plots.class_differences({n: generator.normal(0, 0.1, 40) for n in NAMES}, classes, NAMES[2], STYLE),
        "reliability": plots.reliability_diagram(
            {n: (np.linspace(0.3, 1, 5), np.linspace(0, 1, 5)) for n in NAMES}, STYLE
        ),
        "maps": plots.embedding_maps({n: (generator.normal(size=(80, 2)), labels) for n in NAMES}, classes),
        "five maps": plots.embedding_maps(
            {f"center_weight {k}": (generator.normal(size=(80, 2)), labels % 3) for k in range(5)},
            classes[:3],
            5,
            11,
            scales=True,
        ),
        "confusion": plots.confusion_matrix(np.eye(40, dtype=int), classes, NAMES[2], width=plots.WIDTH),
        "surfaces": plots.loss_surfaces({"one": np.eye(9), "other": np.ones((9, 9)) + np.eye(9)}, 2.0),
        "weights": plots.pair_weights(
            np.geomspace(0.1, 10, 9), {"margin": np.repeat([1.0, 0], [4, 5]), "b": np.ones(9)}
        ),
    }


FIGURES = figures()


@pytest.mark.parametrize(("name", "figure"), FIGURES.items(), ids=FIGURES)
def test_nothing_is_cut_off(name, figure):
    with Image.open(io.BytesIO(plots.figure_bytes(figure, "png"))) as opened:
        picture = np.asarray(opened.convert("RGB")).astype(int)
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (border == 255).all()
    assert (picture < 250).any(axis=2).mean() > 0.005
    if name not in ("five maps", "surfaces", "weights"):
        assert figure.get_size_inches()[0] == plots.WIDTH


def lines_of(ax):
    return [line for line in ax.lines if len(line.get_xdata()) > 1]


def test_variants_keep_their_color():
    for name in ("sizes", "rates", "reliability"):
        colors = [line.get_color() for line in lines_of(FIGURES[name].axes[0]) if line.get_linestyle() == "-"]
        assert [look.color for look in STYLE.values()] == colors
    assert len({look.marker for look in STYLE.values()}) == len({look.color for look in STYLE.values()}) == 4


def test_accuracy_against_size_draws_means_and_bands():
    mean = np.array([0.5, np.nan, 0.9])
    figure = plots.accuracy_against_size([10, 50, 250], {"cosine": (mean, mean - 0.1, mean + 0.1)}, STYLE)
    (ax,) = figure.axes
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[10, 50], [250, 90]])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["10", "50", "250"]
    assert ax.get_xscale() == "log"
    low, high = ax.collections[0].get_datalim(ax.transData).intervaly
    assert (low, high) == pytest.approx((40, 100))


def test_learning_curves_end_with_a_mark_of_the_test_accuracy():
    curves = {"cosine": (np.array([2, 5]), np.array([0.4, 0.6]))}
    (ax,) = plots.learning_curves(curves, {"cosine": 0.7}, STYLE).axes
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[2, 40], [5, 60]])
    assert ax.lines[1].get_xdata()[0] > 5
    assert ax.lines[1].get_ydata()[0] == pytest.approx(70)
    assert len(plots.learning_curves(curves, {}, STYLE).axes[0].lines) == 1


def test_the_line_over_rates_joins_medians():
    rates, accuracies = np.array([0.01, 0.0101, 0.0099, 1.0]), np.array([0.2, 0.9, 0.8, 0.1])
    (ax,) = plots.accuracy_against_rate({"cosine": (rates, accuracies)}, STYLE, "balanced accuracy").axes
    assert ax.get_ylabel() == "balanced accuracy, %"
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[0.01, 80], [1, 10]])


def test_the_classes_that_differ_most_are_drawn():
    differences = np.zeros(60)
    differences[[5, 50, 51]] = [0.3, -0.4, np.nan]  # a class without images is left out
    (ax,) = plots.class_differences({"cosine": differences}, [f"c{k}" for k in range(60)], "softmax", STYLE).axes
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert len(names) == 24
    assert (names[0], names[-1]) == ("c5", "c50")
    np.testing.assert_allclose([ax.lines[0].get_xdata()[k] for k in (0, -1)], [30, -40])


def test_the_svg_of_a_figure_is_always_the_same():
    points = {name: (np.linspace(0.3, 1, 5), np.linspace(0, 1, 5)) for name in NAMES}
    first, second = (plots.figure_bytes(plots.reliability_diagram(points, STYLE), "svg") for _ in range(2))
    assert first == second
    assert first.startswith(b"<?xml")


def test_identical_curves_stay_visible():
    widths = [line.get_linewidth() for line in lines_of(FIGURES["reliability"].axes[0]) if line.get_linestyle() == "-"]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 1.9 * widths[-1]


def test_small_differences_look_small():
    nothing = {"cosine": np.array([0.0, 0.0])}
    (ax,) = plots.class_differences(nothing, ["a", "b"], "softmax", STYLE).axes
    assert ax.get_xlim() == pytest.approx((-2, 2))
    (ax,) = plots.learning_curves({"cosine": (np.arange(3), np.array([0.5, 0.501, 0.5]))}, {}, STYLE).axes
    assert np.ptp(ax.get_ylim()) == pytest.approx(4)


def test_letters_that_the_font_lacks_are_left_to_the_browser(recwarn):
    names, style = ["\u65e5\u672c", "b"], plots.series_styles(["\u65e5\u672c"])
    figure = plots.class_differences({names[0]: np.array([0.1, 0.2])}, names, "softmax", style)
    assert names[0].encode() in plots.figure_bytes(figure, "svg")
    assert not [str(warning.message) for warning in recwarn]
    assert b"<text" not in plots.figure_bytes(FIGURES["classes"], "svg")
