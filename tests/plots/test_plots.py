import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from metricloss_pl import plots
from metricloss_pl.errors import UserError

NAMES = ["cat", "dog", "_hidden", "$5 note"]


def clusters(num_classes=4, count=60, dim=2, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    means = 4 * np.random.default_rng(9).normal(size=(num_classes, dim))
    return means[labels] + generator.normal(size=(count, dim)), labels, means


def drawn(ax, gid):
    return next(collection for collection in ax.collections if collection.get_gid() == gid)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def border(picture):
    return np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])


def test_every_point_has_the_color_of_its_class():
    (train, train_labels, means), (val, val_labels, _) = clusters(), clusters(count=20, seed=1)
    panels = {"training": (train, train_labels), "validation": (val, val_labels)}
    figure = plots.embedding_scatter(panels, NAMES, means, title="epoch 3", axis_labels=("a", "b"))
    colors = plots.class_colors(4)
    for ax, points, labels in zip(figure.axes, (train, val), (train_labels, val_labels), strict=True):
        scatter = drawn(ax, "embeddings")
        offsets = np.asarray(scatter.get_offsets())
        assert len(offsets) == len(points)
        for point, face in zip(offsets, scatter.get_facecolors(), strict=True):
            nearest = np.abs(points - point).sum(1).argmin()
            np.testing.assert_allclose(points[nearest], point)
            np.testing.assert_allclose(face[:3], colors[labels[nearest]])
        stars = drawn(ax, "anchors")
        np.testing.assert_allclose(stars.get_offsets(), means)
        np.testing.assert_allclose(stars.get_facecolors()[:, :3], colors)
        assert stars.get_zorder() > scatter.get_zorder()
        assert ax.get_aspect() == 1.0
        assert ax.get_xlabel() == "a"
    first, second = figure.axes
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()
    assert np.ptp(first.get_xlim()) == pytest.approx(np.ptp(first.get_ylim()))
    assert first.get_ylabel() == "b"
    assert first.get_title() == "training (60 images)"


def test_the_legend_names_the_classes():
    points, labels, means = clusters()
    (legend,) = plots.embedding_scatter({"all": (points, labels)}, NAMES, means).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "cat",
        "dog",
        " _hidden",
        r"\$5 note",
        "center",
    ]
    (legend,) = plots.embedding_scatter({"all": (points, labels)}, NAMES).legends
    assert len(legend.get_texts()) == 4
    points, labels, _ = clusters(50)
    (legend,) = plots.embedding_scatter({"all": (points, labels)}, [f"class {k}" for k in range(50)]).legends
    assert [text.get_text() for text in legend.get_texts()][-2:] == ["class 19", "and 30 more"]


@pytest.mark.parametrize("titles", [["all"], ["training", "validation"]])
def test_nothing_of_the_scatter_is_cut_off(tmp_path, titles):
    points, labels, means = clusters(20)
    names = [f"a rather long class name {k}" for k in range(20)]
    figure = plots.embedding_scatter(dict.fromkeys(titles, (points, labels)), names, means, title="epoch 3")
    plots.save_figure(figure, tmp_path / "scatter.png")
    picture = pixels(tmp_path / "scatter.png")
    assert (border(picture) == 255).all()
    assert (picture < 250).any(axis=2).mean() > 0.02
    frame = figure.axes[-1].get_window_extent()
    assert figure.legends[0].get_window_extent().x0 > frame.x1


def test_unknown_labels_are_gray():
    figure = plots.embedding_scatter({"all": (np.zeros((1, 2)), np.array([-1]))}, NAMES)
    gray = drawn(figure.axes[0], "embeddings").get_facecolors()[0, :3]
    assert np.ptp(gray) == 0
    assert np.abs(plots.class_colors(4) - gray).max(1).min() > 0.05


@pytest.mark.parametrize("num_classes", [1, 2, 10, 11, 20])
def test_class_colors_differ(num_classes):
    colors = plots.class_colors(num_classes)
    assert colors.shape == (num_classes, 3)
    assert ((colors >= 0) & (colors <= 1)).all()
    distances = np.linalg.norm(colors[:, None] - colors[None], axis=2)
    assert (distances + 9 * np.eye(num_classes)).min() > 0.1
    assert colors.mean(1).max() < 0.9  # seen on white


def test_two_dimensions_are_projected_as_they_are():
    points, _, means = clusters()
    for ours, given in zip(plots.project(points, means), (points, means), strict=True):
        np.testing.assert_array_equal(ours, given)


