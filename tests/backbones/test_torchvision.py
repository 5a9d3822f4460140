from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from metricloss_pl.backbones import TorchvisionBackbone
from metricloss_pl.errors import UserError

ALL = models.list_models(module=models)
REGNETS = [name for name in ALL if name.startswith("regnet")]  # torchvision cannot build these without memory

# Small networks of all families, and a side that is fast.
SMALL = {
    "alexnet": 63,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32,
    "swin_t": 32,
    "vgg11": 32,
}


def _with_classifier(name: str) -> nn.Module:
    settings = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = models.get_model(name, num_classes=7, **settings)
    return network


def _save(network: nn.Module, folder: Path) -> str:
    path = folder / "weights.pth"
    torch.save(network.state_dict(), path)
    return str(path)


RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
# In millions, from the paper (Tan & Le 2019, Table 2).
EFFICIENTNETS = dict(zip((f"efficientnet_b{i}" for i in range(8)), (5.3, 7.8, 9.2, 12, 19, 30, 43, 66), strict=True))


def _parameters(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize("name", sorted({*RESNETS, *EFFICIENTNETS, *SMALL} - {"inception_v3"}))
def test_parameters_are_those_published(name: str):
    """All but inception_v3, whose published number counts its auxiliary head."""
    published = models.get_model_weights(name).DEFAULT.meta["num_params"]
    with torch.device("cpu" if name in REGNETS else "meta"):
        backbone = TorchvisionBackbone(name)
        assert _parameters(backbone) + _parameters(nn.Linear(backbone.num_features, 1000)) == published
        if name in RESNETS:
            full = TorchvisionBackbone(name, full_convolution=True)
            assert {k: v.shape for k, v in full.state_dict().items()} == {
                k: v.shape for k, v in backbone.state_dict().items()
            }
    if name in EFFICIENTNETS:
        assert published / 1e6 == pytest.approx(EFFICIENTNETS[name], rel=0.02)
    if name in RESNETS:
        assert published == (11_689_512, 21_797_672, 25_557_032, 44_549_160, 60_192_808)[RESNETS.index(name)]


@pytest.mark.parametrize("name", [name for name in ALL if name not in REGNETS])
def test_every_network_has_its_features_found(name: str):
    with torch.device("meta"):
        backbone = TorchvisionBackbone(name, in_channels=1).eval()
        assert backbone.num_features >= 400
        if name in SMALL or name.startswith(("vit", "maxvit")):
            side = SMALL.get(name, 224)
            assert backbone(torch.empty(2, 1, side, side)).shape == (2, backbone.num_features)


def test_every_family_is_looked_at():
    assert not {name[:3] for name in ALL} - {name[:3] for name in SMALL} - {"max", "vit", "wid"}


@pytest.mark.parametrize(("name", "side"), [item for item in SMALL.items() if item[0] != "vgg11"])  # vgg is large
def test_features_are_what_the_classifier_reads(name: str, side: int, tmp_path: Path):
    """The last layer of the whole network, put on the features, gives the whole network's answer."""
    torch.manual_seed(0)
    whole = _with_classifier(name).eval()
    linear = [module for module in whole.modules() if isinstance(module, nn.Linear) and module.out_features == 7]
    backbone = TorchvisionBackbone(name, weights=_save(whole, tmp_path)).eval()
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        features = backbone(images)
        assert features.shape == (2, backbone.num_features)
        if linear:  # all but squeezenet, whose classifier is a convolution before the average
            torch.testing.assert_close(linear[-1](features), whole(images))
        else:
            torch.testing.assert_close(features, whole.features(images).mean((2, 3)))
        assert features.std(0).sum() > 0


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_no_auxiliary_heads_in_training(name: str):
    backbone = TorchvisionBackbone(name).train()
    features = backbone(torch.rand(2, 3, 80, 80))
    assert isinstance(features, Tensor)
    features.sum().backward()
    assert all(weight.grad is not None for weight in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "halved"),
    {
        "resnet18": 2,
        "wide_resnet50_2": 2,
        "densenet121": 2,
        "shufflenet_v2_x0_5": 2,
        "regnet_x_400mf": 1,
        "mobilenet_v2": 1,
        "mobilenet_v3_small": 1,
        "mnasnet0_5": 1,
        "efficientnet_b0": 1,
    }.items(),
)
def test_small_stem_keeps_the_side(name: str, halved: int):
    """The last maps of the small stem on 32 px are as large as the usual ones on 64 or 128 px."""
    sides = []
    for small_stem, side in ((True, 32), (False, 32 * 2**halved)):
        backbone = TorchvisionBackbone(name, 1, small_stem=small_stem).eval()
        convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
        outputs: list[Tensor] = []
        convolutions[-1].register_forward_hook(lambda _module, _inputs, output, outputs=outputs: outputs.append(output))
        backbone(torch.rand(1, 1, side, side))
        sides.append(outputs[0].shape[-1])
        if small_stem:
            assert convolutions[0].kernel_size == (3, 3)
            assert convolutions[0].stride == (1, 1)
    assert sides[0] == sides[1]


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "vgg11", "convnext_tiny", "alexnet", "maxvit_t"])
def test_small_stem_without_meaning(name: str):
    with pytest.raises(UserError, match=f"small_stem: .* {name}"):
        TorchvisionBackbone(name, small_stem=True)


