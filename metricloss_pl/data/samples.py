"""The images of one part of a data set with their labels, and the checks of what a data set gave."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from metricloss_pl.errors import UserError, plural


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """The labelled images of one part of a data set: a tensor in memory, or files on disk.

    Args:
        images: (N, C, H, W) with C 1 or 3, uint8 or float32 in [0, 1]; or the N files.
        labels: (N,) int64 in [0, C), the position in the data module's `class_names`.
        names: One an image, for messages and prediction files: a relative path, or "train[12]".
        groups: (N,) int64: images of one group stay on one side of every split. A group's number should be its own
            whatever other groups there are, as from `group_numbers`. None: no groups.
        identities: What each image is known by wherever it is listed, which decides the set that it is in. None: the
            names of files, and the digests of arrays' contents.
    """

    images: Tensor | list[Path]
    labels: Tensor
    names: list[str]
    groups: Tensor | None = None
    identities: list[str] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> Samples:
        """Returns the images at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        images = self.images[index] if isinstance(self.images, Tensor) else [self.images[i] for i in index.tolist()]
        return replace(
            self,
            images=images,
            labels=self.labels[index],
            names=[self.names[i] for i in index.tolist()],
            groups=None if self.groups is None else self.groups[index],
            identities=None if self.identities is None else [self.identities[i] for i in index.tolist()],
        )

    def identify(self) -> list[str]:
        """Return the identity of each image."""
        if self.identities is not None:
            return self.identities
        if isinstance(self.images, Tensor):
            return [content_digest(image.data) for image in self.images.contiguous().numpy()]
        return [path_identity(name) for name in self.names]

    def identified(self) -> Samples:
        """Return the same images with their identities, which are then known to subsets too."""
        return replace(self, identities=self.identify())


def content_digest(content: bytes | memoryview) -> str:
    """Return what tells a file's or an array's content from others."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def path_identity(path: str) -> str:
    """Return a path in the one spelling that all file systems' spellings of it have in common."""
    return unicodedata.normalize("NFC", path.replace("\\", "/") if os.sep == "\\" else path)


def file_samples(root: Path, files: Sequence[str], labels: Sequence[int]) -> Samples:
    """Returns the images of files whose paths, relative to `root`, are their names."""
    images = [root / file for file in files]
    return Samples(images=images, labels=torch.tensor(labels, dtype=torch.int64), names=list(files))


def array_samples(images: np.ndarray, labels: ArrayLike, name: str) -> Samples:
    """Returns the images of an array, called by their positions: "train[12]".

    Args:
        images: (N, H, W) or (N, H, W, C); uint8 stays as it is, uint16 is divided by 65535, floats become float32.
        labels: (N,) integers.
        name: What stands before the position.
    """
    if images.ndim == 3:
        images = images[..., None]
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if images.dtype != np.uint8:
        images = images.astype(np.float32) / np.float32(65535 if images.dtype.kind == "u" else 1)
    return Samples(
        images=torch.from_numpy(images),
        labels=torch.from_numpy(np.asarray(labels, dtype=np.int64)),
        names=[f"{name}[{index}]" for index in range(len(images))],
    )


class Statistics(NamedTuple):
    """What a published data set holds, to be compared with what is read.

    `train` counts an official validation part too; `images_per_class` are the fewest and the most of `train`.
    """

    classes: int
    train: int
    test: int
    images_per_class: tuple[int, int]


def check_statistics(published: Statistics, part: Literal["train", "test"], labels: Tensor, num_classes: int) -> None:
    """Checks that a published set was read whole.

    Args:
        published: What its authors say.
        part: "train" (with the official validation part) or "test".
        labels: (N,) of all images of the part.
        num_classes: C.

    Raises:
        UserError: There are more or fewer images or classes, or images of a class.
    """
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    found = f"{len(labels):,} images of {num_classes:,} classes"
    right = f"{getattr(published, part):,} images of {published.classes:,} classes"
    if part == "train":
        found += f" ({min(counts)} to {max(counts)} a class)"
        right += f" ({published.images_per_class[0]} to {published.images_per_class[1]} a class)"
    if found != right:
        raise UserError(
            f"the {part} part has {found}, but {right} were published: the files on disk are not the whole set"
        )


def concatenate(first: Samples, second: Samples) -> Samples:
    """Returns the images of `first`, then those of `second`; both hold tensors of one shape, or both hold files.

    Groups are kept only where both have them.
    """
    if isinstance(first.images, Tensor) and isinstance(second.images, Tensor):
        images: Tensor | list[Path] = torch.cat([first.images, second.images])
    elif isinstance(first.images, list) and isinstance(second.images, list):
        images = first.images + second.images
    else:
        raise UserError("one part of the data set is in memory and the other in files: they cannot be joined")
    groups = None
    if first.groups is not None and second.groups is not None:
        groups = torch.cat([first.groups, second.groups])
    identities = None
    if first.identities is not None or second.identities is not None:
        identities = first.identify() + second.identify()
    return Samples(
        images=images,
        labels=torch.cat([first.labels, second.labels]),
        names=first.names + second.names,
        groups=groups,
        identities=identities,
    )


def check_samples(samples: Samples, num_classes: int, part: str) -> None:
    """Checks what a data set gave, once, so that nothing behind it has to.

    Args:
        samples: What was read.
        num_classes: C; labels must be in [0, C).
        part: "train", "val" or "test", for the message.

    Raises:
        UserError: The part is empty; images, labels, names and groups are not one to one; images are not
            (N, 1 or 3, H, W) of uint8 or of finite float32 in [0, 1]; labels are of no integer type or out of range.
    """
    labels, count = samples.labels, len(samples.names)
    if count == 0:
        raise UserError(f"the {part} part of the data set holds no image")
    if len(samples.images) != count or labels.shape != (count,):
        raise UserError(
            f"the {part} part has {len(samples.images)} images, labels of shape {tuple(labels.shape)} and {count} "
            "names: one label and one name an image are needed"
        )
    if samples.groups is not None and samples.groups.shape != (count,):
        raise UserError(f"the {part} part has {count} images and groups of shape {tuple(samples.groups.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(
            f"the labels of the {part} part are {labels.dtype} (that of {samples.names[0]} is {labels[0].item()}): "
            "an integer type is needed"
        )
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        image = int(wrong[0])
        raise UserError(
            f"{samples.names[image]} ({part} part) has the label {int(labels[image])}, but with "
            f"{plural(num_classes, 'class')} labels run from 0 to {num_classes - 1}"
        )
    if isinstance(samples.images, Tensor):
        _check_tensor(samples.images, samples.names, part)


def _check_tensor(images: Tensor, names: list[str], part: str) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype not in (torch.uint8, torch.float32):
        raise UserError(
            f"the images of the {part} part are {images.dtype} of shape {tuple(images.shape)}: "
            "uint8, or float32 in [0, 1], of shape (N, 1 or 3, H, W) is needed"
        )
    if images.dtype == torch.float32:
        lowest, highest = images.flatten(1).amin(1), images.flatten(1).amax(1)
        wrong = (~((lowest >= 0) & (highest <= 1))).nonzero()  # NaN compares false, so it is caught here too
        if len(wrong):
            image = int(wrong[0])
            finite = bool(images[image].isfinite().all())
            value = f"values from {lowest[image]:g} to {highest[image]:g}" if finite else "values that are not finite"
            raise UserError(f"{names[image]} ({part} part) has {value}: float images are in [0, 1]")
