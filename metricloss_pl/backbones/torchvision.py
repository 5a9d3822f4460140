"""Any classification network of torchvision without its last layer."""

from __future__ import annotations

import math
import re
from difflib import get_close_matches
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from metricloss_pl.backbones._weights import (
    adapt_metadata,
    assume_metadata,
    first_convolution,
    load_state,
    read_weights,
)
from metricloss_pl.backbones.base import Backbone, WeightsMetadata
from metricloss_pl.backbones.full_convolution import use_full_convolution
from metricloss_pl.backbones.harmonic import is_harmonic, use_harmonic
from metricloss_pl.errors import UserError, reason

_AUXILIARY = ("aux1", "aux2", "AuxLogits")  # the training heads of googlenet and inception_v3

# Families whose first convolution can become 3x3 with stride 1, and the max-pool that directly follows it.
_SMALL_STEM_POOLS = {
    "resnet": "maxpool",
    "resnext": "maxpool",
    "wide_resnet": "maxpool",
    "densenet": "features.pool0",
    "shufflenet": "maxpool",
    "regnet": "",
    "mobilenet": "",
    "mnasnet": "",
    "efficientnet": "",
}

# Smallest side in px after whose strided layers a pixel is left (with the usual stem); 1 for other families.
_SMALLEST_SIDES = {
    "alexnet": 63,
    "convnext": 32,
    "densenet": 29,
    "googlenet": 15,
    "inception": 75,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "swin": 4,
    "vgg": 32,
}
_RESNETS = ("resnet", "resnext", "wide_resnet")


class TorchvisionBackbone(Backbone):
    """Classification network of torchvision; its features are the input of its last classifier layer.

    The layers before it stay: the hidden layers of vgg and alexnet, the dropout of efficientnet. Auxiliary heads
    (googlenet, inception_v3) are removed. `num_features` follows from the network.

    The first convolution takes any number of channels. From pretrained weights, its kernels are summed over color for
    1 channel; for n channels they are repeated (R, G, B, R, ...) and scaled by 3 / n, as timm does.

    Args:
        name: Name of the network in `torchvision.models`, such as "resnet50".
        in_channels: Channels of the images, at least 1.
        weights: null for a random start; the name of torchvision weights ("IMAGENET1K_V1", "DEFAULT": downloaded
            once); or a file with a state dict of the network, or a checkpoint that holds one. Tensors that match by
            name are loaded, and a line reports them; the file's classifier may have any size and is left out.
        small_stem: For small images, a first convolution of 3x3 with stride 1 and without the max-pooling that follows
            it. Pretrained kernels of another size are left out.
        full_convolution: For ResNets, k x k convolutions padded by k - 1 (F-Conv, Kayhan & van Gemert, CVPR 2020), so
            that the border reveals less of the place of an object in the image. The maps grow, and the work with them:
            to 3 times that of the plain network on 224 px, to some 50 times on 32 px.
        harmonic: For ResNets, learn 3 x 3 filters as sums of cosine filters (`HarmonicConv2d`). Pretrained filters are
            expressed by them.

    Raises:
        UserError: An unknown name; weights that do not fit the network; `small_stem`, `full_convolution` or
            `harmonic` for a network that has no such form; images of a size that the network can't take.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        weights: str | None = None,
        small_stem: bool = False,
        full_convolution: bool = False,
        harmonic: bool = False,
    ) -> None:
        super().__init__()
        _check_name(name)
        pool = _by_family(_SMALL_STEM_POOLS, name)
        for option, given, families in (
            ("small_stem", small_stem, tuple(_SMALL_STEM_POOLS)),
            ("full_convolution", full_convolution, _RESNETS),
            ("harmonic", harmonic, _RESNETS),
        ):
            if given and not name.startswith(families):
                raise UserError(f"{option}: has no meaning for {name}; networks that have it: {', '.join(families)}")
        self.name = name
        self.small_stem = small_stem

        self.network, state, recorded = _build(name, weights, in_channels)
        if in_channels != 3 or small_stem:
            _replace_stem(self.network, in_channels, small_stem)
        if small_stem and pool:
            _replace(self.network, pool, nn.Identity())
        if full_convolution:
            assert isinstance(self.network, models.ResNet)
            use_full_convolution(self.network)

        classifier, self.num_features = _last_layer(self.network)
        _replace(self.network, classifier, nn.Identity())
        if harmonic and is_harmonic(state):
            use_harmonic(self.network)
        if state is not None:
            load_state(self.network, state, name, str(weights), (classifier, *_AUXILIARY))
            metadata = self._metadata(str(weights))
            if recorded is not None:
                metadata = recorded._replace(is_size_fixed=metadata.is_size_fixed)
            self.weights_metadata = adapt_metadata(metadata, in_channels)
        if harmonic:
            use_harmonic(self.network)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, num_features) of images (B, in_channels, H, W)."""
        height, width = images.shape[-2:]
        exact = self._exact_size
        least = _by_family(_SMALLEST_SIDES, self.name) or 1
        if exact is not None and not height == width == exact:
            self._refuse(images, f"exactly {exact} x {exact} px")
        if not self.small_stem and min(height, width) < least:
            self._refuse(images, f"at least {least} x {least} px")
        features: Tensor = self.network(images)
        return features

    @property
    def _exact_size(self) -> int | None:
        """The only side in px that the network takes, if there is one."""
        size: int | None = getattr(self.network, "image_size", 224 if self.name.startswith("maxvit") else None)
        return size  # vit has the attribute

    def _metadata(self, weights: str) -> WeightsMetadata:
        """Return the metadata of named weights, or for a file those of the network's default weights."""
        known = models.get_model_weights(self.name)
        named = known.__members__.get(weights, known.DEFAULT)
        preset, exact = named.transforms(), self._exact_size
        metadata = WeightsMetadata(
            source=f"torchvision's {self.name} {named.name}",
            mean=list(preset.mean),
            std=list(preset.std),
            image_size=exact or preset.crop_size[0],
            is_size_fixed=exact is not None,
        )
        return metadata if weights in known.__members__ else assume_metadata(metadata, weights)

    def _refuse(self, images: Tensor, right: str) -> None:
        height, width = images.shape[-2:]
        raise UserError(f"images of {height} x {width} px: {self.name} takes {right} (image_size of the data)")


