import copy
import warnings

import pytest
import torch
from torch import nn

from metricloss_pl.augment import HorizontalFlip, Rotation90, ShiftCrop, VerticalFlip
from metricloss_pl.backbones import TinyConvNet
from metricloss_pl.callbacks import CachedFeatures, EmbeddingPlot, FreezeBackbone
from metricloss_pl.callbacks.run_folder import run_folder
from metricloss_pl.errors import UserError
from metricloss_pl.mixing import CutMix
from metricloss_pl.regimes import (
    CenterSoftmaxClassifier,
    CosineClassifier,
    Distillation,
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
    """Each image and its mirror image are computed, and each has its turn."""

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
    fixed = {"mean": [0.3], "std": [0.4], "orientation": "upright"}  # else the normalization depends on the split
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


def test_evaluation_reads_features_too(tmp_path):
    """Accuracies are those of images, other runs compute nothing again, and test-time views are no features."""
    fixed = {"mean": [0.3], "std": [0.4]}
    first, second = build(), build("cosine")
    expected = []
    for model in (first, second):
        data = digits(**fixed)
        run = trainer(tmp_path, CachedFeatures())
        run.fit(model, data)
        computed = model.backbone.count
        found = [*run.validate(model, data, verbose=False), *run.test(model, data, verbose=False)]
        assert model.backbone.count == computed + (len(data.samples("test")) if model is first else 0)
        assert data.features == data.feature_sources == {}
        expected = trainer(tmp_path).test(model, data, verbose=False)
        assert found[1] == pytest.approx(expected[0], rel=1e-5)
        assert found[0].keys() >= {"val/accuracy"}
    checkpoint = tmp_path / "model.ckpt"
    run.save_checkpoint(checkpoint)
    other = build("cosine")  # its weights are another network's until the checkpoint is loaded
    with torch.no_grad():
        next(other.backbone.parameters()).add_(1.0)
    run = trainer(tmp_path, CachedFeatures())
    (found,) = run.test(other, digits(**fixed), ckpt_path=checkpoint, weights_only=True, verbose=False)
    assert found == pytest.approx(expected[0], rel=1e-5)
    assert other.backbone.count == 0
    unused, data = CachedFeatures(), run.datamodule
    unused.provide(run, other, "test")
    unused.teardown(run, other, "test")  # another model may be evaluated on the images
    assert data.feature_sources == {}
    views = digits(**fixed, tta="flip")
    trainer(tmp_path, CachedFeatures()).test(other, views, verbose=False)
    assert other.backbone.count == 2 * len(views.samples("test"))


def test_views_follow_the_data_module(tmp_path):
    """Mirror images are views if the data module mirrors images; a warning names its other augmentations."""
    for options, views, ignored in (
        ({}, 1, []),
        ({"orientation": "upright"}, 2, []),
        ({"augment": [HorizontalFlip(), VerticalFlip()]}, 2, ["VerticalFlip"]),
        ({"augment": [ShiftCrop(1), Rotation90()]}, 1, ["ShiftCrop, Rotation90"]),
    ):
        model = build()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(tmp_path, CachedFeatures(keep=False), max_epochs=1).fit(model, digits(**options))
        assert model.backbone.count == views * 60 + 20
        lines = [str(one.message) for one in caught if "CachedFeatures" in str(one.message)]
        assert len(lines) == len(ignored)
        assert all(names in line for names, line in zip(ignored, lines, strict=True))


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
    taught = SoftmaxClassifier(10, Counting(), embedding_dim=10, distillation=Distillation(["a.ckpt"]))
    with pytest.raises(UserError, match="distillation"):
        trainer(tmp_path, CachedFeatures()).fit(taught, digits())


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