def test_small_stem_takes_other_weights_and_leaves_its_own(tmp_path: Path):
    whole = _with_classifier("resnet18")
    with pytest.warns(UserWarning, match=r"resnet18: 119 of 120 .*\(conv1\.weight\)"):
        backbone = TorchvisionBackbone("resnet18", weights=_save(whole, tmp_path), small_stem=True)
    torch.testing.assert_close(backbone.network.layer1[0].conv1.weight, whole.layer1[0].conv1.weight)
    again = TorchvisionBackbone("resnet18", 1, _save(backbone, tmp_path), small_stem=True)
    expected = backbone.network.conv1.weight.sum(1, keepdim=True)
    torch.testing.assert_close(again.network.conv1.weight, expected)


def test_old_densenet_names_and_missing_batch_counts(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    whole = _with_classifier("densenet121")
    state = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
        for key, value in whole.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(state, tmp_path / "old.pth")
    backbone = TorchvisionBackbone("densenet121", weights=str(tmp_path / "old.pth"))
    assert not recwarn.list
    kernel = "features.denseblock2.denselayer3.conv2.weight"
    torch.testing.assert_close(backbone.network.get_parameter(kernel), whole.get_parameter(kernel))


def test_named_weights(monkeypatch: pytest.MonkeyPatch):
    """The state dict that torchvision would download is put in its place."""
    whole = models.resnet18()
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda *_args, **_settings: whole.state_dict())
    for weights in ("IMAGENET1K_V1", "DEFAULT"):
        backbone = TorchvisionBackbone("resnet18", 1, weights)
        torch.testing.assert_close(backbone.network.conv1.weight, whole.conv1.weight.sum(1, keepdim=True))
        torch.testing.assert_close(backbone.network.layer4[1].bn2.weight, whole.layer4[1].bn2.weight)


@pytest.mark.parametrize(("in_channels", "rescales"), [(3, True), (1, False)])
def test_named_weights_of_networks_with_auxiliary_heads(
    in_channels: int, rescales: bool, monkeypatch: pytest.MonkeyPatch
):
    whole = models.inception_v3(init_weights=False)
    monkeypatch.setattr(models.Inception_V3_Weights, "get_state_dict", lambda *_args, **_settings: whole.state_dict())
    backbone = TorchvisionBackbone("inception_v3", in_channels, "DEFAULT")
    assert backbone.network.transform_input is rescales
    assert backbone(torch.rand(2, in_channels, 75, 75)).shape == (2, 2048)
    torch.testing.assert_close(backbone.network.Mixed_7c.branch1x1.conv.weight, whole.Mixed_7c.branch1x1.conv.weight)


def test_download_that_fails(monkeypatch: pytest.MonkeyPatch):
    def fail(*_args: object, **_settings: object):
        raise ConnectionError("no route")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(UserError, match=r"DEFAULT for resnet18 .*no route.*https://\S+/resnet18-\S+ .*weights FILE$"):
        TorchvisionBackbone("resnet18", weights="DEFAULT")


