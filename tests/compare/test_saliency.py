"""Grad-CAM against its closed form, and its pictures in a report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from metricloss_pl.compare import figures
from metricloss_pl.compare.saliency import grad_cam, overlay
from metricloss_pl.compare.summary import Summary
from tests.compare.synthetic import make_comparison


class Pooled(nn.Module):
    """A convolution, the mean over the positions and a linear layer, whose Grad-CAM is the class activation map."""

    image_format = {"in_channels": 3, "resize": 8, "image_size": 8}  # noqa: RUF012
    class_names = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        return self.head(self.backbone(images / 255).mean(dim=(2, 3)))


@pytest.fixture
def files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    return pixels, [tmp_path / f"{number}.png" for number in range(3)]


@pytest.mark.parametrize("frozen", [False, True])
def test_grad_cam_of_a_pooled_network_is_its_class_activation_map(files, frozen):
    pixels, paths = files
    model = Pooled().requires_grad_(not frozen)
    found = grad_cam(model, paths)
    with torch.no_grad():
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        labels = model(images).argmax(dim=1)
        features = model.backbone(images / 255)
        expected = torch.einsum("bk,bkhw->bhw", model.head.weight[labels], features).relu()
    for (name, image, heat), label, own, original in zip(found, labels, expected, pixels, strict=True):
        assert name == model.class_names[label]
        np.testing.assert_allclose(heat, own / own.max(), atol=1e-5)
        np.testing.assert_allclose(image, original / 255, atol=1e-6)
    assert model.training
    assert not model.backbone[0]._forward_hooks


def test_no_map_without_a_convolution_or_a_known_preparation(files):
    model = Pooled()
    model.image_format = None
    assert grad_cam(model, files[1]) == []
    model = Pooled()
    model.backbone = nn.Flatten()
    assert grad_cam(model, files[1]) == []


def test_the_overlay_is_brighter_where_the_map_is_high():
    heat = np.zeros((2, 2))
    heat[0, 0] = 1
    mixed = overlay(np.full((2, 2, 3), 0.5), heat).astype(int).sum(axis=2)
    assert mixed[0, 0] > mixed[1, 1] > 0


def test_pictures_of_the_kept_network(tmp_path, monkeypatch):
    data, folder = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for number in range(30):
        Image.new("RGB", (12, 8), (8 * number, 0, 99)).save(data / f"{number}.png")
    make_comparison(folder, images=30, class_names=["a", "b"], name_image=lambda number: f"{number}.png")
    plan = json.loads((folder / "plan.json").read_text())
    plan["data"]["root"] = str(data)
    (folder / "plan.json").write_text(json.dumps(plan))
    summary = Summary(folder)
    assert list(figures._saliency_maps(summary)) == []  # no checkpoint is kept
    for run in summary.results.values():
        run["checkpoint"] = "last.ckpt"
    monkeypatch.setattr(
        "metricloss_pl.regimes.loading.load", lambda path: Pooled() if path == folder / "last.ckpt" else None
    )
    pictures = list(figures._saliency_maps(summary))
    assert len(pictures) == 4
    assert all(picture.values["predicted"] in "ab" for picture in pictures)
    names = [image["name"] for image in figures.disagreements(summary)[:4]]
    assert [picture.values["name"] for picture in pictures] == names
    summary.plan["variants"]["softmax"]["config"] = None  # a module of the user, which a checkpoint alone cannot name
    assert list(figures._saliency_maps(summary)) == []
