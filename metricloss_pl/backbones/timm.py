"""Any network of timm (PyTorch Image Models) without its classifier."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from metricloss_pl.backbones._weights import load_state, read_state
from metricloss_pl.backbones.base import Backbone
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
        file = None if weights in (None, "pretrained") else Path(str(weights))
        if file is not None and not file.is_file():
            raise UserError(f"weights: {weights!r} is neither a file nor 'pretrained' (backbone {name})")
        if ":" not in name and not timm.is_model(name):  # with a colon it may lie on a hub
            close = get_close_matches(name, timm.list_models()) or ["resnet18"]
            raise UserError(f"name: timm has no network {name!r}; close names: {', '.join(close)}")
        try:
            network = timm.create_model(name, pretrained=weights == "pretrained", in_chans=in_channels, num_classes=0)
        except (AssertionError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"timm can't build {name} with weights {weights}: {reason(error)}") from error
        self.name = name
        self.network: nn.Module = network
        self.num_features = int(network.head_hidden_size)
        if file is not None:
            classifier = network.pretrained_cfg.get("classifier") or ()
            leave_out = (classifier,) if isinstance(classifier, str) else classifier
            load_state(network, read_state(file), name, str(file), leave_out)
        elif weights is not None:
            rank_zero_info(f"{name}: all of its tensors loaded from timm's {network.pretrained_cfg.get('tag') or name}")

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
