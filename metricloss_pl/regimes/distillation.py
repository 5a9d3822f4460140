"""Distillation: training on the predictions of trained networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from metricloss_pl.errors import UserError
from metricloss_pl.states import where_classes_differ

if TYPE_CHECKING:
    from metricloss_pl.regimes.base import Classifier

__all__ = ["Distillation"]


class Distillation(nn.Module):
    """Distillation of trained networks, the teachers, into the one that is trained (Hinton et al. 2015).

    The teachers see the same augmented and mixed images as the network (Beyer et al., CVPR 2022). With the mean p of
    their probabilities at temperature T, and q = softmax(class_scores / T), the loss is
    (1 - weight) * loss + weight * T^2 * KL(p || q), with the mean over the batch. At weight 1 the regime's own loss is
    only logged. Class scores that are cosines (`ce_weight: 0`) are too small for probabilities near 1, which teachers
    have.

    The checkpoint of the network does not contain the teachers.

    Args:
        teachers: Checkpoints that `fit` has written, of networks for the same classes and image size; at least one.
        weight: Share of the distillation in the loss, in (0, 1].
        temperature: T, above 0, in addition to the temperature that calibrates each teacher.

    Raises:
        UserError: An argument is out of its range.
    """

    def __init__(self, teachers: Sequence[str], weight: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        if not teachers:
            raise UserError("teachers of Distillation is empty: give at least one checkpoint")
        if not 0 < weight <= 1:
            raise UserError(f"weight of Distillation is {weight}; it must be above 0 and at most 1")
        if not temperature > 0:
            raise UserError(f"temperature of Distillation is {temperature}; it must be above 0")
        self.teachers = list(teachers)
        self.weight = weight
        self.temperature = temperature
        self._loaded: list[Classifier] = []  # in a list, so that they are no part of the network

    def load(self, student: Classifier) -> None:
        """Load the teachers onto the device of the student, unless they are loaded; a training does so first.

        Raises:
            UserError: A checkpoint cannot be read, or its network is for other classes, channels or sizes of images.
        """
        from metricloss_pl.regimes.loading import load  # which knows all regimes

        for path in self.teachers[len(self._loaded) :]:
            teacher = load(path)
            if teacher.class_names != student.class_names:
                raise UserError(f"the teacher {path} {where_classes_differ(teacher.class_names, student.class_names)}")
            for name in ("in_channels", "image_size"):
                theirs, own = ((model.image_format or {}).get(name) for model in (teacher, student))
                if theirs != own:
                    raise UserError(f"{name} of the teacher {path} is {theirs}, here it is {own}: they must be equal")
            self._loaded.append(teacher.to(student.device))

    def of_other_splits(self, split: Mapping[str, Any]) -> list[str]:
        """Return the loaded teachers that were trained on another split, perhaps on validation images of this one."""
        loaded = zip(self.teachers, self._loaded, strict=True)
        return [path for path, teacher in loaded if teacher.split is not None and teacher.split != split]

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return the mean probabilities (B, C) of the teachers at temperature T for images (B, C, H, W)."""
        each = [teacher.probabilities(teacher(images).float() / self.temperature) for teacher in self._loaded]
        return torch.stack(each).mean(0)

    def forward(self, losses: Mapping[str, Tensor], images: Tensor, class_scores: Tensor) -> dict[str, Tensor]:
        """Return the losses of a batch with the divergence from the teachers in `loss`, and as `distillation`.

        Args:
            losses: Losses of the regime.
            images: (B, C, H, W), as the network sees them.
            class_scores: (B, C) of the network.
        """
        student, targets = (class_scores.float() / self.temperature).log_softmax(1), self.probabilities(images)
        divergence = self.temperature**2 * nn.functional.kl_div(student, targets, reduction="batchmean")
        total = self.weight * divergence
        if self.weight < 1:  # 0 times a loss that is not finite would be nan
            total = total + (1 - self.weight) * losses["loss"]
        return {**losses, "loss": total, "distillation": divergence}

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # the teachers do not change

    def extra_repr(self) -> str:
        return f"{len(self.teachers)} teachers, weight={self.weight}, temperature={self.temperature}"
