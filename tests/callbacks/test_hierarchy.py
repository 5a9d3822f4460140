from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.callbacks import HierarchyMetrics
from metricloss_pl.errors import UserError
from metricloss_pl.metrics import HierarchicalAccuracy, HierarchicalPrecision, MistakeSeverity
from metricloss_pl.regimes import CosineClassifier
from tests.callbacks.ddp_hierarchy import measure
from tests.callbacks.runs import digits, regime, trainer
from tests.processes import run_groups

DIGITS = "some\n-- round\n---- 0\n---- loops\n------ 6\n------ 8\n------ 9\n-- 1\n-- 2\n-- 3\n-- 4\n-- 5\n-- 7\n"


@pytest.fixture
def tree(tmp_path) -> Path:
    (tmp_path / "tree.txt").write_text(DIGITS.replace("-- ", "-- digit "))
    return tmp_path / "tree.txt"


def cosine() -> CosineClassifier:
    torch.manual_seed(0)
    return CosineClassifier(10, TinyConvNet(width=4), [f"digit {k}" for k in range(10)])


def expected(model, data, hierarchy) -> dict[str, float]:
    """From all test images at once."""
    samples = data.samples("test")
    heights = torch.from_numpy(hierarchy.lca_heights(hierarchy.leaves_of(model.class_names)))
    metrics = [
        HierarchicalAccuracy(heights, hierarchy.height),
        MistakeSeverity(heights),
        HierarchicalPrecision(heights, hierarchy.height),
    ]
    with torch.no_grad():
        embeddings = model.eval().embed(samples.images)
        for metric in metrics[:2]:
            metric.update(model.class_scores(embeddings).argmax(1), samples.labels)
        metrics[2].update(model.metric_embeddings(embeddings), samples.labels)
    accuracy, severity, precision = (metric.compute() for metric in metrics)
    return {
        "test/hierarchical_accuracy": accuracy.item(),
        "test/mistake_severity": severity.item(),
        **{f"test/{name}": value.item() for name, value in precision.items() if not value.isnan()},
    }


def measured(run) -> dict[str, float]:
    ours = ("test/hierarchical", "test/mistake", "test/hp", "test/mahp")
    return {name: float(value) for name, value in run.callback_metrics.items() if name.startswith(ours)}


@pytest.mark.parametrize("make", [regime, cosine])
def test_values_are_those_of_all_images_at_once(make, tree, tmp_path):
    model, data, callback = make(), digits(batch_size=10), HierarchyMetrics(tree)
    run = trainer(tmp_path, callback)
    for _ in range(2):  # the second test starts from nothing
        run.test(model, data, verbose=False)
        values = expected(model, data, callback.hierarchy)
        assert {"test/hp_1", "test/mahp_250"} < values.keys()
        assert measured(run) == pytest.approx(values, rel=1e-5)


def test_without_retrieval(tree, tmp_path):
    run = trainer(tmp_path, HierarchyMetrics(tree, retrieval=False))
    run.test(regime(), digits(), verbose=False)
    assert measured(run).keys() == {"test/hierarchical_accuracy", "test/mistake_severity"}


def test_the_severity_of_no_mistakes_is_not_logged(tree, tmp_path):
    class Right(type(regime())):
        def class_scores(self, embeddings):
            return torch.nn.functional.one_hot(self.labels, 10).float()

        def test_step(self, batch, batch_idx):
            self.labels = batch[1]
            return super().test_step(batch, batch_idx)

    model = regime()
    model.__class__ = Right
    run = trainer(tmp_path, HierarchyMetrics(tree, retrieval=False))
    run.test(model, digits(), verbose=False)
    assert measured(run) == {"test/hierarchical_accuracy": 1.0}


def test_a_class_list(tmp_path):
    (tmp_path / "tree.txt").write_text(DIGITS)
    (tmp_path / "names.txt").write_text("".join(f"{k} digit {k}\n" for k in range(10)))
    run = trainer(tmp_path, HierarchyMetrics(tmp_path / "tree.txt", tmp_path / "names.txt"))
    run.test(regime(), digits(), verbose=False)
    assert "test/hp_1" in measured(run)


def test_mistakes_show_before_the_training(tree, tmp_path):
    with pytest.raises(UserError, match=r"gone.txt: there is no such file"):
        HierarchyMetrics(tmp_path / "gone.txt")
    tree.write_text("some\n-- digit 0\n-- digit 1\n")
    with pytest.raises(UserError, match=r"class 'digit 2' is no leaf of hierarchy .*tree.txt \(2 of 10 classes"):
        trainer(tmp_path, HierarchyMetrics(tree)).fit(regime(), digits())

    class Other(LightningModule):
        pass

    with pytest.raises(UserError, match=r"HierarchyMetrics .* Other"):
        HierarchyMetrics(tree).setup(None, Other(), "test")


def test_two_processes_measure_as_one(tree, tmp_path):
    files = {processes: tmp_path / f"{processes}.pt" for processes in (1, 2)}
    run_groups(*((processes, measure, processes, file, tree, tmp_path) for processes, file in files.items()))
    one, two = (torch.load(file) for file in files.values())
    assert len(one) == 7
    assert two == pytest.approx(one, rel=1e-6)
