"""CutMix and mixup: training images mixed in pairs, and their losses with them.

torchvision's versions give labels as probabilities (B, C), but the losses here take class indices (B,). A mixed batch
therefore has two label vectors, and its loss is the weighted sum of both losses.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from metricloss_pl.errors import UserError

__all__ = ["CutMix", "MixUp", "Mixing"]


class Mixing(nn.Module, ABC):
    """Mixing of each image of a batch with another one, by a share lambda ~ Beta(alpha, alpha).

    lambda and the pairs are drawn once per batch and process, from torch's generator on the CPU, which `PerStepSeeding`
    seeds from (seed, epoch, batch, process), so that a resumed run repeats them. They belong to a batch and not to an
    image, and therefore do not come from the images' keys. The loss of a mixed batch is
    lambda * L(own labels) + (1 - lambda) * L(partners' labels). A subclass implements `mix`.

    Args:
        alpha: Parameter of the Beta distribution, above 0. A small alpha leaves most images nearly unchanged; with 1,
            lambda is uniform.
        probability: Probability that a batch is mixed, in [0, 1].
        same_class: Mix only images of the same class; one without another of its class in the batch stays as it is.

    Raises:
        UserError: `alpha` or `probability` is outside its range.
    """

    def __init__(self, alpha: float = 1.0, probability: float = 1.0, same_class: bool = False) -> None:
        super().__init__()
        if not 0 < alpha < math.inf:
            raise UserError(f"alpha of {type(self).__name__} is {alpha}; it must be above 0 and finite")
        if not 0 <= probability <= 1:
            raise UserError(f"probability of {type(self).__name__} is {probability}; it must be in [0, 1]")
        self.alpha = alpha
        self.probability = probability
        self.same_class = same_class

    def check_within_classes(self, regime: str) -> None:
        """Refuse mixing across classes for a regime in which each image has a single center."""
        if not self.same_class:
            raise UserError(
                f"batch_mixing is {type(self).__name__} across classes, but for {regime} each image has a single "
                "center: set same_class of batch_mixing to true"
            )

    @abstractmethod
    def mix(self, images: Tensor, partners: Tensor, share: float) -> tuple[Tensor, float]:
        """Return images (B, C, H, W) mixed with `images[partners]`.

        Args:
            images: Integers of their type's whole range, or floats in [0, 1]; not modified.
            partners: (B,) int64, the position of each image's partner.
            share: lambda in [0, 1], the share of the image itself.

        Returns:
            The mixed images, and the share of the image itself after rounding to pixels.
        """

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return mixed images (B, C, H, W), the positions (B,) of their partners, and lambda, which is 1 if unmixed.

        Args:
            images: (B, C, H, W).
            labels: (B,) int64.
        """
        # Under half precision torch's default type is too coarse for a probability.
        if torch.rand((), dtype=torch.float64) >= self.probability:
            return images, torch.arange(len(images), device=images.device), 1.0
        share = self._draw_share()
        partners = torch.randperm(len(images)).to(images.device)
        if self.same_class:
            partners = _partners_within_classes(labels, partners)
        mixed, share = self.mix(images, partners, share)
        return mixed, partners, share

    def _draw_share(self) -> float:
        # The ratio of two draws from Gamma(alpha), each of them Gamma(alpha + 1) u^(1 / alpha), in logarithms: torch's
        # Beta has both at 0 where alpha is small, and makes 1/2 of it.
        alpha = torch.tensor([self.alpha] * 2, dtype=torch.float64)
        first, second = torch.distributions.Gamma(alpha + 1, torch.ones_like(alpha)).sample().log().tolist()
        log_u, log_v = torch.rand(2, dtype=torch.float64).log().tolist()
        return torch.tensor(first - second + (log_u - log_v) / self.alpha, dtype=torch.float64).sigmoid().item()

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, probability={self.probability}, same_class={self.same_class}"


def _partners_within_classes(labels: Tensor, order: Tensor) -> Tensor:
    """Return the position (B,) of the next image of the same class in a random order, after the last the first one."""
    by_class, positions = labels[order].sort(stable=True)
    order = order[positions]
    index = torch.arange(len(labels), device=labels.device)
    changes = by_class[1:] != by_class[:-1]
    edge = changes.new_ones(1)
    firsts = torch.where(torch.cat([edge, changes]), index, 0).cummax(0).values
    following = torch.where(torch.cat([changes, edge]), firsts, index + 1)
    return torch.empty_like(order).scatter_(0, order, order[following])


class CutMix(Mixing):
    """CutMix: a box of the partner is pasted into the image (Yun et al., ICCV 2019).

    The box has the image's aspect ratio, the share 1 - lambda of its area, and a uniform center. It is clipped at the
    border, and lambda becomes the share of pixels that are the image's own.

    Args:
        alpha: Parameter of lambda ~ Beta(alpha, alpha), above 0; 1 is uniform.
        probability: Probability that a batch is mixed, in [0, 1].
        same_class: Mix only images of the same class; one without another of its class in the batch stays as it is.
    """

    def mix(self, images: Tensor, partners: Tensor, share: float) -> tuple[Tensor, float]:
        """Return images (B, C, H, W) of the same type with a box of `images[partners]`."""
        height, width = images.shape[-2:]
        side = math.sqrt(1 - share)
        rows, columns = round(side * height), round(side * width)
        top = int(torch.randint(height, ())) - rows // 2
        left = int(torch.randint(width, ())) - columns // 2
        bottom, right = min(top + rows, height), min(left + columns, width)
        top, left = max(top, 0), max(left, 0)
        mixed = images.clone()
        mixed[..., top:bottom, left:right] = images[..., top:bottom, left:right][partners]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)


class MixUp(Mixing):
    """mixup: lambda x + (1 - lambda) x' of the image x and its partner x' (Zhang et al., ICLR 2018).

    Args:
        alpha: Parameter of lambda ~ Beta(alpha, alpha), above 0; 1 is uniform.
        probability: Probability that a batch is mixed, in [0, 1].
        same_class: Mix only images of the same class; one without another of its class in the batch stays as it is.
    """

    def __init__(self, alpha: float = 0.2, probability: float = 1.0, same_class: bool = False) -> None:
        super().__init__(alpha, probability, same_class)

    def mix(self, images: Tensor, partners: Tensor, share: float) -> tuple[Tensor, float]:
        """Return the blended images (B, C, H, W); integers become float32 in [0, 1], so that nothing is rounded."""
        if not images.is_floating_point():
            images = images.to(torch.float32) / torch.iinfo(images.dtype).max
        return torch.lerp(images[partners], images, share), share
