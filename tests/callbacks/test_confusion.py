import csv

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from metricloss_pl.callbacks import ConfusionMatrixPlot
from tests.callbacks.runs import digits, fit, regime, trainer


def test_counts_of_the_test_part_are_written_and_drawn(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, data = regime(), digits()
    fit(tmp_path, model=model, data=data)
    run = trainer(tmp_path, ConfusionMatrixPlot(), logger=TensorBoardLogger(tmp_path, name="runs", version="one"))
    for _ in range(2):  # a second test starts from zero
        run.test(model, data, verbose=False)
    samples = data.samples("test")
    model.eval()
    with torch.no_grad():
        predicted = model.class_scores(model.embed(samples.images)).argmax(1)
    expected = np.zeros((10, 10), dtype=int)
    for true, guess in zip(samples.labels.tolist(), predicted.tolist(), strict=True):
        expected[true, guess] += 1
    folder = tmp_path / "runs" / "one" / "figures"
    header, *rows = csv.reader((folder / "confusion_matrix.csv").open(encoding="utf-8"))
    assert header[1:] == [row[0] for row in rows] == model.class_names
    np.testing.assert_array_equal(np.array([row[1:] for row in rows], dtype=int), expected)
    assert sorted(file.name for file in folder.iterdir()) == ["confusion_matrix.csv", "confusion_matrix.png"]
    with Image.open(folder / "confusion_matrix.png") as image:
        assert np.asarray(image.convert("L")).std() > 5
    assert EventAccumulator(str(folder.parent)).Reload().Images("confusion matrix")


def test_fast_development_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer(tmp_path, ConfusionMatrixPlot(), fast_dev_run=True).test(regime(), digits(), verbose=False)
    assert list(tmp_path.iterdir()) == []
