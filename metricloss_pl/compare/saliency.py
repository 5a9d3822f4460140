"""Grad-CAM: the regions of an image that raise the score of the predicted class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from metricloss_pl.regimes import Classifier

    Array = NDArray[Any]

__all__ = ["grad_cam", "overlay"]


def grad_cam(model: Classifier, files: Sequence[Path]) -> list[tuple[str, Array, Array]]:
    """Return predicted class, prepared image (H, W, 3) in [0, 1] and map (H, W) in [0, 1] of image files.

    The map is the sum of the last convolution's features, weighted by the mean gradient of the predicted class's score,
    where it is positive (Selvaraju et al. 2017).

    Args:
        model: Trained regime that knows how its images were prepared; without a convolution the list is empty.
        files: Image files.
    """
    import torch
    from torch.nn.functional import interpolate

    from metricloss_pl.callbacks.evaluation import eval_mode
    from metricloss_pl.data.preparation import prepare_batches

    layers = [layer for layer in model.backbone.modules() if isinstance(layer, torch.nn.Conv2d)]
    if not layers or model.image_format is None or not files:
        return []
    [images] = prepare_batches(files, **model.image_format, batch_size=len(files))  # type: ignore[arg-type]
    outputs: list[torch.Tensor] = []

    def keep(layer: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        outputs.append(output.detach().requires_grad_())  # also where the network is frozen
        return outputs[-1]

    hook = layers[-1].register_forward_hook(keep)
    try:
        with eval_mode(model), torch.enable_grad():
            scores, predicted = model(images).max(dim=1)
    finally:
        hook.remove()
    [gradient] = torch.autograd.grad(scores.sum(), outputs[0])
    maps = (gradient.mean(dim=(2, 3), keepdim=True) * outputs[0].detach()).sum(dim=1, keepdim=True).relu()
    maps = interpolate(maps.float(), size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    maps = maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    shown = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    shown = shown.float() / (1 if images.is_floating_point() else 255)
    names = [model.class_names[label] for label in predicted.tolist()]
    return list(zip(names, shown.permute(0, 2, 3, 1).numpy(), maps.numpy(), strict=True))


def overlay(image: Array, heat: Array) -> Array:
    """Return an image (H, W, 3) of uint8 that is bright and warm where the map is high, and dim elsewhere."""
    from matplotlib import colormaps

    warm = colormaps["inferno"](heat)[..., :3]
    mixed = (1 - 0.6 * heat[..., None]) * (0.45 + 0.55 * heat[..., None]) * image + 0.6 * heat[..., None] * warm
    pixels: Array = np.round(255 * np.clip(mixed, 0, 1)).astype(np.uint8)
    return pixels
