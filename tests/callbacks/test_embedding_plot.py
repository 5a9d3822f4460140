import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from metricloss_pl import plots
from metricloss_pl.callbacks import EmbeddingPlot
from metricloss_pl.callbacks.embedding_plot import _thumbnails
from metricloss_pl.callbacks.evaluation import subsample
from metricloss_pl.errors import UserError
from tests.callbacks.runs import digits, fit, regime, trainer


@pytest.fixture
def figures(monkeypatch):
    """Record the arguments of the plot instead of drawing it."""
    calls = []
    draw = plots.embedding_scatter

    def record(panels, class_names, anchors=None, anchor_name="", title="", axis_labels=("", "")):
        calls.append({"panels": panels, "names": class_names, "anchors": anchors, "labels": axis_labels})
        return draw(panels, class_names, anchors, anchor_name, title, axis_labels)

    monkeypatch.setattr(plots, "embedding_scatter", record)
    return calls


def pictures(folder):
    return sorted(file.name for file in (folder / "figures" / "embeddings").iterdir())


def test_pictures_at_the_chosen_epochs_and_the_last_and_a_gif(tmp_path):
    fit(tmp_path, EmbeddingPlot(every_n_epochs=2), max_epochs=5)
    assert pictures(tmp_path) == ["epoch_0002.png", "epoch_0004.png", "epoch_0005.png"]
    for file in (tmp_path / "figures" / "embeddings").iterdir():
        with Image.open(file) as image:
            assert np.asarray(image.convert("L")).std() > 5
    with Image.open(tmp_path / "figures" / "embeddings.gif") as gif:
        assert gif.n_frames == 3
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == ["embeddings", "embeddings.gif"]


def test_evaluation_embeddings_of_both_parts_are_drawn(tmp_path, figures):
    model, data = regime(), digits()
    fit(tmp_path, EmbeddingPlot(every_n_epochs=9, gif=False), model=model, data=data)
    (drawn,) = figures
    assert list(drawn["panels"]) == ["training", "validation"]
    model.eval()
    for part, (points, labels) in zip(("train", "val"), drawn["panels"].values(), strict=True):
        samples = data.samples(part)
        with torch.no_grad():
            np.testing.assert_allclose(points, model.embed(samples.images), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(labels, samples.labels)
    np.testing.assert_allclose(drawn["anchors"], model.criterion.centers)
    assert drawn["names"] == model.class_names
    assert not (tmp_path / "figures" / "embeddings.gif").exists()


def test_without_validation_one_panel(tmp_path, figures):
    fit(tmp_path, EmbeddingPlot(), data=digits(val_fraction=0), max_epochs=1)
    assert list(figures[0]["panels"]) == ["training"]


def test_any_loader_gives_a_panel_of_validation(tmp_path, figures):
    data = digits()
    data.setup("fit")
    samples = data.samples("val")
    loader = DataLoader(TensorDataset(samples.images, samples.labels), batch_size=7)
    trainer(tmp_path, EmbeddingPlot(), max_epochs=1).fit(regime(), loader, loader)
    assert list(figures[0]["panels"]) == ["validation"]


@pytest.mark.parametrize(("method", "label"), [("pca", "principal component 1"), ("tsne", "t-SNE 1")])
def test_more_dimensions_are_projected(tmp_path, figures, method, label):
    fit(tmp_path, EmbeddingPlot(method=method, gif=False), model=regime(embedding_dim=5), max_epochs=2)
    for drawn in figures:
        assert [points.shape for points, _ in drawn["panels"].values()] == [(60, 2), (20, 2)]
        assert drawn["labels"][0] == label
    if method == "pca":  # the second is turned to lie as the first: no rotation of it comes closer
        before, now = (drawn["panels"]["training"][0] for drawn in figures)
        before, now = before - before.mean(0), now - now.mean(0)
        product = now.T @ before
        np.testing.assert_allclose(product, product.T, atol=1e-6 * abs(product).max())
        assert np.linalg.eigvalsh(product).min() >= 0


def test_tensorboard_gets_figures_and_the_projector(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="runs", version="one")
    fit(tmp_path, EmbeddingPlot(), model=regime(embedding_dim=5), logger=logger, max_epochs=2)
    folder = tmp_path / "runs" / "one"
    assert pictures(folder) == ["epoch_0001.png", "epoch_0002.png"]
    events = EventAccumulator(str(folder)).Reload()
    assert len(events.Images("embeddings")) == 2
    assert "metadata.tsv" in (folder / "projector_config.pbtxt").read_text()
    (labels,) = folder.glob("*/val/metadata.tsv")
    assert sorted(set(labels.read_text().split("\n")) - {""}) == [f"digit {k}" for k in range(10)]
    with Image.open(labels.with_name("sprite.png")) as sprite:
        assert sprite.width == 5 * 32  # 20 images in a square
    vectors = np.loadtxt(labels.with_name("tensors.tsv"))
    assert vectors.shape == (20, 5)


def test_last_epoch_of_an_early_stop_is_drawn(tmp_path):
    stop = EarlyStopping("train/loss", stopping_threshold=1e9, check_on_train_epoch_end=True)
    fit(tmp_path, EmbeddingPlot(every_n_epochs=4), stop, max_epochs=9)
    assert pictures(tmp_path) == ["epoch_0001.png"]


def test_gif_goes_on_after_a_resume(tmp_path):
    saver = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    fit(tmp_path, EmbeddingPlot(), saver, max_epochs=2, enable_checkpointing=True)
    run = trainer(tmp_path, EmbeddingPlot(), max_epochs=3)
    run.fit(regime(), digits(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert pictures(tmp_path) == ["epoch_0001.png", "epoch_0002.png", "epoch_0003.png"]
    with Image.open(tmp_path / "figures" / "embeddings.gif") as gif:
        assert gif.n_frames == 3


def test_embeddings_that_are_not_finite_stop_nothing(tmp_path):
    class Breaking(EmbeddingPlot):
        def on_train_epoch_end(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.embedding.bias.fill_(float("nan"))
            super().on_train_epoch_end(trainer, pl_module)

    with pytest.warns(UserWarning, match="draws nothing after epoch 1"):
        fit(tmp_path, Breaking(), max_epochs=1)
    assert not (tmp_path / "figures").exists()


def test_fast_development_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(tmp_path, EmbeddingPlot(), fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


def test_thinned_takes_all_classes_in_any_order_of_the_data():
    for labels in (torch.arange(2000) % 10, torch.arange(2000) // 200):
        loader = DataLoader(TensorDataset(torch.arange(2000), labels), batch_size=64)
        index, seen = (torch.cat(column) for column in zip(*subsample(loader, 200), strict=True))
        assert len(index.unique()) == 200
        assert torch.bincount(seen, minlength=10).min() > 5
        again, _ = (torch.cat(column) for column in zip(*subsample(loader, 200), strict=True))
        assert torch.equal(index, again)
    assert len(subsample(loader, 5000).dataset) == 2000


@pytest.mark.parametrize("options", [{"every_n_epochs": 0}, {"max_images": 1}])
def test_wrong_settings_are_refused(options):
    with pytest.raises(UserError, match="EmbeddingPlot"):
        EmbeddingPlot(**options)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_thumbnails_are_color_images(channels):
    images = torch.randint(0, 256, (5, channels, 40, 64), dtype=torch.uint8)
    thumbnails = _thumbnails(images)
    assert thumbnails.shape == (5, 3, 32, 32)
    assert thumbnails.mean().item() == pytest.approx(images.float().mean().item() / 255, abs=0.01)
