"""Running statistics of batch norms are those of the training images as evaluation sees them."""

import copy
import math

import pytest
import torch
from torch import nn

from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.callbacks import BatchNormStatistics, ExponentialMovingAverage, FreezeBackbone
from metricloss_pl.data import DigitsDataModule, ImageFolderDataModule
from metricloss_pl.errors import UserError
from metricloss_pl.regimes import Classifier, CosineClassifier, SoftmaxClassifier
from tests.helpers import make_folder
from tests.regimes.blobs import C, Flat, loader, trainer


def _fit(tmp_path, *callbacks, regime=SoftmaxClassifier, **settings) -> tuple[Classifier, DigitsDataModule]:
    torch.manual_seed(0)
    model = regime(10, TinyConvNet(width=4, dropout=0.5))
    data = DigitsDataModule(batch_size=16, samples_per_class=20, **settings)
    trainer(tmp_path, max_epochs=2, callbacks=list(callbacks)).fit(model, datamodule=data)
    return model, data


def _statistics(model: nn.Module) -> list[torch.Tensor]:
    return [value for name, value in model.state_dict().items() if "running" in name]


def _expected(model: Classifier, data: DigitsDataModule, batch_size: int) -> list[torch.Tensor]:
    """Mean and unbiased variance of each channel before each batch norm, averaged over the batches."""
    found: dict[str, list[list[torch.Tensor]]] = {}
    twin = copy.deepcopy(model).eval()

    def note(name):
        def hook(layer, inputs):
            maps = inputs[0].transpose(0, 1).flatten(1)
            found.setdefault(name, []).append([maps.mean(1), maps.var(1)])
            layer.training = True  # the next layers see the batch's own statistics

        return hook

    for name, layer in twin.named_modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            layer.register_forward_pre_hook(note(name))
    with torch.no_grad():
        images = data.training_sample(1000)
        for batch in images.tensor_split(math.ceil(len(images) / batch_size)):
            twin(batch)
    return [torch.stack(values).mean(0) for batches in found.values() for values in zip(*batches, strict=True)]


@pytest.mark.parametrize("regime", [SoftmaxClassifier, CosineClassifier])
@pytest.mark.parametrize("val_fraction", [0.2, 0])
def test_statistics_are_the_means_over_equal_batches(tmp_path, regime, val_fraction):
    """The head of the cosine regime has a batch norm, too."""
    model, data = _fit(tmp_path, BatchNormStatistics(batch_size=30), regime=regime, val_fraction=val_fraction)
    statistics = _statistics(model)
    assert len(statistics) == (8 if regime is SoftmaxClassifier else 10)
    torch.testing.assert_close(statistics, _expected(model, data, 30), rtol=1e-4, atol=1e-5)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d)]
    assert all(layer.momentum == 0.1 for layer in norms)


@pytest.mark.parametrize(("cache_gb", "decodings"), [(0, 3), (1e-5, 1)])
def test_images_on_disk_are_decoded_once_if_they_fit(tmp_path, monkeypatch, cache_gb, decodings):
    """10 kB hold the sample of 6 kB, and not all training images."""
    root = make_folder(tmp_path / "images", images=12)
    models = []
    for memory in (2.0, cache_gb):
        data = ImageFolderDataModule(root=str(root), image_size=20, batch_size=4, cache_gb=memory)
        torch.manual_seed(0)
        model, callback, drawn = SoftmaxClassifier(2, TinyConvNet(3, width=4)), BatchNormStatistics(images=5), []

        def noted(count, sample=data.training_sample, drawn=drawn):
            drawn.append(count)
            return sample(count)

        monkeypatch.setattr(data, "training_sample", noted)
        trainer(tmp_path, max_epochs=3, callbacks=[callback]).fit(model, datamodule=data)
        assert data.in_memory("train") == (memory == 2)
        assert callback._kept is None
        models.append(model)
    assert drawn == [5] * decodings
    for known, other in zip(*map(_statistics, models), strict=True):
        assert torch.equal(known, other)


def test_a_training_that_ends_within_an_epoch(tmp_path):
    torch.manual_seed(0)
    model = SoftmaxClassifier(10, TinyConvNet(width=4))
    data = DigitsDataModule(batch_size=16, samples_per_class=20, val_fraction=0)
    trainer(tmp_path, max_epochs=-1, max_steps=5, callbacks=[BatchNormStatistics()]).fit(model, datamodule=data)
    torch.testing.assert_close(_statistics(model), _expected(model, data, 250), rtol=1e-4, atol=1e-5)


def test_batch_norms_that_do_not_train_or_do_not_run_keep_their_statistics(tmp_path):
    class WithAside(SoftmaxClassifier):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.aside = nn.BatchNorm1d(3)
            nn.init.constant_(self.aside.running_mean, 7.0)

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + 0 * self.aside.weight.sum()

    model, _ = _fit(tmp_path, BatchNormStatistics(), FreezeBackbone(2), regime=WithAside)
    assert model.aside.running_mean.tolist() == [7.0] * 3
    for name, value in model.backbone.state_dict().items():
        if "running" in name:
            assert value.unique().item() == ("var" in name)


def test_the_network_trains_as_without_it(tmp_path):
    models = [_fit(tmp_path, *callbacks)[0] for callbacks in ([], [BatchNormStatistics()])]
    for plain, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(plain, other, rtol=0, atol=0)
    assert not torch.equal(_statistics(models[0])[0], _statistics(models[1])[0])


@pytest.mark.parametrize("val_fraction", [0.2, 0])
def test_averaged_weights_get_statistics_of_their_own(tmp_path, val_fraction):
    callbacks = [BatchNormStatistics(), ExponentialMovingAverage(decay=0.9)]
    model, data = _fit(tmp_path, *callbacks, val_fraction=val_fraction)
    torch.testing.assert_close(_statistics(model), _expected(model, data, 250), rtol=1e-4, atol=1e-5)


def test_mistakes(tmp_path):
    for arguments in ({"images": 1}, {"batch_size": 1}):
        with pytest.raises(UserError, match=next(iter(arguments))):
            BatchNormStatistics(**arguments)
    with pytest.raises(UserError, match="ImageDataModule"):
        trainer(tmp_path, callbacks=[BatchNormStatistics()]).fit(SoftmaxClassifier(C, Flat()), loader())
