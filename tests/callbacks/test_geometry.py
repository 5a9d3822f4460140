import csv
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from metricloss_pl.callbacks import GeometryMonitor
from metricloss_pl.errors import UserError
from tests.callbacks.ddp_callbacks import run_all
from tests.callbacks.runs import digits, fit, regime, trainer
from tests.processes import run_groups

NAMES = {
    "accuracy", "balanced_accuracy", "intra_variance", "mean_distance", "min_distance", "intra_inter_ratio", "norm",
    "nearest_mean_accuracy",
}  # fmt: skip


def by_hand(model, data):
    """The measures from all embeddings at once, by loops."""
    model.eval()
    values, means = {}, None
    for part in ("train", "val"):
        samples = data.samples(part)
        with torch.no_grad():
            embeddings = model.embed(samples.images)
            right = (model.class_scores(embeddings).argmax(1) == samples.labels).double()
        embeddings = embeddings.double()
        own = torch.stack([embeddings[samples.labels == k].mean(0) for k in range(10)])
        means = own if means is None else means
        distances = [(own[a] - own[b]).norm() for a in range(10) for b in range(a)]
        variance = torch.stack([(x - own[k]).square().sum() for x, k in zip(embeddings, samples.labels, strict=True)])
        nearest = torch.stack([(x - means).norm(dim=1).argmin() for x in embeddings])
        measured = {
            "accuracy": right.mean(),
            "balanced_accuracy": torch.stack([right[samples.labels == k].mean() for k in range(10)]).mean(),
            "intra_variance": variance.mean(),
            "mean_distance": sum(distances) / 45,
            "min_distance": min(distances),
            "intra_inter_ratio": variance.mean().sqrt() * 45 / sum(distances),
            "norm": embeddings.norm(dim=1).mean(),
            "nearest_mean_accuracy": (nearest == samples.labels).double().mean(),
        }
        values |= {f"geometry/{part}_{name}": float(value) for name, value in measured.items()}
    return values


def measured(run):
    return {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("geometry/")}


def geometry_rows(logger):
    with Path(logger.log_dir, "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row.get("geometry/val_norm")]


def test_values_are_those_of_all_images_at_once(tmp_path):
    model, data = regime(), digits(augment=[])
    run = fit(tmp_path, GeometryMonitor(), model=model, data=data)
    assert {name.removeprefix("geometry/train_") for name in measured(run) if "train" in name} == NAMES
    assert measured(run) == pytest.approx(by_hand(model, data), rel=1e-4)


def test_images_are_not_augmented(tmp_path):
    from metricloss_pl.augment import ShiftCrop

    model, data = regime(), digits(augment=[ShiftCrop(pixels=3)])
    run = fit(tmp_path, GeometryMonitor(), model=model, data=data)
    assert measured(run) == pytest.approx(by_hand(model, data), rel=1e-4)


def test_values_reach_the_logger_at_the_chosen_epochs_and_the_last(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(tmp_path, GeometryMonitor(every_n_epochs=2), logger=logger, max_epochs=5)
    assert [row["epoch"] for row in geometry_rows(logger)] == ["1", "3", "4"]


def test_last_epoch_of_an_early_stop_is_measured(tmp_path):
    stop = EarlyStopping("train/loss", stopping_threshold=1e9, check_on_train_epoch_end=True)  # after one epoch
    logger = CSVLogger(tmp_path)
    model, data = regime(), digits()
    run = fit(tmp_path, GeometryMonitor(every_n_epochs=4), stop, logger=logger, max_epochs=9, model=model, data=data)
    assert run.current_epoch == 1
    assert measured(run) == pytest.approx(by_hand(model, data), rel=1e-4)
    (row,) = geometry_rows(logger)
    assert float(row["geometry/val_norm"]) == pytest.approx(measured(run)["geometry/val_norm"], rel=1e-4)
    assert float(row["epoch"]) == 0
    assert int(row["step"]) == run.global_step - 1


def test_without_validation_the_training_part_alone(tmp_path):
    values = measured(fit(tmp_path, GeometryMonitor(), data=digits(val_fraction=0)))
    assert values.keys() == {f"geometry/train_{name}" for name in NAMES}


def test_any_loader_is_measured_on_validation_alone(tmp_path):
    data = digits()
    data.setup("fit")
    samples = data.samples("val")
    loader = DataLoader(list(zip(samples.images, samples.labels, strict=True)), batch_size=7)
    run = trainer(tmp_path, GeometryMonitor(), max_epochs=1)
    with pytest.warns(UserWarning, match="GeometryMonitor measures no training images"):
        run.fit(regime(), loader, loader)
    assert measured(run).keys() == {f"geometry/val_{name}" for name in NAMES - {"nearest_mean_accuracy"}}


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_other_precisions(tmp_path, precision):
    values = measured(fit(tmp_path, GeometryMonitor(), precision=precision, max_epochs=1))
    assert len(values) == 2 * len(NAMES)
    assert all(value == value for value in values.values())


def test_wrong_settings_are_refused():
    with pytest.raises(UserError, match="every_n_epochs of GeometryMonitor is 0"):
        GeometryMonitor(every_n_epochs=0)


def test_two_processes_measure_exactly_what_one_does(tmp_path):
    """Odd numbers of images; the network does not move, since batch norm sees other batches on two processes."""
    run_groups(*((n, run_all, n, tmp_path / f"{n}.pt", tmp_path / f"run{n}") for n in (1, 2)))
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in (1, 2))
    assert one["geometry"] == pytest.approx(two["geometry"], rel=1e-5)
    assert len(one["geometry"]) == 2 * len(NAMES)
    assert all(size % 2 == 1 for size in one["sizes"])
    for name in ("predictions_test.csv", "figures/confusion_matrix.csv"):
        assert (tmp_path / "run1" / name).read_text() == (tmp_path / "run2" / name).read_text()
    assert (tmp_path / "run2" / "figures" / "embeddings" / "epoch_0001.png").is_file()
