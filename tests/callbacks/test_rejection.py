"""The threshold beyond which an image is of no known class."""

import csv
import math
from fractions import Fraction

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.callbacks import (
    BatchNormStatistics,
    ExponentialMovingAverage,
    PredictionWriter,
    RejectionThreshold,
)
from metricloss_pl.callbacks.rejection import _rank
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import (
    CenterSoftmaxClassifier,
    CosineClassifier,
    SoftmaxClassifier,
    StandaloneCenterClassifier,
)
from tests.callbacks.ddp_rejection import validate_and_test
from tests.callbacks.runs import digits, fit, trainer
from tests.processes import run_groups
from tests.regimes.blobs import C, Flat, loader

NAMES = [f"digit {label}" for label in range(10)]


def build(regime, **options):
    torch.manual_seed(0)
    return regime(10, TinyConvNet(in_channels=1, width=4, dropout=0.3), NAMES, **options)


def images_of(data, split):
    samples = data.samples(split)
    return samples.images, samples.labels


@torch.no_grad()
def slow_distances(model, data, split):
    """Return the distance of each image to the nearest class, one image and one class at a time, in float64."""
    model.eval()

    def points(images):
        embeddings = model.embed(images).double()
        is_cosine = isinstance(model, CosineClassifier)
        return embeddings / embeddings.norm(dim=1, keepdim=True) if is_cosine else embeddings

    if isinstance(model, SoftmaxClassifier):
        images, labels = images_of(data, "train")
        train = points(images)
        classes = [train[labels == label].mean(0) for label in range(10)]
    elif isinstance(model, CosineClassifier):
        classes = torch.eye(10).double()
    else:
        classes = model.criterion.centers.double()
    of_split = points(images_of(data, split)[0])
    return torch.tensor([min(float((point - one).norm()) for one in classes) for point in of_split])


@pytest.mark.parametrize(
    "regime", [SoftmaxClassifier, CosineClassifier, CenterSoftmaxClassifier, StandaloneCenterClassifier]
)
def test_threshold_is_the_quantile_of_the_validation_distances(regime, tmp_path):
    """For 20 images and 20 % it is the ceil(21 * 0.8) = 17th, with the averaged weights of the checkpoint."""
    data = digits()
    model = build(regime, embedding_dim="auto" if regime is CosineClassifier else 5)
    averaging = [ExponentialMovingAverage(decay=0.9), BatchNormStatistics(batch_size=30)]
    save = ModelCheckpoint(dirpath=tmp_path, save_last=True, save_top_k=0, enable_version_counter=False)
    run = fit(tmp_path, *averaging, RejectionThreshold(0.2), save, model=model, data=data, enable_checkpointing=True)
    own = {"backbone": TinyConvNet(in_channels=1, width=4, dropout=0.3)}
    loaded = regime.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True, **own)
    want = slow_distances(loaded, data, "val").sort().values[16]
    assert loaded.rejection.threshold == pytest.approx(float(want), rel=1e-4)
    assert (loaded.rejection.class_means is None) == (regime is not SoftmaxClassifier)

    [measured] = run.test(loaded, data, verbose=False)
    far = slow_distances(loaded, data, "test") > loaded.rejection.threshold
    assert measured["test/false_reject_rate"] == pytest.approx(far.float().mean().item(), abs=1e-6)
    assert 0 < far.sum() < len(far)
    run = trainer(tmp_path, PredictionWriter(str(tmp_path / "predicted.csv")))
    run.predict(loaded, data, return_predictions=False)
    with (tmp_path / "predicted.csv").open(newline="") as file:
        assert [row["rejected"] for row in csv.DictReader(file)] == ["true" if flag else "false" for flag in far]


@pytest.mark.parametrize("quantile", [0.05, 0.1, 0.2, 0.3, 1 / 3, 0.5, 0.99])
def test_new_images_are_rejected_with_the_probability_asked_for_at_most(quantile):
    """The last of n + 1 images in random order is beyond the one of a rank with probability 1 - rank / (n + 1)."""
    exact = Fraction(quantile).limit_denominator(1000)
    least = None
    for images in range(1, 60):
        ranks = [rank for rank in range(1, images + 1) if 1 - Fraction(rank, images + 1) <= exact]
        if ranks:
            least = least or images
            assert _rank(images, quantile) == ranks[0]
        else:
            with pytest.raises(UserError, match=f"reject_quantile is {quantile}.* there are {images}$"):
                _rank(images, quantile)
    with pytest.raises(UserError, match=f"at least {least} validation image"):
        _rank(0, quantile)
    assert _rank(144, 1 - 1e-12) == 1


