"""A backbone with layers that come from training images computes them when training is set up, and only then."""

import pytest
import torch
from torch.nn import functional as F

from metricloss_pl.backbones import WhitenedConvNet
from metricloss_pl.callbacks import DatasetFacts
from metricloss_pl.data import DigitsDataModule
from metricloss_pl.regimes import SoftmaxClassifier
from tests.regimes.blobs import trainer


def _model() -> SoftmaxClassifier:
    torch.manual_seed(0)
    return SoftmaxClassifier(10, WhitenedConvNet(in_channels=1, width=4, depth=1))


@pytest.fixture
def data() -> DigitsDataModule:
    return DigitsDataModule(image_size=16, batch_size=256)


def test_whitens_the_patches_of_the_training_images(tmp_path, data):
    model = _model()
    trainer(tmp_path, max_epochs=1, callbacks=[DatasetFacts(images=5000)]).fit(model, datamodule=data)
    images = data.training_sample(5000)
    assert len(images) == len(data.samples("train"))
    maps = F.conv2d(model.normalize(images), model.backbone.whitening.weight[:4]).transpose(0, 1).flatten(1)
    moments = maps @ maps.T / maps.shape[1]
    assert ((moments - moments.diag().diag()).abs() < 0.01).all()
    assert ((moments.diag() > 0.9) & (moments.diag() < 1.01)).all()  # a little below 1, because of the floor


def test_a_sample_is_random_and_the_same_each_time(data):
    data.setup("fit")
    sample = data.training_sample(100)
    assert sample.shape == (100, 1, 16, 16)
    torch.testing.assert_close(data.training_sample(50), sample[:50])
    assert not torch.equal(sample, next(iter(data.train_eval_dataloader()))[0][:100])


def test_layers_of_a_trained_network_stay(tmp_path, data):
    model = _model()
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=data)
    filters = model.backbone.whitening.weight.clone()
    other = DigitsDataModule(image_size=16, batch_size=256, samples_per_class=10, val_fraction=0)
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=other)
    torch.testing.assert_close(model.backbone.whitening.weight, filters, rtol=0, atol=0)


def test_without_a_data_module_the_network_keeps_its_start(tmp_path):
    model = SoftmaxClassifier(3, WhitenedConvNet(in_channels=1, width=4, depth=1))
    images = torch.rand(8, 1, 16, 16)
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(8) % 3), batch_size=4)
    trainer(tmp_path, max_epochs=1).fit(model, batches)
    assert not model.backbone.initialized
