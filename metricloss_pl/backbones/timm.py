"""Any network of timm (PyTorch Image Models) without its classifier."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from metricloss_pl.backbones._weights import adapt_metadata, assume_metadata, load_state, read_weights
from metricloss_pl.backbones.base import Backbone, WeightsMetadata
from metricloss_pl.errors import UserError, reason

__all__ = ["TimmBackbone"]


class TimmBackbone(Backbone):
    """Network of timm; its features are the input of its classifier. Needs the extra `timm`.

    The first convolution takes any number of channels. From pretrained weights, its kernels are summed over color for
    1 channel; for n channels they are repeated (R, G, B, R, ...) and scaled by 3 / n.

    Args:
        name: Name of the network in timm, such as "resnet50d" or "vit_small_patch16_224.augreg_in1k". The part behind
            the dot chooses among its weights.
        in_channels: Channels of the images, at least 1.
        weights: null for a random start; "pretrained" for timm's own weights (downloaded once); or a file with a state
            dict of the network, whose classifier may have any size and is left out.

    Raises:
        UserError: timm is missing; an unknown name; weights that can't be had or do not fit; images of a size that the
            network does not take.
    """

    def __init__(self, name: str, in_channels: int = 3, weights: str | None = None) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise UserError(
                'backbone TimmBackbone needs the extra timm, which is not installed: pip install "metricloss_pl[timm]"'
            ) from error
        recorded = None
        file = None if weights in (None, "pretrained") else Path(str(weights))
        if file is not None and not file.is_file():
            raise UserError(f"weights: {weights!r} is neither a file nor 'pretrained' (backbone {name})")
        if ":" not in name and not timm.is_model(name):  # with a colon it may lie on a hub
            close = get_close_matches(name, timm.list_models()) or ["resnet18"]
            raise UserError(f"name: timm has no network {name!r}; close names: {', '.join(close)}")
        try:
            network: Any = timm.create_model(
                name, pretrained=weights == "pretrained", in_chans=in_channels, num_classes=0
            )
        except (AssertionError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            advice = _where_to_get(name) if isinstance(error, OSError) else ""
            raise UserError(f"timm can't build {name} with weights {weights}: {reason(error)}{advice}") from error
        self.name = name
        self.network: nn.Module = network
        self.num_features = int(network.head_hidden_size)
        if file is not None:
            classifier = network.pretrained_cfg.get("classifier") or ()
            leave_out = (classifier,) if isinstance(classifier, str) else classifier
            state, recorded = read_weights(file)
            load_state(network, state, name, str(file), leave_out)
        elif weights is not None:
            rank_zero_info(f"{name}: all of its tensors loaded from timm's {network.pretrained_cfg.get('tag') or name}")
        if weights is not None:
            metadata = _metadata(name, network.pretrained_cfg)
            if file is not None:
                metadata = (
                    assume_metadata(metadata, str(file))
                    if recorded is None
                    else recorded._replace(is_size_fixed=metadata.is_size_fixed)
                )
            self.weights_metadata = adapt_metadata(metadata, in_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, num_features) of images (B, in_channels, H, W)."""
        try:
            features: Tensor = self.network(images)
        except AssertionError as error:  # transformers with positions for one size
            height, width = images.shape[-2:]
            raise UserError(
                f"images of {height} x {width} px: {self.name} takes others: {reason(error)} (image_size of the data)"
            ) from error
        return features


def _metadata(name: str, config: Mapping[str, Any]) -> WeightsMetadata:
    return WeightsMetadata(
        source=f"timm's {name}",
        mean=list(config["mean"]),
        std=list(config["std"]),
        image_size=config["input_size"][-1],
        is_size_fixed=bool(config.get("fixed_input_size")),
    )


def _where_to_get(name: str) -> str:
    """Return advice on getting the weights of a network on another machine."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    hub, url = getattr(config, "hf_hub_id", None), getattr(config, "url", None)
    address = f"https://huggingface.co/{hub}/resolve/main/model.safetensors" if hub else url
    if not address:
        return ""
    advice = "give the file: compare --pretrained NAME=FILE, else --model.backbone.weights FILE"
    return f"; without a connection, get {address} elsewhere and {advice}"