def test_validation_writes_the_threshold_into_the_checkpoint_and_nothing_else(tmp_path):
    data, model = digits(), build(SoftmaxClassifier)
    fit(tmp_path, model=model, data=data, max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    before = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert before["rejection"] is None
    for _ in range(2):
        run = trainer(tmp_path, RejectionThreshold(0.1))
        run.validate(build(SoftmaxClassifier), data, ckpt_path=tmp_path / "a.ckpt", weights_only=True, verbose=False)
    after = torch.load(tmp_path / "a.ckpt", weights_only=True)
    fitted = after.pop("rejection")
    assert fitted["quantile"] == 0.1
    want = slow_distances(model, data, "val").sort().values[18]
    assert fitted["threshold"] == pytest.approx(float(want), rel=1e-4)
    assert set(after) == set(before) - {"rejection"}
    for name, tensor in before["state_dict"].items():
        assert torch.equal(tensor, after["state_dict"][name])
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_threshold_belongs_to_the_weights(tmp_path):
    """Another training without a quantile drops it, and a checkpoint from before there were any has none."""
    data, model = digits(), build(CosineClassifier)
    fit(tmp_path, RejectionThreshold(0.5), model=model, data=data, max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    assert model.rejection is not None
    run = fit(tmp_path, model=model, data=data, max_epochs=1)
    assert model.rejection is None
    [measured] = run.test(model, data, verbose=False)
    assert "test/false_reject_rate" not in measured
    assert model.rejects(torch.ones(1, 10)) is None

    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert math.isfinite(content.pop("rejection")["threshold"])
    torch.save(content, tmp_path / "old.ckpt")
    own = {"backbone": TinyConvNet(in_channels=1, width=4, dropout=0.3), "weights_only": True}
    assert CosineClassifier.load_from_checkpoint(tmp_path / "old.ckpt", **own).rejection is None
    for wrong in (
        3,
        {"threshold": 1.0},
        {"threshold": math.inf, "quantile": 0.1, "class_means": None},
        {"threshold": "1", "quantile": 0.1, "class_means": None},
        {"threshold": 1.0, "quantile": 0.1, "class_means": torch.zeros(10, 3)},
        {"threshold": 1.0, "quantile": 0.1, "class_means": torch.zeros(0, 10)},
    ):
        torch.save({**content, "rejection": wrong}, tmp_path / "wrong.ckpt")
        with pytest.raises(UserError, match="rejection"):
            CosineClassifier.load_from_checkpoint(tmp_path / "wrong.ckpt", **own)

    fit(tmp_path, model=build(SoftmaxClassifier), data=data, max_epochs=1).save_checkpoint(tmp_path / "b.ckpt")
    content = torch.load(tmp_path / "b.ckpt", weights_only=True)
    content["rejection"] = {"threshold": 1.0, "quantile": 0.1, "class_means": None}  # as of a regime with anchors
    torch.save(content, tmp_path / "wrong.ckpt")
    with pytest.raises(UserError, match="rejection"):
        SoftmaxClassifier.load_from_checkpoint(tmp_path / "wrong.ckpt", **own)


def test_the_threshold_does_not_depend_on_the_number_of_processes(tmp_path):
    files = {processes: tmp_path / f"{processes}.pt" for processes in (1, 2)}
    run_groups(*[(processes, validate_and_test, processes, file, tmp_path) for processes, file in files.items()])
    one, two = (torch.load(files[processes], weights_only=True) for processes in (1, 2))
    assert one[1].shape == (10, 2)
    for ours, theirs in zip(one, two, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_too_few_images_and_wrong_quantiles_are_refused(tmp_path):
    for quantile in (0, 1, -0.1, math.nan):
        with pytest.raises(UserError, match=f"reject_quantile is {quantile}"):
            RejectionThreshold(quantile)
    steps = []

    class Counted(SoftmaxClassifier):
        def training_step(self, batch, batch_idx):
            steps.append(batch_idx)
            return super().training_step(batch, batch_idx)

    for data, found in ((digits(), 20), (digits(val_fraction=0), 0)):
        with pytest.raises(UserError, match=f"0.01.* at least 99 validation images, and there are {found}"):
            fit(tmp_path, RejectionThreshold(0.01), model=build(Counted), data=data)
    assert steps == []  # before the training
    model = SoftmaxClassifier(C, Flat())
    with pytest.raises(UserError, match="SoftmaxClassifier needs an ImageDataModule"):
        trainer(tmp_path, RejectionThreshold(0.2), num_sanity_val_steps=0).fit(model, loader(), loader(12))


def test_images_alone_have_class_anchors(tmp_path):
    """A regime with centers needs no data module, nor does a training without validation need a threshold."""
    model = StandaloneCenterClassifier(C, Flat())
    trainer(tmp_path, RejectionThreshold(0.2)).fit(model, loader(), loader(12))
    assert model.rejection.quantile == 0.2
    trainer(tmp_path, RejectionThreshold(0.2), fast_dev_run=True).fit(model, loader(), loader(3))
    assert model.rejection is None