def test_pca_is_fitted_on_the_first_set():
    (train, _, means), (val, _, _) = clusters(dim=7), clusters(dim=7, seed=1)
    reference = PCA(2).fit(train)
    for ours, given in zip(plots.project(train, val, means), (train, val, means), strict=True):
        np.testing.assert_allclose(np.abs(ours), np.abs(reference.transform(given)), atol=1e-8)


def test_tsne_keeps_clusters_and_is_reproducible():
    points, labels, means = clusters(3, count=45, dim=6)
    twice = [plots.project(points, means, method="tsne", seed=3) for _ in range(2)]
    for a, b in zip(*twice, strict=True):
        np.testing.assert_array_equal(a, b)
    flat, stars = twice[0]
    assert flat.shape == (45, 2)
    assert stars.shape == (3, 2)
    distances = np.linalg.norm(flat[:, None] - flat[None], axis=2) + 1e9 * np.eye(45)
    assert (labels[distances.argmin(1)] == labels).mean() > 0.6  # chance is 1 / 3


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_projection_of_few_points_and_dimensions(method):
    assert [points.shape for points in plots.project(np.zeros((5, 1)), method=method)] == [(5, 2)]
    for count in (1, 2, 3):
        assert plots.project(np.random.default_rng(0).normal(size=(count, 4)), method=method)[0].shape == (count, 2)


def test_unknown_projection_is_refused():
    with pytest.raises(UserError, match="method is 'umap'"):
        plots.project(np.zeros((5, 3)), method="umap")


@pytest.mark.parametrize("mirror", [1, -1])
def test_alignment_undoes_rotation_and_reflection(mirror):
    points, _, means = clusters()
    points = points - points.mean(0)
    angle = 2.1
    turn = np.array([[np.cos(angle), np.sin(angle)], [-mirror * np.sin(angle), mirror * np.cos(angle)]])
    aligned, stars = plots.align([points @ turn, means @ turn], [points @ turn], [points])
    np.testing.assert_allclose(aligned, points, atol=1e-10)
    np.testing.assert_allclose(stars, means, atol=1e-10)


def test_confusion_matrix_shows_shares_and_counts():
    counts = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 6]])
    figure = plots.confusion_matrix(counts, ["a", "b", "c"], title="t")
    ax = figure.axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.75, 0.25, 0], [0, 0, 0], [0.25, 0, 0.75]])
    cells = {text.get_position(): text.get_text() for text in ax.texts}
    assert cells == {(0, 0): "3", (1, 0): "1", (0, 2): "2", (2, 2): "6"}  # (column, row)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")


def test_large_matrices_name_some_classes(tmp_path):
    names = [f"class {k}" for k in range(200)]
    for draw in (plots.confusion_matrix, plots.similarity_matrix):
        figure = draw(np.eye(200, dtype=int), names)
        ax = figure.axes[0]
        assert len(ax.texts) == 0
        ticks = ax.get_xticks()
        assert 10 < len(ticks) <= plots.MAX_TICKS
        assert [label.get_text() for label in ax.get_xticklabels()] == [f"class {k}" for k in ticks]
        plots.save_figure(figure, tmp_path / "matrix.png")
        picture = pixels(tmp_path / "matrix.png")
        assert max(picture.shape) < 2000
        assert (border(picture) == 255).all()


def test_similarity_matrix():
    similarities = np.array([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])
    ax = plots.similarity_matrix(similarities, ["cat", "dog", "$ car"], title="t").axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), similarities)
    assert ax.images[0].get_clim() == (0, 1)
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["cat", "dog", r"\$ car"]


def test_gif_plays_the_frames_in_order(tmp_path):
    colors = [(200, 20, 20), (20, 200, 20), (20, 20, 200)]
    frames = [tmp_path / f"{k}.png" for k in range(3)]
    for number, (frame, color) in enumerate(zip(frames, colors, strict=True)):
        Image.new("RGB", (40 + number, 30), color).save(frame)
    plots.save_gif(frames, tmp_path / "new" / "all.gif", seconds_per_frame=0.2)
    with Image.open(tmp_path / "new" / "all.gif") as gif:
        assert gif.n_frames == 3
        assert gif.size == (42, 30)
        assert gif.info["loop"] == 0
        durations = []
        for number in range(3):
            gif.seek(number)
            durations.append(gif.info["duration"])
            assert np.argmax(gif.convert("RGB").getpixel((5, 5))) == number
    assert durations == [200, 200, 1000]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["all.gif"]


def test_import_is_cheap():
    program = (
        "import sys, metricloss_pl.plots; print(*{'matplotlib', 'sklearn', 'PIL', 'torch'} & set(sys.modules), sep=',')"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
