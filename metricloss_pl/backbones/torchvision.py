"""Any classification network of torchvision without its last layer."""

from __future__ import annotations

import math
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision import models

from metricloss_pl.backbones._weights import first_convolution, load_state, read_state
from metricloss_pl.backbones.base import Backbone
from metricloss_pl.backbones.full_convolution import use_full_convolution
from metricloss_pl.errors import UserError

_AUXILIARY = ("aux1", "aux2", "AuxLogits")  # the training heads of googlenet and inception_v3

# Families whose first convolution can become 3x3 with stride 1, and the max-pool that follows it directly, if any.
_SMALL_STEM_POOLS = {
    "resnet": "maxpool",
    "resnext": "maxpool",
    "wide_resnet": "maxpool",
    "densenet": "features.pool0",
    "shufflenet": "maxpool",
    "regnet": None,
    "mobilenet": None,
    "mnasnet": None,
    "efficientnet": None,
}

# The smallest side (px) that the network's own strides leave something of, where that is above 1.
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
_SMALLEST_SIDE_SMALL_STEM = {"densenet": 8}
_FULLY_CONVOLVABLE = ("resnet", "resnext", "wide_resnet")
_FIXED_SIDES = {"maxvit": 224}


class TorchvisionBackbone(Backbone):
    """A classification network of torchvision; its features are what its last classifier layer would read.

    What stands before that layer stays: the hidden layers of vgg and alexnet, the dropout of efficientnet. Auxiliary
    heads (googlenet, inception_v3) are taken off. `num_features` is found from the network.

    With other than 3 channels the first convolution is a new one. Pre-trained kernels are then summed over colour and
    divided by the number of channels, so that an image whose channels are alike is seen as its grey picture would be.

    Args:
        name: name of the network in `torchvision.models`, as "resnet50".
        in_channels: channels of the images.
        weights: null for a random start; the name of torchvision weights ("IMAGENET1K_V1", "DEFAULT": downloaded
            once); or a file with a state dict of the network, or a checkpoint that holds one. What matches by name is
            loaded, and a line says how much; the file's classifier may have any size and is left out.
        small_stem: for small images: the first convolution is 3x3 with stride 1, and no max-pooling follows it
            directly. Pre-trained kernels of another size are left out.
        full_convolution: for ResNets: k x k convolutions are padded by k - 1 (F-Conv, Kayhan & van Gemert, CVPR 2020),
            so that the border tells the network less of where in the image something lies. The maps grow, and the work
            with them: on 224 px three times that of the plain network, on 32 px some fifty times.

    Raises:
        UserError: for an unknown name, weights that do not fit the network, `small_stem` or `full_convolution` where it
            has no meaning, and images of a size that the network cannot take.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        weights: str | None = None,
        small_stem: bool = False,
        full_convolution: bool = False,
    ) -> None:
        super().__init__()
        _check_name(name)
        if in_channels < 1:
            raise UserError(f"in_channels: {in_channels} given, must be at least 1 (backbone {name})")
        if small_stem and _by_family(_SMALL_STEM_POOLS, name, "none") == "none":
            families = ", ".join(_SMALL_STEM_POOLS)
            raise UserError(f"small_stem: has no meaning for {name}; networks that know it: {families}")
        if full_convolution and not name.startswith(_FULLY_CONVOLVABLE):
            families = ", ".join(_FULLY_CONVOLVABLE)
            raise UserError(f"full_convolution: has no meaning for {name}; networks that know it: {families}")
        self.name = name
        self.small_stem = small_stem

        self.network, state = _build(name, weights, in_channels)
        if in_channels != 3 or small_stem:
            _replace_stem(self.network, in_channels, small_stem)
        if small_stem and (pool := _by_family(_SMALL_STEM_POOLS, name, None)) is not None:
            _replace(self.network, pool, nn.Identity())
        if isinstance(self.network, models.ResNet) and full_convolution:
            use_full_convolution(self.network)

        classifier, self.num_features = _last_layer(self.network)
        _replace(self.network, classifier, nn.Identity())
        if state is not None:
            load_state(self.network, state, name, str(weights), (classifier, *_AUXILIARY), new_stem=small_stem)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) to features (B, num_features)."""
        self._check_size(images)
        features: Tensor = self.network(images)
        return features

    def _check_size(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        fixed = getattr(self.network, "image_size", _by_family(_FIXED_SIDES, self.name, None))  # vit has it
        if fixed is not None:
            fits, right = height == width == fixed, f"exactly {fixed} x {fixed} px"
        else:
            sides = _SMALLEST_SIDE_SMALL_STEM if self.small_stem else _SMALLEST_SIDES
            smallest = _by_family(sides, self.name, 1)
            fits, right = min(height, width) >= smallest, f"at least {smallest} x {smallest} px"
        if not fits:
            raise UserError(f"images of {height} x {width} px: {self.name} takes {right} (image_size of the data)")


def _check_name(name: str) -> None:
    known = models.list_models(module=models)
    if name not in known:
        close = get_close_matches(name.lower(), known) or known[:3]
        raise UserError(f"name: torchvision has no classification network {name!r}; close names: {', '.join(close)}")


def _by_family(table: dict[str, Any], name: str, default: Any) -> Any:
    return next((value for family, value in table.items() if name.startswith(family)), default)


def _build(name: str, weights: str | None, in_channels: int) -> tuple[nn.Module, dict[str, Tensor] | None]:
    """The network as torchvision builds it, without auxiliary heads, and the state to load once it is changed."""
    named = None if weights is None else _named_weights(name, weights)
    state = read_state(Path(weights)) if weights is not None and named is None else None
    if state is not None and name.startswith("densenet"):  # torchvision's own files still say norm.1 for norm1
        state = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key): value for key, value in state.items()}
    settings = {"init_weights": True} if named is None and name in ("googlenet", "inception_v3") else {}
    try:
        network = models.get_model(name, weights=named, **settings)
    except (URLError, TimeoutError, ConnectionError) as error:
        raise UserError(f"weights: the download of {weights} for {name} failed: {error}") from error
    if getattr(network, "aux_logits", False):
        network.aux_logits = False
        for head in _AUXILIARY:
            if hasattr(network, head):
                setattr(network, head, None)
    if in_channels != 3 and getattr(network, "transform_input", False):
        network.transform_input = False  # it would rescale red, green and blue
    return network, network.state_dict() if named is not None else state


def _named_weights(name: str, weights: str) -> Any | None:
    """The member of torchvision's weights enum, or None where `weights` is a file."""
    known = models.get_model_weights(name).__members__  # with its aliases, DEFAULT among them
    if weights in known:
        return known[weights]
    if Path(weights).is_file():
        return None
    close = get_close_matches(weights.upper(), list(known)) or list(known)
    raise UserError(f"weights: {weights!r} is neither a file nor weights of {name}; these are {', '.join(close)}")


def _last_layer(network: nn.Module) -> tuple[str, int]:
    """Path and input length of the last classifier layer: the last linear one, or (squeezenet) the last convolution."""
    linear = [(path, module.in_features) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    convolutions = [
        (path, module.in_channels) for path, module in network.named_modules() if isinstance(module, nn.Conv2d)
    ]
    return (linear or convolutions)[-1]


def _replace(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)


def _replace_stem(network: nn.Module, in_channels: int, small: bool) -> None:
    """Put a new first convolution in place, drawn so that its outputs keep the spread of the old one's."""
    stem = first_convolution(network)
    assert stem is not None
    path, old = stem
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
