import csv
import gc
import weakref

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from metricloss_pl.callbacks import PredictionWriter
from metricloss_pl.errors import UserError
from tests.callbacks.runs import digits, regime, trainer


def read(file):
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def expected(model, images):
    model.eval()
    with torch.no_grad():
        embeddings = model.embed(images)
        return embeddings, model.probabilities(model.class_scores(embeddings))


@pytest.mark.parametrize("embeddings", [False, True])
def test_one_line_an_image_in_order(tmp_path, capsys, embeddings):
    model, data = regime(embedding_dim=5), digits()
    run = trainer(tmp_path, PredictionWriter(embeddings=embeddings))
    assert run.predict(model, data, return_predictions=False) is None
    points, probabilities = expected(model, data.samples("test").images)
    rows = read(tmp_path / "predictions_test.csv")
    assert [row["file"] for row in rows] == data.predict_files
    for row, values in zip(rows, probabilities.tolist(), strict=True):
        first, second = sorted(range(10), key=lambda k: -values[k])[:2]
        assert (row["class"], row["runner_up"]) == (f"digit {first}", f"digit {second}")
        assert float(row["probability"]) == pytest.approx(values[first], abs=2e-6)
        assert float(row["runner_up_probability"]) == pytest.approx(values[second], abs=2e-6)
    assert str(tmp_path / "predictions_test.csv") in capsys.readouterr().out
    written = {"predictions_test.csv", "predictions_test.npz"} if embeddings else {"predictions_test.csv"}
    assert {file.name for file in tmp_path.iterdir()} == written
    if embeddings:
        with np.load(tmp_path / "predictions_test.npz", allow_pickle=False) as arrays:
            np.testing.assert_allclose(arrays["embeddings"], points, rtol=1e-4, atol=1e-5)
            assert arrays["files"].tolist() == data.predict_files
            assert arrays["classes"].tolist() == [row["class"] for row in rows]


def test_all_probabilities_are_not_kept(tmp_path):
    class Watch(Callback):
        """Record the probabilities that are kept until the end."""

        def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            seen.append(weakref.ref(outputs["probabilities"]))

        def on_predict_end(self, trainer, pl_module):
            gc.collect()
            kept.extend(seen[k]() is not None for k in range(len(seen) - 1))  # the last may be in a frame

    seen, kept = [], []
    run = trainer(tmp_path, PredictionWriter(), Watch())
    run.predict(regime(), digits(), return_predictions=False)
    assert len(kept) > 0
    assert not any(kept)


def test_images_out_of_order_and_repeated_come_once(tmp_path):
    writer = PredictionWriter()
    run = trainer(tmp_path, writer)
    order = [7, 3, 9, 3, 0, 7]
    data = digits()
    data.setup("predict")
    images = data.samples("predict").images
    loader = DataLoader([(images[i], -1, i) for i in order], batch_size=4)
    model = regime()
    run.predict(model, loader, return_predictions=False)
    rows = read(tmp_path / "predictions.csv")
    assert [row["file"] for row in rows] == ["0", "3", "7", "9"]
    _, probabilities = expected(model, images[[0, 3, 7, 9]])
    assert [row["class"] for row in rows] == [f"digit {k}" for k in probabilities.argmax(1).tolist()]


def test_images_alone_are_numbered(tmp_path):
    data = digits()
    data.setup("predict")
    images = data.samples("predict").images[:9]
    trainer(tmp_path, PredictionWriter()).predict(regime(), DataLoader(images, batch_size=4), return_predictions=False)
    assert [row["file"] for row in read(tmp_path / "predictions.csv")] == [str(k) for k in range(9)]


def test_a_path_of_ones_own(tmp_path):
    file = tmp_path / "new" / "mine.csv"
    trainer(tmp_path, PredictionWriter(str(file), embeddings=True)).predict(
        regime(), digits(), return_predictions=False
    )
    assert {entry.name for entry in file.parent.iterdir()} == {"mine.csv", "mine.npz"}


def test_a_folder_is_refused_as_path(tmp_path):
    with pytest.raises(UserError, match="must be the CSV file"):
        PredictionWriter(str(tmp_path))


def test_fast_development_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trainer(tmp_path, PredictionWriter(), fast_dev_run=True)
    run.predict(regime(), digits(), return_predictions=False)
    assert list(tmp_path.iterdir()) == []
