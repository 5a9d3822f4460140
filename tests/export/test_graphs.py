"""Graphs of trained regimes give the probabilities of the network, on digits."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metricloss_pl import regimes
from metricloss_pl.backbones import CifarResNet, TimmBackbone, TinyConvNet, TorchvisionBackbone
from metricloss_pl.backbones.whitened import WhitenedConvNet
from metricloss_pl.data import DigitsDataModule
from metricloss_pl.data.preparation import prepare_batches
from metricloss_pl.errors import UserError
from metricloss_pl.export import graphs
from metricloss_pl.regimes import Classifier

pytest.importorskip("onnxruntime")

SOFTMAX, COSINE, CENTER = "SoftmaxClassifier", "CosineClassifier", "CenterSoftmaxClassifier"
STANDALONE, PROBE, MARGIN = "StandaloneCenterClassifier", "LinearProbeClassifier", "MetricLearningClassifier"
BACKBONES = {
    "tiny": lambda: TinyConvNet(in_channels=1, width=8),
    "whitened": lambda: WhitenedConvNet(in_channels=1, width=8),
    "resnet8": lambda: CifarResNet(in_channels=1, depth=8),
    "torchvision": lambda: TorchvisionBackbone("resnet18", in_channels=1, small_stem=True),
    "timm": lambda: TimmBackbone("efficientnet_lite0", in_channels=1),
}
FAST = [
    *((SOFTMAX, "tiny"), (COSINE, "whitened"), (CENTER, "resnet8")),
    *((STANDALONE, "tiny"), (PROBE, "resnet8"), (MARGIN, "tiny")),
]
ALL = [
    (regime, name)
    for regime in (SOFTMAX, COSINE, CENTER, STANDALONE, MARGIN)
    for name in ("tiny", "whitened", "torchvision", "timm")
]


@pytest.fixture(scope="module")
def data() -> DigitsDataModule:
    module = DigitsDataModule(image_size=16)
    module.setup("fit")
    module.setup("test")
    return module


def digits(data: DigitsDataModule, split: str) -> tuple[Tensor, Tensor]:
    """Return the images of a set as a network takes them, and their labels."""
    samples = data.samples(split)
    [images] = prepare_batches(samples.images, in_channels=1, image_size=16, batch_size=2000)
    return images, samples.labels


def trained(regime: str, backbone: str, data: DigitsDataModule) -> Classifier:
    """Return a regime after a few steps, so that its probabilities differ between images."""
    if regime == MARGIN:
        pytest.importorskip("pytorch_metric_learning")
    if backbone == "timm":
        pytest.importorskip("timm")
    torch.manual_seed(0)
    settings: dict[str, Any] = {} if regime in (COSINE, PROBE) else {"embedding_dim": 16}
    model: Classifier = getattr(regimes, regime)(10, BACKBONES[backbone](), data.class_names, **settings)
    images, labels = digits(data, "train")
    model.image_format = data.image_format
    model.mean, model.std = torch.tensor([0.3]), torch.tensor([0.38])
    if isinstance(model.backbone, WhitenedConvNet):
        model.backbone.initialize(model.normalize(images[:200]))
    optimizer = torch.optim.Adam(model.parameters())
    batches = torch.randperm(len(images)).split(64)
    for batch in batches:
        optimizer.zero_grad()
        model.losses(model.embed(images[batch]), labels[batch])["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        for batch in batches[:10]:  # the statistics of batch norm follow
            model.losses(model.embed(images[batch]), labels[batch])
        model.eval()
        model.temperature = model.class_scores(model.embed(images[:500])).std().item()  # no probability is near 1
    return model


def check(model: Classifier, data: DigitsDataModule, file: Path, dtype: torch.dtype = torch.uint8) -> None:
    """Export with embeddings, and compare on all test digits at once and on one alone."""
    graphs.write_graph(
        model, file, onnx=file.suffix == ".onnx", dtype=dtype, embeddings=True, metadata={"class_names": ["ä", "b"]}
    )
    images, _ = digits(data, "test")
    given = images if dtype == torch.uint8 else images.float() / 255
    graph = graphs._reader(file, file.suffix == ".onnx")
    with torch.no_grad():
        embeddings = model.embed(images)
        want = torch.softmax(model.class_scores(embeddings) / model.temperature, dim=1)
        assert (want.amax(0) - want.amin(0)).max() > 0.01  # digits differ by more than the tolerance
        for count in (len(images), 1):
            found, found_embeddings = graph(given[:count])
            assert (found - want[:count]).abs().max() <= 1e-4
            scale = embeddings.abs().max()
            torch.testing.assert_close(found_embeddings / scale, embeddings[:count] / scale, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("regime", "backbone"), FAST)
def test_onnx_gives_the_probabilities_of_digits(regime, backbone, data, tmp_path):
    check(trained(regime, backbone, data), data, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(("regime", "backbone"), [pair for pair in ALL if pair not in FAST])
def test_onnx_gives_the_probabilities_of_digits_for_every_pair(regime, backbone, data, tmp_path):
    check(trained(regime, backbone, data), data, tmp_path / "model.onnx")


@pytest.fixture(scope="module")
def model(data) -> Classifier:
    return trained(COSINE, "tiny", data)


@pytest.mark.parametrize("file", ["model.pt2", "model.onnx"])
def test_float_images_in_both_formats(file, model, data, tmp_path):
    check(model, data, tmp_path / file, torch.float32)


def test_metadata_are_in_the_file(model, tmp_path):
    import onnxruntime

    metadata = {"class_names": ["ä", "b"], "temperature": 0.5, "image_size": None}
    graphs.write_graph(model, tmp_path / "a.onnx", metadata=metadata)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    stored = session.get_modelmeta().custom_metadata_map
    assert {name: json.loads(value) for name, value in stored.items()} == metadata
    assert [(one.name, one.type) for one in session.get_inputs()] == [("images", "tensor(uint8)")]
    assert [one.name for one in session.get_outputs()] == ["probabilities"]
    graphs.write_graph(model, tmp_path / "a.pt2", onnx=False, metadata=metadata)
    files = {"metadata.json": ""}
    torch.export.load(tmp_path / "a.pt2", extra_files=files)
    assert json.loads(files["metadata.json"]) == metadata


def as_they_are(model: nn.Module) -> Classifier:
    model.image_format = {"in_channels": 1, "resize": None, "image_size": None}
    return model


def test_images_as_they_are_have_any_size(data, tmp_path):
    model = as_they_are(trained(SOFTMAX, "tiny", data))
    graphs.write_graph(model, tmp_path / "a.onnx", metadata={})
    graph = graphs._reader(tmp_path / "a.onnx", onnx=True)
    for size in ((8, 8), (17, 30)):
        images = torch.randint(0, 256, (2, 1, *size), dtype=torch.uint8)
        with torch.no_grad():
            torch.testing.assert_close(graph(images)[0], model.probabilities(model(images)), atol=1e-5, rtol=0)


def test_a_network_that_depends_on_the_size_needs_it(data, tmp_path):
    """WhitenedConvNet pools by a factor of the size, which a graph has fixed."""
    model = as_they_are(trained(SOFTMAX, "whitened", data))
    with pytest.raises(UserError, match="--image_size"):
        graphs.write_graph(model, tmp_path / "a.pt2", onnx=False, metadata={})
    assert graphs.write_graph(model, tmp_path / "a.pt2", onnx=False, image_size=70, metadata={}) <= 1e-4


def test_a_graph_that_differs_is_refused(model, tmp_path, monkeypatch):
    read = graphs._reader
    for shift in (2e-4, torch.nan):
        monkeypatch.setattr(
            graphs, "_reader", lambda *args, by=shift: lambda images: [one + by for one in read(*args)(images)]
        )
        with pytest.raises(UserError, match="TinyConvNet gives other results"):
            graphs.write_graph(model, tmp_path / "a.pt2", onnx=False, metadata={})


def test_embeddings_of_zeros_and_a_missing_output(model, tmp_path, monkeypatch):
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    wanted = {"onnx": False, "embeddings": True, "metadata": {}}
    assert graphs.write_graph(model, tmp_path / "a.pt2", **wanted) <= 1e-4
    read = graphs._reader
    monkeypatch.setattr(graphs, "_reader", lambda *args: lambda images: read(*args)(images)[:1])
    with pytest.raises(ValueError):  # noqa: PT011 (of `zip`)
        graphs.write_graph(model, tmp_path / "a.pt2", **wanted)


class Branching(nn.Module):
    """A network that decides by values, which no graph can hold."""

    num_features = 1

    def forward(self, images: Tensor) -> Tensor:
        features = images.mean((1, 2, 3))[:, None]
        return features if features.sum() > 0 else -features


def test_a_network_without_a_graph_is_named(tmp_path):
    model = as_they_are(regimes.SoftmaxClassifier(10, Branching()).eval())
    with pytest.raises(UserError, match="Branching cannot be exported") as caught:
        graphs.write_graph(model, tmp_path / "a.onnx", metadata={})
    assert "\n" not in str(caught.value)