def _check_name(name: str) -> None:
    known = models.list_models(module=models)
    if name not in known:
        close = get_close_matches(name.lower(), known) or known[:3]
        raise UserError(f"name: torchvision has no classification network {name!r}; close names: {', '.join(close)}")


def _by_family(table: dict[str, Any], name: str) -> Any:
    return next((value for family, value in table.items() if name.startswith(family)), None)


def _build(
    name: str, weights: str | None, in_channels: int
) -> tuple[nn.Module, dict[str, Tensor] | None, WeightsMetadata | None]:
    """Return the network without auxiliary heads, the state to load once its layers are changed, and its metadata."""
    named = None if weights is None else _named_weights(name, weights)
    state, recorded = read_weights(Path(weights)) if weights is not None and named is None else (None, None)
    if state is not None and name.startswith("densenet"):  # torchvision's own files still say norm.1 for norm1
        state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key): value for key, value in state.items()}
    settings = {"init_weights": True} if named is None and name in ("googlenet", "inception_v3") else {}
    try:
        network = models.get_model(name, weights=named, **settings)
    except (OSError, HTTPException) as error:
        if named is None:
            raise
        raise UserError(
            f"weights: the download of {weights} for {name} failed ({reason(error)}); without a connection, get "
            f"{named.url} elsewhere and give the file: compare --pretrained NAME=FILE, else --model.backbone.weights "
            "FILE"
        ) from error
    if getattr(network, "aux_logits", False):
        network.aux_logits = False
        for head in _AUXILIARY:
            if hasattr(network, head):
                setattr(network, head, None)
    if in_channels != 3 and hasattr(network, "transform_input"):
        network.transform_input = False  # it would rescale red, green and blue
    return network, state if named is None else network.state_dict(), recorded


def _named_weights(name: str, weights: str) -> Any | None:
    """Return the member of torchvision's weights enum, or None where `weights` is a file."""
    known = models.get_model_weights(name).__members__  # with its aliases, DEFAULT among them
    if weights in known:
        return known[weights]
    if Path(weights).is_file():
        return None
    close = get_close_matches(weights.upper(), list(known)) or list(known)
    raise UserError(f"weights: {weights!r} is neither a file nor weights of {name}; these are {', '.join(close)}")


def _last_layer(network: nn.Module) -> tuple[str, int]:
    """Return path and input length of the last linear layer, or (squeezenet) of the last convolution."""
    linear = [(path, module.in_features) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    convolutions = [
        (path, module.in_channels) for path, module in network.named_modules() if isinstance(module, nn.Conv2d)
    ]
    return (linear or convolutions)[-1]


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)


def _replace_stem(network: nn.Module, in_channels: int, small: bool) -> None:
    """Replace the first convolution by a random one whose outputs have the spread of those of the old one."""
    path, old = first_convolution(network)
    size: dict[str, Any] = {"kernel_size": 3, "padding": 1}
    if not small:
        size = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
    new = nn.Conv2d(in_channels, old.out_channels, bias=old.bias is not None, **size)
    with torch.no_grad():
        spread = old.weight.std() * math.sqrt(old.weight[0].numel() / new.weight[0].numel())
        new.weight.copy_(torch.randn_like(new.weight) * spread)
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    _replace(network, path, new)