def test_metadata_of_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Named weights have their own; a plain file those of the default weights, as an assumption."""
    imagenet = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    whole = models.resnet18()
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda *_args, **_settings: whole.state_dict())
    for weights in ("IMAGENET1K_V1", "DEFAULT"):
        metadata = TorchvisionBackbone("resnet18", weights=weights).weights_metadata
        assert metadata == ("torchvision's resnet18 IMAGENET1K_V1", *imagenet, 224, False)
    file = _save(whole, tmp_path)
    metadata = TorchvisionBackbone("resnet18", weights=file).weights_metadata
    assert metadata is not None
    assert metadata[1:] == (*imagenet, 224, False)
    assert all(word in metadata.source for word in (file, "assumed", "torchvision's resnet18 IMAGENET1K_V1"))
    recorded = {"mean": [0.1] * 3, "std": [0.2] * 3, "image_format": {"image_size": 48}}
    torch.save({"state_dict": whole.state_dict(), **recorded}, tmp_path / "run.ckpt")
    metadata = TorchvisionBackbone("resnet18", weights=str(tmp_path / "run.ckpt")).weights_metadata
    assert metadata == (str(tmp_path / "run.ckpt"), [0.1] * 3, [0.2] * 3, 48, False)
    gray = TorchvisionBackbone("resnet18", 1, "DEFAULT").weights_metadata
    assert gray is not None
    assert gray.mean == pytest.approx([sum(imagenet[0]) / 3])
    assert TorchvisionBackbone("resnet18", 4, "DEFAULT").weights_metadata is None
    assert TorchvisionBackbone("resnet18").weights_metadata is None


def test_metadata_of_a_network_for_one_size(tmp_path: Path):
    metadata = TorchvisionBackbone("vit_b_32", weights=_save(models.vit_b_32(), tmp_path)).weights_metadata
    assert metadata is not None
    assert (metadata.image_size, metadata.is_size_fixed) == (224, True)
    recorded = {"mean": [0.1] * 3, "std": [0.2] * 3, "image_format": {"image_size": 224}}
    torch.save({"state_dict": models.vit_b_32().state_dict(), **recorded}, tmp_path / "run.ckpt")
    metadata = TorchvisionBackbone("vit_b_32", weights=str(tmp_path / "run.ckpt")).weights_metadata
    assert metadata == (str(tmp_path / "run.ckpt"), [0.1] * 3, [0.2] * 3, 224, True)


def test_unknown_names():
    with pytest.raises(UserError, match=r"'ResNet51'.*resnet50"):
        TorchvisionBackbone("ResNet51")
    with pytest.raises(UserError, match=r"'fcn_resnet50'"):  # a network, but for segmentation
        TorchvisionBackbone("fcn_resnet50")
    with pytest.raises(UserError, match=r"'imagenet1k_v9' .*resnet50.*IMAGENET1K_V1"):
        TorchvisionBackbone("resnet50", weights="imagenet1k_v9")


SMALLEST = {
    "alexnet": 63,
    "convnext_tiny": 32,
    "densenet121": 29,
    "googlenet": 15,
    "inception_v3": 75,
    "resnet18": 1,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "swin_t": 4,
    "vgg11": 32,
}


@pytest.mark.parametrize("name", SMALLEST)
def test_smallest_side(name: str):
    """One pixel less is refused, and rightly: the network itself fails there."""
    with torch.device("cpu" if name == "convnext_tiny" else "meta"):  # where torch 2.6 lets convolutions of it pass
        backbone, smallest = TorchvisionBackbone(name).eval(), SMALLEST[name]
        assert backbone(torch.empty(2, 3, smallest, smallest)).shape == (2, backbone.num_features)
        if smallest > 1:
            images = torch.empty(2, 3, smallest + 1, smallest - 1)
            with pytest.raises(UserError, match=f"{name} .* {smallest} x {smallest} px"):
                backbone(images)
            with pytest.raises((RuntimeError, ValueError)):
                backbone.network(images)


@pytest.mark.parametrize("name", ["vit_b_16", "maxvit_t"])
def test_fixed_side(name: str):
    with torch.device("meta"):
        backbone = TorchvisionBackbone(name).eval()
        with pytest.raises(UserError, match=f"224 x 192 px: {name} .* 224 x 224 px"):
            backbone(torch.empty(2, 3, 224, 192))
