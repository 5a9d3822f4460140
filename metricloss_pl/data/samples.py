"""The images of one set with their labels, and checks of the samples that a data set returns."""

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

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SET_NAMES: dict[str, str] = {"train": "training", "val": "validation", "test": "test"}
# Names that folders and lists may use.
SPLIT_NAMES: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Labeled images of one set: a tensor in memory, or files on disk.

    Args:
        images: (N, C, H, W), uint8 or float32 in [0, 1]; or the N files.
        labels: (N,) int64 in [0, num_classes), positions in the data module's `class_names`.
        names: N names for messages and prediction files: a relative path, or "train[12]".
        groups: (N,) int64. Images of one group stay on one side of every split. The number of a group should not depend
            on the other groups, as those from `group_numbers`. None: no groups.
        identities: N keys by which images are recognized wherever they are listed; splits are drawn by them. None: the
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
        """Return the images at `indices`, in that order."""
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
        """Return the same images with their identities, so that subsets do not compute them again."""
        return replace(self, identities=self.identify())

    @property
    def files(self) -> list[Path]:
        """The images' files; none for images in memory."""
        return [] if isinstance(self.images, Tensor) else self.images

    def counts(self, num_classes: int) -> Tensor:
        """Return the number of images per class (num_classes,) int64."""
        return torch.bincount(self.labels, minlength=num_classes)


def content_digest(content: bytes | memoryview) -> str:
    """Return a digest of the content of a file or an array."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def path_identity(path: str) -> str:
    """Return a path in a spelling that does not depend on the file system."""
    return unicodedata.normalize("NFC", path.replace("\\", "/") if os.sep == "\\" else path)


def file_samples(root: Path, files: Sequence[str], labels: Sequence[int]) -> Samples:
    """Return the images of files; their names are their paths relative to `root`."""
    images = [root / file for file in files]
    return Samples(images=images, labels=torch.tensor(labels, dtype=torch.int64), names=list(files))


def array_samples(images: np.ndarray, labels: ArrayLike, name: str) -> Samples:
    """Return the images of an array, named after their positions: "train[12]".

    Args:
        images: (N, H, W) or (N, H, W, C); uint8 stays as it is, uint16 is divided by 65535, floats become float32.
        labels: (N,) integers.
        name: Prefix of the names.
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


def concatenate(first: Samples, second: Samples) -> Samples:
    """Return the images of `first`, then those of `second`; both hold tensors of one shape, or both hold files.

    Groups are kept only if both have them.
    """
    if isinstance(first.images, Tensor) and isinstance(second.images, Tensor):
        images: Tensor | list[Path] = torch.cat([first.images, second.images])
    elif isinstance(first.images, list) and isinstance(second.images, list):
        images = first.images + second.images
    else:
        raise UserError("one set of the data is in memory and another one in files: they cannot be joined")
    grouped = first.groups is not None and second.groups is not None
    identified = first.identities is not None or second.identities is not None
    return Samples(
        images=images,
        labels=torch.cat([first.labels, second.labels]),
        names=first.names + second.names,
        groups=torch.cat([first.groups, second.groups]) if grouped else None,  # type: ignore[list-item]
        identities=first.identify() + second.identify() if identified else None,
    )


class Statistics(NamedTuple):
    """Numbers of classes and images of a published data set.

    `train` includes an official validation set; `images_per_class` are the fewest and the most of `train`.
    """

    classes: int
    train: int
    test: int
    images_per_class: tuple[int, int]


def check_statistics(published: Statistics, split: Literal["train", "test"], labels: Tensor, num_classes: int) -> None:
    """Check that a published set was read whole.

    Args:
        published: Numbers that its authors give.
        split: "train" (with the official validation set) or "test".
        labels: (N,) of all images of the set.
        num_classes: C.

    Raises:
        UserError: There are more or fewer images, classes, or images per class.
    """
    counts = torch.bincount(labels, minlength=num_classes).tolist()
    found = f"{len(labels):,} images of {num_classes:,} classes"
    right = f"{getattr(published, split):,} images of {published.classes:,} classes"
    if split == "train":
        found += f" ({min(counts)} to {max(counts)} per class)"
        right += f" ({published.images_per_class[0]} to {published.images_per_class[1]} per class)"
    if found != right:
        raise UserError(
            f"the {SET_NAMES[split]} set has {found}, but {right} were published: the files on disk are incomplete"
        )


def check_samples(samples: Samples, num_classes: int, split: str) -> None:
    """Check the samples that a data set returns, once, so that no later code has to.

    Args:
        samples: The images of one set.
        num_classes: C; labels must be in [0, C).
        split: "train", "val" or "test", for the message.

    Raises:
        UserError: The set is empty; images, labels, names and groups are not one to one; images are not
            (N, C, H, W) of uint8 or of finite float32 in [0, 1]; labels are of no integer type or out of range.
    """
    name = SET_NAMES.get(split, split)
    images, labels, count = samples.images, samples.labels, len(samples.names)
    if count == 0:
        raise UserError(f"the {name} set holds no image")
    groups = labels if samples.groups is None else samples.groups
    if len(images) != count or labels.shape != (count,) or groups.shape != (count,):
        raise UserError(
            f"the {name} set has {len(images)} images, labels of shape {tuple(labels.shape)}, groups of shape "
            f"{tuple(groups.shape)} and {count} names: one of each per image is needed"
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"the labels of the {name} set are {labels.dtype}: an integer type is needed")
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        image = int(wrong[0])
        raise UserError(
            f"{samples.names[image]} ({name} set) has the label {int(labels[image])}, but with "
            f"{plural(num_classes, 'class')} labels run from 0 to {num_classes - 1}"
        )
    if not isinstance(images, Tensor):
        return
    if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
        raise UserError(
            f"the images of the {name} set are {images.dtype} of shape {tuple(images.shape)}: uint8, or float32 in "
            "[0, 1], of shape (N, C, H, W) is needed"
        )
    if images.dtype == torch.float32:
        lowest, highest = images.flatten(1).amin(1), images.flatten(1).amax(1)
        wrong = (~((lowest >= 0) & (highest <= 1))).nonzero()  # NaN compares false
        if len(wrong):
            image = int(wrong[0])
            raise UserError(
                f"{samples.names[image]} ({name} set) has values from {lowest[image]:g} to {highest[image]:g}: float "
                "images are finite and in [0, 1]"
            )
