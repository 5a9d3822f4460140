import copy

import pytest
import torch
from torch import nn

from metricloss_pl.augment import HorizontalFlip
from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.callbacks import CachedFeatures, EmbeddingPlot, FreezeBackbone
from metricloss_pl.callbacks.run_folder import run_folder
from metricloss_pl.errors import UserError
from metricloss_pl.mixing import CutMix
from metricloss_pl.regimes import (
    CenterSoftmaxClassifier,
    CosineClassifier,
    SoftmaxClassifier,
    StandaloneCenterClassifier,
)
from tests.callbacks.ddp_features import fit_all
from tests.callbacks.runs import digits, trainer
from tests.processes import run_groups
from tests.regimes import blobs

REGIMES = {
    "softmax": SoftmaxClassifier,
    "cosine": CosineClassifier,
    "center": CenterSoftmaxClassifier,
    "standalone": StandaloneCenterClassifier,
}


class Counting(TinyConvNet):
    """Small network that counts the images it sees; with dropout, so that its mode matters."""

    def __init__(self) -> None:
        super().__init__(width=4, dropout=0.3)
        self.count = 0

    def forward(self, images):
        self.count += len(images)
        return super().forward(images)


def build(name="softmax"):
    torch.manual_seed(0)
    return REGIMES[name](10, Counting(), embedding_dim=10)


@pytest.mark.parametrize("name", REGIMES)
def test_equals_training_with_a_frozen_backbone(name, tmp_path):
    """As on images, which pass the frozen backbone in each epoch; that of another callback is independent."""
    cached, frozen = build(name), build(name)
    before = copy.deepcopy(cached.backbone.state_dict())
    data = digits(augment=[])
    trainer(tmp_path, CachedFeatures(flip=False, keep=False)).fit(cached, data)
    trainer(tmp_path, FreezeBackbone(epochs=3)).fit(frozen, digits(augment=[]))
    for key, tensor in frozen.state_dict().items():
        torch.testing.assert_close(cached.state_dict()[key], tensor, rtol=1e-4, atol=1e-5, msg=key)
    assert all(torch.equal(tensor, cached.backbone.state_dict()[key]) for key, tensor in before.items())
    assert cached.backbone.count == 60 + 20
    assert data.features == {}
    assert all(parameter.requires_grad for parameter in cached.backbone.parameters())


def test_mirror_images_are_views(tmp_path):
    """Each image and its mirror image are computed, and each has its turn; the data module's augmentation has none."""

    class Seen(EmbeddingPlot):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            features.append(batch[0])

    features, model = [], build()
    data = digits(augment=[HorizontalFlip()])
    trainer(tmp_path, CachedFeatures(keep=False), Seen(every_n_epochs=9), max_epochs=30).fit(model, data)
    assert model.backbone.count == 2 * 60 + 20
    images = torch.cat([images for images, _ in data.train_eval_dataloader()])
    with torch.no_grad():
        model.eval()
        plain, mirrored = model.backbone(model.normalize(images)), model.backbone(model.normalize(images.flip(-1)))
    seen = torch.cat(features)
    of_plain, of_mirrored = (torch.cdist(seen, views).amin(1) < 1e-4 for views in (plain, mirrored))
    assert (of_plain | of_mirrored).all()
    assert 0.4 < of_plain.double().mean() < 0.6


def test_features_are_read_from_a_file(tmp_path):
    """Another head and split compute new images alone; another network and a damaged file compute all."""
    first, second, other = build(), build("cosine"), build()
    fixed = {"mean": [0.3], "std": [0.4]}  # else they depend on the split
    trainer(tmp_path, CachedFeatures()).fit(first, digits(**fixed))
    (file,) = (tmp_path / "features").iterdir()
    known = 60 + 60 + 20
    assert first.backbone.count == known
    trainer(tmp_path, CachedFeatures()).fit(second, digits(**fixed))
    assert second.backbone.count == 0
    second = build()
    trainer(tmp_path, CachedFeatures()).fit(second, digits(val_fraction=0.5, **fixed))
    assert second.backbone.count < known / 4
    with torch.no_grad():
        next(other.backbone.parameters()).add_(1e-3)
    trainer(tmp_path, CachedFeatures()).fit(other, digits(**fixed))
    assert other.backbone.count == known
    file.write_bytes(file.read_bytes()[:100])
    repaired = build()
    trainer(tmp_path, CachedFeatures()).fit(repaired, digits(**fixed))
    assert repaired.backbone.count == known
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, repaired.state_dict()[key]), key


def test_the_trained_network_takes_images(tmp_path):
    model = build("cosine")
    data = digits()
    run = trainer(tmp_path, CachedFeatures(keep=False), EmbeddingPlot(every_n_epochs=3), logger=True, max_epochs=3)
    run.fit(model, data)
    run.test(model, data, verbose=False)
    images, _ = next(iter(data.test_dataloader()))
    model.eval()
    with torch.no_grad():
        assert torch.equal(model.embed(images), model.embed(model.backbone(model.normalize(images))))
    assert (run_folder(run) / "figures" / "embeddings" / "epoch_0003.png").is_file()


def test_mistakes_get_one_line(tmp_path):
    with pytest.raises(UserError, match="needs an ImageDataModule"):
        trainer(tmp_path, CachedFeatures()).fit(build(), blobs.loader())
    bare = CosineClassifier(10, nn.Sequential(nn.Flatten()), embedding_dim=None, num_features=10, ce_weight=0)
    with pytest.raises(UserError, match="nothing to train but its backbone"):
        trainer(tmp_path, CachedFeatures()).fit(bare, digits())
    mixing = SoftmaxClassifier(10, Counting(), embedding_dim=10, batch_mixing=CutMix())
    with pytest.raises(UserError, match="batch_mixing"):
        trainer(tmp_path, CachedFeatures()).fit(mixing, digits())


def test_an_exception_gives_images_and_backbone_back(tmp_path):
    class Broken(SoftmaxClassifier):
        def losses(self, embeddings, labels):
            raise RuntimeError("broken")

    model, data = Broken(10, Counting(), embedding_dim=10), digits()
    with pytest.raises(RuntimeError, match="broken"):
        trainer(tmp_path, CachedFeatures(keep=False)).fit(model, data)
    assert data.features == {}
    assert all(parameter.requires_grad for parameter in model.backbone.parameters())


def test_processes_train_as_one(tmp_path):
    files = [tmp_path / f"{processes}.pt" for processes in (1, 2)]
    run_groups(*((processes, fit_all, processes, file) for processes, file in enumerate(files, start=1)))
    ends = [torch.load(file, weights_only=True) for file in files]
    for name, expected in ends[0].items():
        for key, tensor in expected.items():
            torch.testing.assert_close(tensor, ends[1][name][key], rtol=1e-4, atol=1e-4, msg=f"{name}: {key}")
